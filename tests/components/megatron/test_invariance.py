"""Real ranks over gloo: whatever the layout, one rank's checkpoint, loss, gradients and trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.components.megatron.helpers import OPTIM, trainer_settings, write_random
from tests.components.megatron.worker import run, run_world

MODELS: dict[str, dict[str, Any]] = {
    "llama3": {
        "num_hidden_layers": 4, "vocab_size": 113, "head_dim": 24, "intermediate_size": 96, "num_key_value_heads": 2,
        "attention_bias": True, "mlp_bias": True,
    },
    "glm_omni": {"num_hidden_layers": 4, "vocab_size": 113, "tie_word_embeddings": True},
    "qwen3_moe": {},
    "glm4_moe": {"vocab_size": 113},
    "glm4v_moe": {},
    "qwen3": {"num_hidden_layers": 4},
}  # fmt: skip
"""A gated MLP with biases, a model with images and tied embeddings, both with a vocabulary to be padded; experts; a
user's own model."""
OWN_SPEC = {"qwen3": {"spec": {"_target_": "tests.components.megatron.specs.plain_provider"}}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2, "world_size": 2},
    "pp2": {"pp": 2, "world_size": 2},
    "dp2": {"world_size": 2},
    "pp2vpp2": {"pp": 2, "vpp": 2, "world_size": 2},
    "cp2": {"cp": 2, "world_size": 2},
    "tp2sp": {"tp": 2, "sp": True, "world_size": 2},
    "tp2pp2": {"tp": 2, "pp": 2, "world_size": 4},
    "pp2cp2": {"pp": 2, "cp": 2, "world_size": 4},
    "tp2cp2": {"tp": 2, "cp": 2, "world_size": 4},
    "dp2cp2": {"cp": 2, "world_size": 4},
    "pp2vpp2cp2": {"pp": 2, "vpp": 2, "cp": 2, "world_size": 4},
    "cp4": {"cp": 4, "world_size": 4},
    "tp2cp2sp": {"tp": 2, "cp": 2, "sp": True, "world_size": 4},
    "dp2ep2": {"ep": 2, "world_size": 2},
    "cp2ep2": {"cp": 2, "ep": 2, "world_size": 2},
    "tp2dp2ep2sp": {"tp": 2, "ep": 2, "sp": True, "world_size": 4, "recompute": "selective"},
    "pp2dp2ep2": {"pp": 2, "ep": 2, "world_size": 4},
    "tp2pp2sp": {"tp": 2, "pp": 2, "sp": True, "world_size": 4, "recompute": "full"},
    "tp2pp2vpp2sp": {"tp": 2, "pp": 2, "vpp": 2, "sp": True, "world_size": 4},
}
STEPS = 3
# Adam turns the rounding of gradients near zero into steps of up to the learning rate.
SLOW = OPTIM | {"lr": 3e-4}
LONG = ("tp2cp2", "dp2cp2", "pp2vpp2cp2", "cp4", "tp2cp2sp", "tp2pp2sp", "tp2pp2vpp2sp")
EXPERTS = ("cp2", "tp2", "tp2sp", "dp2ep2", "cp2ep2", "tp2dp2ep2sp", "pp2dp2ep2")
QUICK = (("qwen3_moe", "tp2sp"), ("qwen3_moe", "dp2ep2"))
BIASED = ("glm4_moe", "glm4v_moe")
DENSE = ("llama3", "glm_omni")
LAYOUTS_OF = {
    **{model: [layout for layout in LAYOUTS if "ep2" not in layout] for model in DENSE},
    "qwen3_moe": EXPERTS,
    "glm4_moe": ("tp2sp", "dp2ep2", "tp2dp2ep2sp", "pp2dp2ep2"),
    "glm4v_moe": ("tp2sp", "dp2ep2", "tp2dp2ep2sp"),
    "qwen3": ("cp2",),
}
CASES = [
    pytest.param(model, layout, id=f"{model}-{layout}", marks=pytest.mark.full if full else ())
    for model, layouts in LAYOUTS_OF.items()
    for layout in layouts
    for full in (layout in LONG or (model not in DENSE and (model, layout) not in QUICK),)
]
Runs = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every case that was asked for, and its model alone: train metrics by job; checkpoints and gradients beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
        yield _run_all(request, tmp_path_factory)


def _run_all(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("layouts")
    items: list[Any] = [item for item in request.session.items if item.path == request.path]
    cases = sorted({(item.callspec.params["model"], item.callspec.params["layout"]) for item in items})
    models = {model for model, _ in cases}
    for model in models:
        write_random(root / model, model, **MODELS[model])

    def job(model: str, layout: str, **sizes: Any) -> dict[str, Any]:
        settings = trainer_settings(root / model, model, optim=SLOW, **sizes, **OWN_SPEC.get(model, {}))
        return {"settings": settings, "steps": STEPS, "out": str(root / f"{model}-{layout}"), "gradients": True}

    answers = run({f"{model}-alone": job(model, "alone") for model in models}, 0)
    for ranks in (2, 4):
        jobs = {
            f"{model}-{layout}": job(model, layout, **LAYOUTS[layout])
            for model, layout in cases
            if LAYOUTS[layout]["world_size"] == ranks
        }
        answers |= run_world(root, jobs, ranks) if jobs else {}
    return root, answers


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_exports_before_training_are_the_checkpoint_bit_for_bit(model: str, layout: str, runs: Runs) -> None:
    stored, saved = (load_file(runs[0] / name / "model.safetensors") for name in (model, f"{model}-{layout}-before"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[name], saved[name]) for name in stored)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_loss_and_gradients_are_those_of_one_rank(model: str, layout: str, runs: Runs) -> None:
    root, answers = runs
    for mine, alone in zip(answers[f"{model}-{layout}"], answers[f"{model}-alone"], strict=True):
        assert mine["train/loss"] == pytest.approx(alone["train/loss"], abs=1e-6)
        assert mine["train/grad_norm"] == pytest.approx(alone["train/grad_norm"], rel=1e-4)
        for name in ("train/entropy", "train/train_rollout_logprob_abs_diff"):
            assert mine[name] == pytest.approx(alone[name], abs=1e-4)
    mine, alone = (load_file(root / f"{model}-{name}-gradients.safetensors") for name in (layout, "alone"))
    assert mine.keys() == alone.keys() and len(alone) > 30
    # A selection bias is a buffer, and lets no token to some experts.
    still = [name for name in alone if "e_score_correction_bias" in name or "mlp.experts." in name]
    assert all(alone[name].norm() > 0 for name in alone if model not in BIASED or name not in still)
    apart = {name: float((mine[name] - alone[name]).norm() / alone[name].norm().clamp(1e-30)) for name in alone}
    assert max(apart.values()) <= 1e-5, apart


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_trained_weights_agree(model: str, layout: str, runs: Runs) -> None:
    names = (model, f"{model}-alone-after", f"{model}-{layout}-after")
    stored, alone, mine = (load_file(runs[0] / name / "model.safetensors") for name in names)
    moved = torch.cat([(alone[name] - stored[name]).flatten() for name in stored])
    apart = torch.cat([(alone[name] - mine[name]).flatten() for name in stored])
    assert moved.abs().max() > 8e-4
    assert apart.abs().max() <= 1e-4 and apart.norm() <= 1e-3 * moved.norm()
