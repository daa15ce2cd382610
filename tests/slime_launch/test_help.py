"""What prints and starts nothing: help, the composed config, Hydra's information, shell completion."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from slime_launch.checks.nodes import BUILT_MODES
from slime_launch.help import EXAMPLES, help_text
from slime_launch.modes import MODES
from slime_launch.options import options
from slime_launch.paths import CONF
from tests.slime_launch.commands import SLIME_LAUNCH, slime_launch

SCREEN = 50
"""Lines of a terminal that a person has."""


def test_help_shows_how_to_use_it_on_one_screen(tmp_path: Path) -> None:
    ran = slime_launch("--help", cwd=tmp_path, env={**os.environ, "COLUMNS": "100"})
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 100
    assert all(any(example in line for line in lines) for example, _ in EXAMPLES)
    for group, found in options().items():
        assert any(line.split()[:1] in ([group], [f"+{group}"]) for line in lines), group
        assert all(option.name in ran.out for option in found)
    assert "0 done; 1 failed; 2 refused" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_every_mode_is_told_in_a_line_of_its_own() -> None:
    assert set(BUILT_MODES) == set(MODES)
    text = help_text([CONF], MODES, 100)
    for name, do in MODES.items():
        assert (do.__doc__ or "").startswith(f"mode={name}: ")
        assert f"\n  {name} " in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_help_keeps_to_the_width(width: int) -> None:
    wide = [line for line in help_text([CONF], MODES, width).splitlines() if len(line) > width]
    assert [line for line in wide if not line.startswith(("slime-launch: ", "  slime-launch "))] == []


def test_the_examples_compose(tmp_path: Path) -> None:
    for example, _ in EXAMPLES:
        words = [word for word in example.split()[1:] if word not in ("-m", "...") and "seed" not in word]
        if "my_conf" not in words:
            ran = slime_launch(*words, "--cfg", "job", cwd=tmp_path)
            assert ran.code == 0, (example, ran.err)


def test_cfg_shows_the_values_of_a_command_line(tmp_path: Path) -> None:
    ran = slime_launch("+experiment=qwen3_grpo", "trainer.optim.lr=0.25", "--cfg", "job", cwd=tmp_path)
    shown = yaml.safe_load(ran.out)
    assert (shown["name"], shown["trainer"]["optim"]["lr"], "hydra" in shown) == ("qwen3_grpo", 0.25, False)
    ran = slime_launch("trainer.optim.lr=0.25", "--cfg", "job", "--package", "trainer.optim.lr", cwd=tmp_path)
    assert ran.out == "0.25\n"
    ran = slime_launch("--cfg", "hydra", cwd=tmp_path)
    assert list(yaml.safe_load(ran.out)) == ["hydra"]
    ran = slime_launch("--cfg", "job", "--resolve", "-p", "model.tiny.temperature", cwd=tmp_path)
    assert ran.out == "1.0\n"
    assert list(tmp_path.iterdir()) == []


def test_info_shows_where_values_come_from(tmp_path: Path) -> None:
    ran = slime_launch("+experiment=qwen3_grpo", "--info", "defaults-tree", cwd=tmp_path)
    assert ran.code == 0
    assert "rollout/topology: single" in ran.out


REFUSED = [
    (["--cfg", "job", "trainer.num_step=2"], "error: trainer.num_step=2: unknown key; did you mean trainer.num_steps?"),
    (["--cfg", "job", "+experiment=nope"], "error: experiment=nope: no such option; "),
    (["--cfg", "jobs"], "error: arguments=--cfg jobs: argument --cfg/-c: invalid choice"),
    (["--cfg", "job", "--package", "nope"], "error: --package=nope: no such key; "),
    (["--cfg", "job", "--resolve", "name=${nothing}"], "error: --cfg job=--resolve: Interpolation key 'nothing'"),
    (["--cfg", "job", "-m"], "error: arguments=--cfg --multirun: exclude each other; "),
    (["--resolve"], "error: --resolve=True: says how --cfg prints; "),
    (["--info", "nope"], "error: arguments=--info nope: "),
    (["--info", "defaults", "rollout/topology=ep"], "error: rollout/topology=ep: no such option; did you mean epd?"),
    (["--info", "config", "trainer.x=1"], "error: trainer.x=1: unknown key; "),
    (["--help", "--config-dir", "/nowhere"], "error: --config-dir=/nowhere: no such folder; "),
    (["-sc"], "error: --shell-completion=[]: Expecting one subcommand"),
    (["-sc", "install=nosuchshell"], "error: --shell-completion=['install=nosuchshell']: No completion plugin"),
]


@pytest.mark.parametrize(("args", "line"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_what_cannot_be_shown_is_refused(args: list[str], line: str, tmp_path: Path) -> None:
    ran = slime_launch(*args, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(line), ran.err
    assert len(ran.err.splitlines()) == 1
    assert "; " in ran.err


def completed(line: str, cwd: Path) -> list[str]:
    """What bash offers at the end of a command line, by the function that ``-sc install=bash`` gives it."""
    script = f"""
    eval "$({SLIME_LAUNCH} -sc install=bash)"
    COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; words=($COMP_LINE); COMP_CWORD=$((${{#words[@]}} - 1))
    hydra_bash_completion
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = {**os.environ, "PATH": f"{Path(SLIME_LAUNCH).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("+experiment=", {"+experiment=glm_omni_grpo", "+experiment=qwen3_grpo"}),
        ("+experiment=qwen3_g", {"+experiment=qwen3_grpo"}),
        ("rollout/topology=", {f"rollout/topology={file.stem}" for file in (CONF / "rollout/topology").iterdir()}),
        ("trainer.optim.l", {"trainer.optim.lr="}),
        ("seed=2 trainer.optim.b", {"trainer.optim.beta1=", "trainer.optim.beta2="}),
        ("cluster.gpu_mem", {"cluster.gpu_memory_gb="}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], tmp_path: Path) -> None:
    found = set(completed(f"slime-launch {typed}", tmp_path))
    assert offered <= found
    assert all(each.startswith(typed.split()[-1]) for each in found)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_options_of_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "night.yaml").write_text("# @package _global_\n")
    assert completed("slime-launch --config-dir mine +experiment=n", tmp_path) == ["+experiment=night"]
