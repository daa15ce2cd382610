"""Which engine, and which data-parallel rank of it, takes the next request: the least loaded.

``Balance`` is the arithmetic, ``Slots`` the same for coroutines.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one request: the engine's number and the data-parallel rank inside it."""

    engine: int
    rank: int


class Balance(Generic[W]):
    """Counts requests in flight by engine and rank, and who waits for a place.

    ranks: data-parallel ranks of each engine. limit: requests in flight of one engine. seed: of the draws among equals.

    A request goes to the rank with the fewest in flight, among engines below their limit. Where all engines have as
    many ranks and no request is bound to one, the counts of any two ranks differ by at most one while requests wait.
    """

    def __init__(self, ranks: Sequence[int], limit: int, seed: int) -> None:
        if not ranks or min(ranks) < 1 or limit < 1:
            raise ValueError(f"no place for any request: ranks {list(ranks)}, limit {limit}")
        self._counts = [[0] * count for count in ranks]
        self._limit = limit
        self._random = random.Random(seed)
        self._free: deque[W] = deque()
        self._bound: list[deque[tuple[W, Slot]]] = [deque() for _ in ranks]

    @property
    def counts(self) -> list[list[int]]:
        """Requests in flight, by engine and rank."""
        return [list(engine) for engine in self._counts]

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return sum(map(sum, self._counts))

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._free) + sum(map(len, self._bound))

    def take(self, waiter: W, bound: Slot | None = None) -> Slot | None:
        """A place at once, or None: then ``waiter`` stands in line until ``give_back`` names it.

        bound: where an earlier request of the same conversation went; no other place will do.
        """
        slot = self._place(bound)
        if slot is not None:
            self._counts[slot.engine][slot.rank] += 1
        elif bound is None:
            self._free.append(waiter)
        else:
            self._bound[bound.engine].append((waiter, bound))
        return slot

    def give_back(self, slot: Slot) -> tuple[W, Slot] | None:
        """End a request; the waiter who gets the place that this opens, and which one it gets.

        Conversations that have begun go first, so that they come to an end.
        """
        if self._counts[slot.engine][slot.rank] < 1:
            raise ValueError(f"{slot} has no request in flight")
        self._counts[slot.engine][slot.rank] -= 1
        granted: tuple[W, Slot] | None = None
        if self._bound[slot.engine]:
            granted = self._bound[slot.engine].popleft()
        elif self._free and (least := self._least_loaded()) is not None:
            granted = self._free.popleft(), least
        if granted is not None:
            self._counts[granted[1].engine][granted[1].rank] += 1
        return granted

    def withdraw(self, waiter: W) -> bool:
        """Leave the line; False when the waiter does not stand in it."""
        for line in self._bound:
            for entry in line:
                if entry[0] is waiter:
                    line.remove(entry)
                    return True
        try:
            self._free.remove(waiter)
        except ValueError:
            return False
        return True

    def elsewhere(self, slot: Slot) -> Slot:
        """The place with the fewest in flight at any other engine, whether it is open or not; ``slot`` without one."""
        others = [
            (count, engine, rank)
            for engine, counts in enumerate(self._counts)
            if engine != slot.engine
            for rank, count in enumerate(counts)
        ]
        return Slot(*min(others)[1:]) if others else slot

    def dismiss(self) -> list[W]:
        """Empty the line; who stood in it."""
        waiters = [*self._free, *(waiter for line in self._bound for waiter, _ in line)]
        self._free.clear()
        for line in self._bound:
            line.clear()
        return waiters

    def _place(self, bound: Slot | None) -> Slot | None:
        if bound is None:
            return self._least_loaded()
        return bound if self._open(bound.engine) else None

    def _open(self, engine: int) -> bool:
        return sum(self._counts[engine]) < self._limit

    def _least_loaded(self) -> Slot | None:
        places = [
            (count, Slot(engine, rank))
            for engine, counts in enumerate(self._counts)
            if self._open(engine)
            for rank, count in enumerate(counts)
        ]
        least = min((count for count, _ in places), default=0)
        return self._random.choice([slot for count, slot in places if count == least]) if places else None


class Slots:
    """``Balance`` for the coroutines of one event loop."""

    def __init__(self, ranks: Sequence[int], limit: int, seed: int) -> None:
        self.balance: Balance[asyncio.Future[Slot]] = Balance(ranks, limit, seed)

    @asynccontextmanager
    async def held(self, bound: Slot | None = None) -> AsyncIterator[Slot]:
        """A place for one request, waited for if need be, and given back however the request ends."""
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        slot = self.balance.take(waiter, bound)
        if slot is None:
            slot = await self._wait(waiter)
        try:
            yield slot
        finally:
            self._give_back(slot)

    def turn_away(self, error: Exception) -> None:
        """Raise ``error`` in everyone who waits."""
        for waiter in self.balance.dismiss():
            if not waiter.done():
                waiter.set_exception(error)

    async def _wait(self, waiter: asyncio.Future[Slot]) -> Slot:
        try:
            return await waiter
        except asyncio.CancelledError:
            # cancelled while waiting, or after the place was granted or refused and before this ran on
            granted = not (self.balance.withdraw(waiter) or waiter.cancelled() or waiter.exception())
            if granted:
                self._give_back(waiter.result())
            raise

    def _give_back(self, slot: Slot) -> None:
        granted = self.balance.give_back(slot)
        while granted is not None:
            waiter, place = granted
            if not waiter.done():
                waiter.set_result(place)
                return
            granted = self.balance.give_back(place)  # it was cancelled and has not run since
