"""Families with experts in a real engine: its logprobs are the trainer's, as loaded and after a weight sync."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.types import Sample
from tests.components.megatron.helpers import OPTIM, WITH_IMAGES, trainer_settings, write_random
from tests.components.models.moe_shapes import SHAPES, family_of
from tests.components.models.test_served import from_images, from_text
from tests.servers import make_server

pytestmark = [pytest.mark.servers, pytest.mark.full]

BOUND = 1e-4
UNSERVED = ("mlp_only_layers", "tie_word_embeddings")
"""SGLang's Qwen3-MoE builds experts in every layer and an output layer of its own, whatever config.json says."""
SERVED: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in shape.items() if key not in UNSERVED} for name, shape in SHAPES.items()
}


def checkpoint(folder: Path, name: str, seed: int) -> Path:
    """Random weights of a shape, selection bias included, with the family's tokenizer and processor.

    The matrices are scaled up, so that logprobs depend visibly on positions, images and the choice of experts.
    """
    family = family_of(name)
    write_random(folder, family, seed, **SERVED[name])
    weights = load_file(folder / "model.safetensors")
    sharp = {key: value * 1.5 if value.dim() > 1 else value for key, value in weights.items()}
    if seed:  # the tower is frozen: the engine keeps its own
        sharp |= {key: value for key, value in load_file(folder.parent / "0" / "model.safetensors").items()
                  if ".visual." in key}  # fmt: skip
    save_file(sharp, folder / "model.safetensors", metadata={"format": "pt"})
    plain = folder.parent / f"plain-{seed}"
    importlib.import_module(f"components.models.{family}.tiny").write_checkpoint(plain, 0)
    for file in plain.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder / file.name)
    return folder


def banned(folder: Path) -> list[int]:
    """Ids of the tokens that are never sampled."""
    generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return generation.get("suppress_tokens") or []


def trainer_of(folder: Path, name: str) -> MegatronTrainer:
    """A trainer whose steps change nothing."""
    family = family_of(name)
    settings = {"optim": OPTIM | {"lr": 1e-30}, "banned_tokens": banned(folder)}
    return MegatronTrainer(**trainer_settings(folder, family, **settings))


def largest_gap(trainer: MegatronTrainer, samples: list[Sample]) -> float:
    """Largest |trainer's logprob - engine's| over all tokens."""
    return float(trainer.train(0, samples)["train/train_rollout_logprob_abs_diff/max"])


@pytest.mark.parametrize("name", SERVED)
def test_the_engine_agrees_as_loaded_and_after_a_sync(name: str, tmp_path: Path) -> None:
    loaded, other = (checkpoint(tmp_path / str(seed), name, seed) for seed in (0, 1))
    server = make_server(
        "regular", loaded, tmp_path, name=name.replace("_", "-"), banned=banned(loaded), weight_version="0"
    )
    kinds = {"text": lambda: from_text(endpoint)}
    if family_of(name) in WITH_IMAGES:
        kinds["image"] = lambda: from_images(endpoint, loaded)
    gaps = {}
    try:
        given = server.start({})
        endpoint = given["engine_url"]
        before = {kind: sample() for kind, sample in kinds.items()}
        for folder, needs in ((loaded, {}), (other, {"weight_sink": [given["weight_sink"]]})):
            trainer = trainer_of(folder, name)
            try:
                trainer.start(needs)
                trainer.sync(1)
                for kind, sample in kinds.items():
                    gaps[f"{kind} of {folder.name}"] = largest_gap(trainer, sample() if needs else before[kind])
                stale = largest_gap(trainer, before["text"])
            finally:
                trainer.stop()
    finally:
        server.stop()
    print(f"served {name}: {gaps}, the other weights: {stale}")
    assert max(gaps.values()) <= BOUND
    assert stale > 0.1
