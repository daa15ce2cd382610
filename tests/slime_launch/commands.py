"""Runs the installed command the way a user does."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from slime_launch.cli import command

SLIME_LAUNCH = str(Path(sys.executable).with_name("slime-launch"))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def slime_launch(*args: str, cwd: Path, timeout: float = 60.0, env: dict[str, str] | None = None) -> Ran:
    """Run ``slime-launch`` to its end in ``cwd``."""
    done = subprocess.run([SLIME_LAUNCH, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env)
    return Ran(done.returncode, done.stdout, done.stderr)


def check_refusal(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, mode=plan unless it says otherwise, is refused in the format of the contract, ``line`` within."""
    mode = [] if any(arg.startswith("mode=") for arg in args) else ["mode=plan"]
    assert command([*mode, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert all(each.startswith("error: ") and "; " in each for each in err.splitlines()), err
