"""What the trainer tells of its arguments before it runs, of plans for machines that are not there too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from tests.components.megatron.helpers import trainer_settings, write_random

SIZES = {"tp": 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "sp": False}
SPECS = "tests.components.megatron.specs."


def found(folder: Path, family: str, **given: Any) -> Any:
    settings = trainer_settings(
        folder, family, transformer={}, device="cpu", precision="float32", recompute="none", **SIZES
    )
    return MegatronTrainer.preflight(settings | given)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("preflight")
    return {family: write_random(root / family, family) for family in ("qwen3", "qwen3_moe")}


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("qwen3", {"cp": 2}),
        ("qwen3_moe", {"pp": 2}),
        ("qwen3_moe", {"tp": 2, "sp": True, "ep": 2}),
        ("qwen3_moe", {"pp": 2, "tp": 2, "sp": True, "device": "cuda", "precision": "bfloat16"}),
    ],
)
def test_a_plan_that_is_right_says_what_is_built(family: str, given: dict[str, Any], folders: dict[str, Path]) -> None:
    findings = found(folders[family], family, **given)
    assert findings.problems == []
    assert "2 layers, hidden 128" in findings.lines[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"spec": {"_target_": SPECS + "nothing"}}, "returned None (a NoneType); it must return a ModuleSpec"),
        ({"spec": {"_target_": SPECS + "a_class"}}, "returned the class"),
        (
            {"spec": {"_target_": SPECS + "layers"}, "cp": 2},
            "core_attention ['the class DotProductAttention'] does not",
        ),
        ({"transformer": {"bf16": True}}, "bf16 (set trainer.precision)"),
        ({"tp": 2, "ep": 2}, "only if these share the sequence; set trainer.parallel.sp=true"),
    ],
)
def test_what_is_wrong_has_its_key(
    given: dict[str, Any], line: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    (problem,) = found(folders["qwen3"], "qwen3", **given).problems
    assert line in problem.reason and problem.key in ("model.spec", "model.transformer")


def test_names_that_do_not_fit_are_found_before_the_run(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3"] / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    (tmp_path / "config.json").write_text((folders["qwen3"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    (problem,) = found(tmp_path, "qwen3").problems
    assert problem.key == "model.hf_checkpoint"
    assert "missing ['model.norm.weight'], extra ['model.extra.weight']" in problem.reason


@pytest.mark.parametrize("key", ["freeze", "train_only"])
def test_a_pattern_that_finds_no_parameter_is_found_before_the_run(key: str, folders: dict[str, Path]) -> None:
    (problem,) = found(folders["qwen3"], "qwen3", **{key: [r"layers\.1\.mlp", "layers.7.", "^embedding"]}).problems
    assert (problem.key, problem.value) == (f"model.{key}", "layers.7.") and "no parameter" in problem.reason
