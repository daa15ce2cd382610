"""The trainer on CUDA against itself on CPU: parity in float32, a step in bfloat16, split layouts where GPUs allow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.components.megatron.helpers import OPTIM, trainer_settings, write_random
from tests.components.megatron.worker import run_world

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="torch sees no CUDA device")]
FAMILIES = {"qwen3": {"num_hidden_layers": 4}, "glm_omni": {"num_hidden_layers": 4}}
Runs = dict[str, Any]


def run(root: Path, family: str, name: str, ranks: int = 1, **settings: Any) -> list[dict[str, float]]:
    """Two steps in processes of their own; metrics by step, checkpoints beside ``root/family-name``."""
    optim = OPTIM | settings.pop("optim", {})
    given = trainer_settings(root / family, family, world_size=ranks, optim=optim, timeout_s=300.0, **settings)
    out = root / f"{family}-{name}"
    jobs = {name: {"settings": given, "steps": 2, "out": str(out), "gradients": True}}
    out.mkdir()
    steps: list[dict[str, float]] = run_world(out, jobs, ranks)[name]
    return steps


@pytest.fixture(scope="module", params=FAMILIES)
def on_cpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    """(folder, family, metrics of two steps on CPU)."""
    root = tmp_path_factory.mktemp(request.param)
    write_random(root / request.param, request.param, **FAMILIES[request.param])
    return root, request.param, run(root, request.param, "cpu")


def test_float32_is_that_of_cpu(on_cpu: tuple[Path, str, Any]) -> None:
    root, family, expected = on_cpu
    for mine, theirs in zip(run(root, family, "cuda", device="cuda"), expected, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)
        assert mine["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-3)
        assert mine["train/entropy"] == pytest.approx(theirs["train/entropy"], abs=1e-4)
    stored, saved = (load_file(root / name / "model.safetensors") for name in (family, f"{family}-cuda-before"))
    assert stored.keys() == saved.keys() and all(torch.equal(stored[name], saved[name]) for name in stored)
    mine, theirs = (load_file(root / f"{family}-{name}-gradients.safetensors") for name in ("cuda", "cpu"))
    apart = {name: float((mine[name].cpu() - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
    assert max(apart.values()) <= 1e-3, apart


def test_a_bfloat16_step_with_float32_gradients(on_cpu: tuple[Path, str, Any]) -> None:
    root, family, expected = on_cpu
    steps = run(root, family, "bf16", device="cuda", precision="bfloat16")
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert steps[0]["train/loss"] == pytest.approx(expected[0]["train/loss"], abs=2e-2)
    assert steps[0]["train/grad_norm"] == pytest.approx(expected[0]["train/grad_norm"], rel=0.1)
    gradients = load_file(root / f"{family}-bf16-gradients.safetensors")
    assert {value.dtype for value in gradients.values()} == {torch.float32}
    before, after = (load_file(root / f"{family}-bf16-{when}" / "model.safetensors") for when in ("before", "after"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("model.visual.") for name in moved)


@pytest.mark.skipif(GPUS < 2, reason="two CUDA devices are needed")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tp2", {"tp": 2}),
        ("pp2vpp2", {"pp": 2, "vpp": 2}),
        ("dp2", {"optim": {"distributed": True}}),
    ],
)
def test_two_gpus_are_one(name: str, settings: dict[str, Any], on_cpu: tuple[Path, str, Any]) -> None:
    root, family, expected = on_cpu
    for mine, theirs in zip(run(root, family, name, 2, device="cuda", **settings), expected, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)
        assert mine["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-3)
