"""Each family's exported checkpoint in a real engine: the trainer's logprobs of what the engine samples are its own."""

from __future__ import annotations

import importlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.types import Endpoint, Sample
from tests.components.megatron.helpers import OPTIM, WITH_IMAGES, make_sample, trainer_settings, write_random
from tests.components.models.dense_shapes import SHAPES, YARN_ROPE, family_of
from tests.components.rollout.scripted import ask
from tests.components.rollout.talks import converse
from tests.servers import make_server, picture, sampled

pytestmark = [pytest.mark.servers, pytest.mark.full]

LENGTHS = (1, 7, 33, 300)
"""Prompt lengths; the last is beyond the original context of every scaled shape."""
UNSERVED: dict[str, dict[str, Any]] = {
    "llama3-odd": {"mlp_bias": False},
    "llama3-mlp": {"mlp_bias": False, "rope_parameters": YARN_ROPE},
    "qwen2-odd": {"head_dim": 32},
    "glm_omni-odd": {"rope_parameters": SHAPES["qwen2_5_vl-odd"]["rope_parameters"] | {"partial_rotary_factor": 0.5}},
}
"""What SGLang 0.5.23 lacks, taken back. It drops without a word: biases in Llama's MLP, YaRN's attention_factor.
It ends at: heads of Qwen2 that are not the hidden size cut up, Llama's rotary scaling by multimodal positions."""


def checkpoint(root: Path, name: str) -> Path:
    """Random weights of a shape, norms and biases included, with the family's tokenizer and processor.

    The matrices are scaled up, so that logprobs depend visibly on positions and images.
    """
    family = family_of(name)
    folder = write_random(root / name, family, **(SHAPES[name] | UNSERVED.get(name, {})))
    weights = load_file(folder / "model.safetensors")
    sharp = {key: value * 1.5 if value.dim() > 1 else value for key, value in weights.items()}
    save_file(sharp, folder / "model.safetensors", metadata={"format": "pt"})
    tiny = importlib.import_module(f"components.models.{family}.tiny")
    tiny.write_checkpoint(root / "tiny" / name, 0)
    for file in (root / "tiny" / name).iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder / file.name)
    return folder


def banned(family: str) -> list[int]:
    """Ids of the media tokens, which are never sampled."""
    tiny = importlib.import_module(f"components.models.{family}.tiny")
    return [tiny.SPECIAL.index(token) for token in getattr(tiny, "MEDIA", ())]


def from_text(endpoint: Endpoint) -> list[Sample]:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(16, 112, length).tolist() for length in LENGTHS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda ids: sampled(endpoint, input_ids=ids), prompts))
    return [
        make_sample(i, 0, prompt, ids, logprobs=logprobs)
        for i, (prompt, (ids, logprobs, _)) in enumerate(zip(prompts, answers, strict=True))
    ]


def from_images(endpoint: Endpoint, folder: Path) -> list[Sample]:
    """Conversations of two turns, with one image and with two of other sizes."""
    prompts = [ask("what?", pictures) for pictures in ([picture(1)], [picture(2, 84), picture(3, 112)])]
    return [sample for sample, _ in converse(endpoint, folder, prompts)]


def largest_gap(folder: Path, family: str, samples: list[Sample]) -> float:
    """Largest |trainer's logprob - engine's| over all tokens."""
    settings = {"optim": OPTIM | {"lr": 1e-30}, "banned_tokens": banned(family)}
    trainer = MegatronTrainer(**trainer_settings(folder, family, **settings))
    trainer.start({})
    try:
        metrics = trainer.train(0, samples)
    finally:
        trainer.stop()
    return float(metrics["train/train_rollout_logprob_abs_diff/max"])


def export(folder: Path, target: Path, family: str) -> Path:
    """The checkpoint after a way through the trainer."""
    trainer = MegatronTrainer(**trainer_settings(folder, family))
    trainer.start({})
    try:
        trainer.save_hf(str(target))
    finally:
        trainer.stop()
    return target


@pytest.mark.parametrize("name", SHAPES)
def test_an_exported_checkpoint_is_served_as_it_is_trained(name: str, tmp_path: Path) -> None:
    family = family_of(name)
    folder = export(checkpoint(tmp_path, name), tmp_path / "exported", family)
    server = make_server(
        "regular", folder, tmp_path, name=name.replace("_", "-"), banned=banned(family), weight_version="0"
    )
    try:
        endpoint = server.start({})["engine_url"]
        gaps = {"text": largest_gap(folder, family, from_text(endpoint))}
        if family in WITH_IMAGES:
            gaps["image"] = largest_gap(folder, family, from_images(endpoint, folder))
    finally:
        server.stop()
    print(f"served {name}: {gaps}")
    assert max(gaps.values()) <= 1e-4
