"""What belongs to one event loop: a warm start scores in a loop of its own before the rollout does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value for each loop that asks, made by ``make`` inside it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """The running loop's."""
        loop = asyncio.get_running_loop()
        if loop not in self._values:
            self._values[loop] = self._make()
        return self._values[loop]

    def take(self) -> T | None:
        """The running loop's, which it then has no more; None when it never asked."""
        return self._values.pop(asyncio.get_running_loop(), None)
