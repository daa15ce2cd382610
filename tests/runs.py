"""Starts real runs in the background and watches what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.slime_launch.commands import SLIME_LAUNCH

MARK = "SLIME_LAUNCH_TEST_MARK"


class Run:
    """One ``slime-launch`` process; every process below it carries a mark in its environment."""

    def __init__(self, *args: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.folder = cwd / "run"
        self.mark = uuid.uuid4().hex
        self._log = (cwd / "console.log").open("w+")
        self.process = subprocess.Popen(
            [SLIME_LAUNCH, *args, f"hydra.run.dir={self.folder}"],
            cwd=cwd, env={**os.environ, **(env or {}), MARK: self.mark}, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def console(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return self._log.read()

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait for a state of the run; fails at once when it ends first."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert self.process.poll() is None, self.console()
            assert time.monotonic() < deadline, self.console()
            time.sleep(0.2)

    def survivors(self) -> list[int]:
        """Process ids that carry the mark, the launcher's among them; zombies are not counted."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if needle in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def gone_within(self, seconds: float) -> bool:
        """Whether every process is gone in time."""
        deadline = time.monotonic() + seconds
        while self.survivors():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl so far."""
        return read_jsonl(self.folder / "metrics.jsonl")

    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return json.loads((self.folder / "summary.json").read_text())  # type: ignore[no-any-return]

    def end(self) -> None:
        """End it whatever its state."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON-lines file; none when it is not there yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that these processes listen on, read from /proc."""
    import psutil

    return {
        (connection.laddr.ip, connection.laddr.port)
        for pid in pids
        if psutil.pid_exists(pid)
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
