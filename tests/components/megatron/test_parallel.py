"""Two real ranks over gloo: tensor, pipeline and data parallelism give one rank's checkpoint and one rank's step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.megatron.weights import Entry, check_owners
from components.models.layouts import Split, Vocab
from slime_launch.errors import ComponentError
from tests.components.megatron.helpers import ROOT, trainer_settings, write_random
from tests.components.megatron.worker import run

FAMILIES = {"qwen3": {"vocab_size": 113, "tie_word_embeddings": True}, "glm_omni": {"vocab_size": 113}}
LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {}}
STEPS = 2


def run_world(folder: Path, jobs: dict[str, Any], ranks: int) -> dict[str, Any]:
    file = folder / f"jobs-{ranks}.json"
    file.write_text(json.dumps(jobs))
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.components.megatron.worker", str(file)]
    world = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=env) for rank in range(ranks)]
    try:
        assert [process.wait(timeout=180) for process in world] == [0] * ranks
    finally:
        for process in world:
            process.kill()
    answers: dict[str, Any] = json.loads(file.with_suffix(".answers").read_text())
    return answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every family under every layout, and alone: train metrics by job; checkpoints beside them."""
    root = tmp_path_factory.mktemp("parallel")
    for family, shape in FAMILIES.items():
        write_random(root / family, family, **shape)

    def job(family: str, layout: str, **settings: Any) -> dict[str, Any]:
        out = str(root / f"{family}-{layout}")
        return {"settings": trainer_settings(root / family, family, **settings), "steps": STEPS, "out": out}

    pairs = {f"{family}-{name}": job(family, name, world_size=2, **sizes)
             for family in FAMILIES for name, sizes in LAYOUTS.items()}  # fmt: skip
    solo = {f"{family}-solo": job(family, "solo") for family in FAMILIES}
    return root, run_world(root, pairs, 2) | run(solo, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_step_is_that_of_one_rank(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    _, answers = runs
    for mine, alone in zip(answers[f"{family}-{layout}"], answers[f"{family}-solo"], strict=True):
        assert mine["train/loss"] == pytest.approx(alone["train/loss"], abs=1e-6)
        assert mine["train/grad_norm"] == pytest.approx(alone["train/grad_norm"], rel=1e-4)
        for name in ("train/entropy", "train/train_rollout_logprob_abs_diff"):
            assert mine[name] == pytest.approx(alone[name], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_is_the_checkpoint_bit_for_bit(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    root, _ = runs
    stored, saved = (load_file(root / name / "model.safetensors") for name in (family, f"{family}-{layout}-before"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[name], saved[name]) for name in stored)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_trained_weights_agree(family: str, layout: str, runs: tuple[Path, dict[str, Any]]) -> None:
    # Adam turns rounding of gradients near zero into steps of up to the learning rate; most weights agree closely.
    root, _ = runs
    names = (family, f"{family}-solo-after", f"{family}-{layout}-after")
    stored, alone, mine = (load_file(root / name / "model.safetensors") for name in names)
    moved = torch.cat([(alone[name] - stored[name]).flatten() for name in stored])
    apart = torch.cat([(alone[name] - mine[name]).flatten() for name in stored])
    assert moved.abs().max() > 1e-3
    assert apart.abs().max() < 5e-4 and apart.norm() < 1e-2 * moved.norm()


def entry(name: str, stage: int, tied: bool = False) -> Entry:
    return Entry(name, ("model.embed_tokens.weight",), Vocab(8), (8, 4), stage, stage, tied, False)


def test_a_name_of_two_stages_must_be_declared_tied() -> None:
    check_owners([entry("embedding.word_embeddings.weight", 0), entry("output_layer.weight", 1, tied=True)])
    with pytest.raises(ComponentError) as caught:
        check_owners([entry("embedding.word_embeddings.weight", 0), entry("output_layer.weight", 1)])
    for part in ("model.embed_tokens.weight", "stage 0", "stage 1", "embedding.word_embeddings", "output_layer"):
        assert part in str(caught.value)
    assert Split(0).sharded
