"""Dense families on two ranks: tensor and pipeline parallelism give one rank's checkpoint and one rank's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.components.megatron.helpers import trainer_settings, write_random
from tests.components.megatron.worker import run, run_world
from tests.components.models.dense_shapes import SHAPES, family_of

SHARED = {"num_key_value_heads": 2}
TRIED = {
    "llama3-attention": {"pp": 2},
    "qwen2-odd": {"tp": 2},
    "glm4": {"tp": 2},
    "qwen2_5_vl": {"tp": 2},
    "qwen2_5_vl-odd": {"pp": 2},
}
"""Shape -> sizes on two ranks. Among them: tied stages, a padded vocabulary."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every shape on two ranks, and alone: train metrics by job; checkpoints beside them."""
    root = tmp_path_factory.mktemp("dense-parallel")

    def job(name: str, kind: str, **settings: Any) -> dict[str, Any]:
        folder, family = root / name, family_of(name)
        return {
            "settings": trainer_settings(folder, family, **settings),
            "steps": 1,
            "out": str(root / f"{name}-{kind}"),
        }

    for name in TRIED:
        layers = {"num_hidden_layers": 2} if "pp" in TRIED[name] else {}
        write_random(root / name, family_of(name), **(SHAPES[name] | SHARED | layers))
    pairs = {name: job(name, "two", world_size=2, **sizes) for name, sizes in TRIED.items()}
    alone = run({name: job(name, "one") for name in TRIED}, 0)
    return root, {f"{name}-two": metrics for name, metrics in run_world(root, pairs, 2).items()} | alone


@pytest.mark.parametrize("name", TRIED)
def test_the_step_is_that_of_one_rank(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    two, one = runs[1][f"{name}-two"][0], runs[1][name][0]
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-6)
    assert two["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-4)
    for metric in ("train/entropy", "train/train_rollout_logprob_abs_diff"):
        assert two[metric] == pytest.approx(one[metric], abs=1e-5)


@pytest.mark.parametrize("name", TRIED)
def test_export_is_the_checkpoint_bit_for_bit(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    stored, saved = (load_file(runs[0] / folder / "model.safetensors") for folder in (name, f"{name}-two-before"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in stored)


@pytest.mark.parametrize("name", TRIED)
def test_trained_weights_agree(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    # Adam turns rounding of gradients near zero into steps of up to the learning rate; most weights agree closely.
    folders = (name, f"{name}-one-after", f"{name}-two-after")
    stored, one, two = (load_file(runs[0] / folder / "model.safetensors") for folder in folders)
    moved = torch.cat([(one[key] - stored[key]).flatten() for key in stored])
    apart = torch.cat([(one[key] - two[key]).flatten() for key in stored])
    assert moved.abs().max() > 5e-4
    assert apart.norm() < 1e-2 * moved.norm()
    biases = [key for key in stored if key.endswith("bias") and "visual" not in key]
    assert all((one[key] - stored[key]).abs().max() > 1e-5 for key in biases)
