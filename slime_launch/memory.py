"""Peak memory of a run: PSS (shared pages counted once) summed over every process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of these processes together, in MB; those gone by now count zero."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total_kb += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total_kb / 1024


class PeakMemory:
    """Samples in a thread; ``peak_mb`` is the largest sum seen."""

    def __init__(self, pids: Callable[[], list[int]], every_s: float = 5.0) -> None:
        self.peak_mb = 0.0
        self._pids = pids
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak_mb = max(self.peak_mb, pss_mb(self._pids()))
