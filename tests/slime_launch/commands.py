"""Runs the installed command the way a user does."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
