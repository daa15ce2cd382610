"""An endless shuffled walk over a fixed set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Shuffled(Generic[T]):
    """Gives the items of ``items`` in an order fixed by ``seed``; each round has its own order."""

    def __init__(self, items: Sequence[T], seed: int) -> None:
        self._items = list(items)
        self._random = random.Random(seed)
        self._queue: list[T] = []

    def take(self, count: int) -> list[T]:
        """The next ``count`` items; goes round again when the set is used up."""
        while len(self._queue) < count:
            self._queue += self._random.sample(self._items, len(self._items))
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken
