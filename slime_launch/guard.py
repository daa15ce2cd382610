"""A small guard process around each command: when the parent is gone, so is everything the command started.

The parent holds the write end of a pipe. The guard waits for the command to end or for the pipe to reach end of file
(the parent closed it, or died in whatever way), then ends every descendant, those that moved to sessions of their own
included: it is their subreaper, so none can slip away. What they leave of temporary files is in a folder of its own and
goes last. Run as a script it uses the standard library only and starts in 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_WAIT_S = 15.0


class Guarded:
    """A command under a guard. Create with ``start``."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int, grace_s: float) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._grace_s = grace_s

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        grace_s: float = 3.0,
        cwd: Path | None = None,
        scratch: Path | None = None,
    ) -> Guarded:
        """Run ``argv`` in a session of its own, its output appended to ``log`` (mode 0600).

        grace_s: seconds between SIGTERM and SIGKILL when it is ended. scratch: its TMPDIR, removed in the end; None
        makes one.
        """
        read_end, lifeline = os.pipe()
        temp = str(scratch or tempfile.mkdtemp(prefix="slime-launch-"))
        own = [str(Path(__file__).resolve()), str(read_end), str(grace_s), temp]
        guard = [sys.executable, "-I", "-S", *own, *argv]
        try:
            with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as out:
                process = subprocess.Popen(
                    guard,
                    env={**env, "TMPDIR": temp},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    pass_fds=[read_end],
                    start_new_session=True,
                    cwd=cwd,
                )
        finally:
            os.close(read_end)
        return cls(process, lifeline, grace_s)

    @property
    def pid(self) -> int:
        """The guard's process id; the command is below it."""
        return self._process.pid

    def poll(self) -> int | None:
        """The command's exit code (128 + n for signal n), None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End the command and all its descendants; returns when they are gone. Safe to call twice."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        try:
            self._process.wait(self._grace_s + _KILL_WAIT_S + 2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, read from /proc.

    Zombies are walked through, since a dying leader keeps its children for as long as its last thread lives, but not
    listed.
    """
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_bytes()
            except OSError:
                continue
            fields = stat.rpartition(b")")[2].split()
            if len(fields) < 2:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            if fields[0] == b"Z":
                zombies.add(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return [each for each in found if each not in zombies]


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _end_descendants(grace_s: float) -> None:
    me, started, empty = os.getpid(), time.monotonic(), 0
    _signal_all(descendants(me), signal.SIGTERM)
    while empty < 2 and time.monotonic() - started < grace_s + _KILL_WAIT_S:  # twice: a scan is no snapshot
        left = descendants(me)
        empty = 0 if left else empty + 1
        if time.monotonic() - started > grace_s:
            _signal_all(left, signal.SIGKILL)
        time.sleep(0.02)
        _reap()


def _die_with_guard() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _guard(lifeline: int, grace_s: float, scratch: str, argv: list[str]) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asked_r, asked_w = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(asked_w, b"."))
    child = subprocess.Popen(argv, preexec_fn=_die_with_guard)
    pidfd = os.pidfd_open(child.pid)
    select.select([lifeline, pidfd, asked_r], [], [])
    # reap the command itself here, before the general reaping could take its exit code
    code = child.poll()
    _end_descendants(grace_s)
    shutil.rmtree(scratch, ignore_errors=True)
    if code is None:
        code = child.returncode if child.returncode is not None else -signal.SIGTERM
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
