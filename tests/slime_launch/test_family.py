"""A checkpoint's own config.json chooses the model group, unless the command line does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_launch.cli import command
from slime_launch.model_files import families
from slime_launch.paths import COMPONENTS

QWEN = "+experiment=qwen3_grpo"


def tiny(family: str) -> Path:
    return COMPONENTS / "models" / family / "configs" / "tiny.json"


@pytest.mark.parametrize("family", sorted(set(families().values())))
def test_an_experiment_takes_a_checkpoint_of_any_family(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [QWEN, f"model.hf_config={tiny(family)}", "mode=plan", f"hydra.run.dir={tmp_path}"]
    assert command(lines) == 0, capsys.readouterr().err
    (trainer,) = (
        actor for actor in json.loads((tmp_path / "plan.json").read_text())["actors"] if actor["kind"] == "trainer"
    )
    assert trainer["args"]["family"] == family
    assert trainer["args"]["spec"]["_target_"] == f"components.models.{family}.spec.layer_spec"
    said = capsys.readouterr().err
    assert (f"model={family}: config.json is a" in said) == (family != "qwen3")


def test_auto_brings_the_towers_of_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [QWEN, "model=auto", f"model.hf_config={tiny('glm_omni')}", "--cfg", "job", "--package", "model"]
    assert command(lines) == 0
    assert "vision: encoders.vision." in capsys.readouterr().out


@pytest.mark.parametrize("choice", ["model=qwen3", "model.family=qwen3"])
def test_what_the_command_line_chooses_is_kept(choice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [QWEN, choice, f"model.hf_config={tiny('llama3')}", "mode=plan", f"hydra.run.dir={tmp_path}"]
    assert command(lines) == 2
    assert "model.family=qwen3: config.json is a LlamaForCausalLM" in capsys.readouterr().err


def test_a_sweep_over_other_keys_takes_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept = ["seed=1,2", f"hydra.sweep.dir={tmp_path}", "mode=plan"]
    assert command(["-m", QWEN, f"model.hf_config={tiny('llama3')}", *swept]) == 0, capsys.readouterr().err
    assert "model=llama3" in capsys.readouterr().err
