"""Dense families on one rank: logits of transformers, weights in and out, the family that config.json asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.types import Sample
from tests.components.megatron.helpers import (
    WITH_IMAGES,
    hf_model,
    image_prompt,
    make_sample,
    random_samples,
    reference_logits,
    trainer_settings,
    write_random,
)
from tests.components.models.dense_shapes import SHAPES, family_of

Start = Callable[..., MegatronTrainer]
LONG = 300
"""Tokens: well beyond the 64 that the scaled shapes were made for."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dense")
    return {name: write_random(root / name, family_of(name), **shape) for name, shape in SHAPES.items()}


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[MegatronTrainer] = []

    def begin(folder: Path, family: str, **settings: Any) -> MegatronTrainer:
        trainer = MegatronTrainer(**trainer_settings(folder, family, **settings))
        running.append(trainer)
        trainer.start({})
        return trainer

    yield begin
    for trainer in running:
        trainer.stop()


def some_samples(family: str) -> list[Sample]:
    """Prompts short and long, some with one or two images where the family has a tower."""
    rng = np.random.default_rng(1)
    prompts: list[tuple[list[int], dict[str, Any]]] = [(rng.integers(16, 112, n).tolist(), {}) for n in (1, 7, LONG)]
    if family in WITH_IMAGES:
        grids: list[list[tuple[int, int, int]]] = [[(1, 4, 4)], [(1, 2, 6)], [(1, 6, 4), (1, 12, 8)]]
        prompts += [image_prompt(rng, some, text, family) for some, text in zip(grids, (3, 1, LONG), strict=True)]
    return [make_sample(0, i, ids, [20 + i, 30], media=media) for i, (ids, media) in enumerate(prompts)]


def largest_difference(trainer: MegatronTrainer, model: Any, samples: list[Sample]) -> float:
    """Largest |logit - transformers' logit| over all samples and places."""
    parts, worst, seen = trainer._ready(), 0.0, 0
    for batch in parts.batcher.cut(samples, torch.zeros(len(samples)), 0, 1):
        with torch.no_grad():
            logits_BSV = parts.chunks[0](**batch.inputs)
        for row_S, mine_SV in zip(batch.inputs["input_ids"].tolist(), logits_BSV, strict=True):
            for sample in samples:
                ids = [*sample.prompt_ids, *sample.response_ids]
                if row_S[: len(ids)] == ids and not any(row_S[len(ids) :]):
                    worst = max(worst, float((mine_SV[: len(ids)] - reference_logits(model, sample)).abs().max()))
                    seen += 1
    assert seen == len(samples)
    return worst


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, folders: dict[str, Path], start: Start) -> None:
    trainer = start(folders[name], family_of(name))
    model = hf_model(folders[name], family_of(name))
    assert largest_difference(trainer, model, some_samples(family_of(name))) <= 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_save_gives_the_checkpoint_back_bit_for_bit(
    name: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    start(folders[name], family_of(name)).save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[name], tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["llama3-odd", "glm4", "qwen2_5_vl"])
def test_a_trained_checkpoint_loads_in_transformers(
    name: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    family = family_of(name)
    trainer = start(folders[name], family)
    before = largest_difference(trainer, hf_model(folders[name], family), some_samples(family))
    trainer.train(0, random_samples(family))
    trainer.save_hf(str(tmp_path / "saved"))
    moved = largest_difference(trainer, hf_model(folders[name], family), some_samples(family))
    after = largest_difference(trainer, hf_model(tmp_path / "saved", family), some_samples(family))
    assert max(before, after) <= 1e-4 < 1e-2 < moved


@pytest.mark.parametrize("name", ["llama3", "qwen2_5_vl"])
def test_auto_takes_the_family_and_the_spec_that_fit(name: str, folders: dict[str, Path], start: Start) -> None:
    trainer = start(folders[name], "auto", spec={"_target_": "components.models.auto.layer_spec"})
    model = hf_model(folders[name], name)
    assert largest_difference(trainer, model, some_samples(name)) <= 1e-4


def test_an_older_config_json_means_the_same(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta and rope_scaling beside the rest."""
    config = json.loads((folders["llama3-odd"] / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folders["llama3-odd"] / "model.safetensors")
    trainer = start(tmp_path, "llama3")
    model = hf_model(folders["llama3-odd"], "llama3")
    assert largest_difference(trainer, model, some_samples("llama3")) <= 1e-4


def rename(name: str) -> str:
    """A published Qwen2.5-VL name -> the model's own since transformers 4.52."""
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def test_qwen2_5_vl_keeps_the_naming_that_it_finds(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    published = load_file(folders["qwen2_5_vl"] / "model.safetensors")
    assert {"visual.merger.ln_q.weight", "model.norm.weight"} <= published.keys()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text((folders["qwen2_5_vl"] / "config.json").read_text())
    save_file({rename(name): tensor for name, tensor in published.items()}, tmp_path / "in" / "model.safetensors")
    start(tmp_path / "in", "qwen2_5_vl").save_hf(str(tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == {rename(name) for name in published}
    assert all(torch.equal(saved[rename(name)], published[name]) for name in published)
