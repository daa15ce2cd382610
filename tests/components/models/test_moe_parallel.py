"""Experts over two real ranks: tensor, pipeline and data parallelism give one rank's checkpoint and one rank's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.components.megatron.helpers import trainer_settings, write_random
from tests.components.megatron.worker import run, run_world

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"vocab_size": 113, "num_hidden_layers": 2, "mlp_only_layers": [1]},
    "glm4_moe": {"vocab_size": 113, "num_hidden_layers": 4, "first_k_dense_replace": 2},
    "glm4v_moe": {},
}
LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {}}
CASES = [("glm4_moe", layout) for layout in LAYOUTS] + [("qwen3_moe", "tp2"), ("glm4v_moe", "tp2")]
STEPS = 2
GAP = "train/train_rollout_logprob_abs_diff"
"""The engine's logprobs are zero here, so this is the mean |logprob| of the trainer, and ``/max`` the largest."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train metrics by job, checkpoints beside them: each case on two ranks, each family alone."""
    root = tmp_path_factory.mktemp("parallel")
    for family, shape in SHAPES.items():
        write_random(root / family, family, **shape)

    def job(family: str, layout: str, **settings: Any) -> dict[str, Any]:
        out = str(root / f"{family}-{layout}")
        return {"settings": trainer_settings(root / family, family, **settings), "steps": STEPS, "out": out}

    pairs = {f"{family}-{layout}": job(family, layout, world_size=2, **LAYOUTS[layout]) for family, layout in CASES}
    solo = {f"{family}-solo": job(family, "solo") for family in SHAPES}
    return root, run_world(root, pairs, 2) | run(solo, 0)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_logprobs_and_step_are_those_of_one_rank(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    _, answers = runs
    mine, alone = (answers[f"{family}-{name}"] for name in (layout, "solo"))
    for name in (GAP, f"{GAP}/max"):
        assert mine[0][name] == pytest.approx(alone[0][name], abs=1e-5)
    for here, there in zip(mine, alone, strict=True):
        assert here["train/loss"] == pytest.approx(there["train/loss"], abs=1e-6)
        assert here["train/grad_norm"] == pytest.approx(there["train/grad_norm"], rel=1e-4)
        assert here[GAP] == pytest.approx(there[GAP], abs=1e-4)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_export_is_the_checkpoint_bit_for_bit(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    root, _ = runs
    stored, out = (load_file(root / name / "model.safetensors") for name in (family, f"{family}-{layout}-before"))
    assert stored.keys() == out.keys()
    assert all(torch.equal(stored[name], out[name]) for name in stored)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_trained_weights_agree(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    # Adam turns rounding of gradients near zero into steps of up to the learning rate; most weights agree closely.
    root, _ = runs
    names = (family, f"{family}-solo-after", f"{family}-{layout}-after")
    stored, alone, mine = (load_file(root / name / "model.safetensors") for name in names)
    experts = [name for name in stored if ".mlp.experts." in name]
    for some in (experts, sorted(stored.keys() - set(experts))):
        moved = torch.cat([(alone[name] - stored[name]).flatten() for name in some])
        apart = torch.cat([(alone[name] - mine[name]).flatten() for name in some])
        assert moved.abs().max() > 1e-3
        assert apart.abs().max() < 5e-4 and apart.norm() < 1e-2 * moved.norm()
