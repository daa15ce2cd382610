"""What goes to the supervisor and what comes back, as JSON between two processes of ours."""

from __future__ import annotations

from dataclasses import dataclass

OVERFLOW_ID = 65534
"""User and group inside the sandbox; of a launcher run by root also outside: nobody."""
CODE = "/code"
SCRATCH = "/tmp"
PYTHON_FLAGS = ("-S", "-s", "-P", "-B")


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    time_s: wall clock. memory_mb: all processes together, looked at every few hundredths of a second, and the address
    space of each. scratch_mb: files in /tmp. output_kb: standard output. processes: threads count too.
    """

    time_s: float
    memory_mb: int
    scratch_mb: int
    output_kb: int
    processes: int


@dataclass(frozen=True)
class Spec:
    """Runs of one program.

    python: the interpreter. shown: files and folders of this machine that the code may read, at the same paths.
    folders: those of them on its sys.path. files: name below /code -> text. script: which of them is started.
    inputs: standard input of each run; each has a sandbox of its own.
    """

    python: str
    shown: list[str]
    folders: list[str]
    files: dict[str, str]
    script: str
    inputs: list[str]
    limits: Limits

    def argv(self) -> list[str]:
        """The command inside."""
        return [self.python, *PYTHON_FLAGS, f"{CODE}/{self.script}"]

    def environment(self) -> dict[str, str]:
        """All that the code finds in its environment."""
        return {
            "PATH": "/usr/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(self.folders),
        }  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How one run ended: by itself (``exit``), or stopped for its ``time``, ``memory`` or ``output``.

    code: exit status, minus the signal's number where one ended it. stdout: at most output_kb. stderr: its end.
    """

    ended: str
    code: int
    stdout: str
    stderr: str
