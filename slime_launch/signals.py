"""SIGINT, SIGTERM and SIGHUP as a request that the loops of a run look at, so that no C extension is left half-way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_asked: list[int] = []


class Stopped(BaseException):
    """A signal asked the run to stop; ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def check() -> None:
    """Raise Stopped once a signal has come; every loop that waits calls this."""
    if _asked:
        raise Stopped(_asked[0])


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)


def install() -> dict[signal.Signals, Any]:
    """Put our handlers in (again, after a library has put in its own, as ``ray.init`` does); returns the old ones."""
    return {number: signal.signal(number, _note) for number in _NUMBERS}


@contextmanager
def listening() -> Iterator[None]:
    """Note signals for ``check`` while the block runs; the old handlers come back afterwards.

    A block inside another one keeps what the outer one has noted.
    """
    if signal.getsignal(signal.SIGINT) is not _note:
        _asked.clear()
    old = install()
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
