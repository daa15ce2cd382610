"""Endless walks over a fixed set, shuffled or not."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from slime_launch.errors import ComponentError

T = TypeVar("T")


class Shuffled(Generic[T]):
    """Gives the items of ``items`` in an order fixed by ``seed``; each round over them has its own order.

    ``items`` are not copied. A round's order follows from the seed and the round's number alone, so that a position is
    two numbers.
    """

    def __init__(self, items: Sequence[T], seed: int) -> None:
        if not items:
            raise ComponentError("data: there is not one training prompt; widen the data source")
        self._items = items
        self._seed = seed
        self._round, self._given = 0, 0
        self._order = self._order_of(0)

    def take(self, count: int) -> list[T]:
        """The next ``count`` items; goes round again when the set is used up."""
        taken: list[T] = []
        while len(taken) < count:
            if self._given == len(self._order):
                self._enter(self._round + 1, 0)
            some = self._order[self._given : self._given + count - len(taken)]
            self._given += len(some)
            taken += [self._items[number] for number in some]
        return taken

    @property
    def round(self) -> int:
        """Number of the round that the next items come from, or that the last one ended."""
        return self._round

    def state_dict(self) -> dict[str, Any]:
        """Where the walk stands: ``round``, items ``given`` of it, and what the order follows from."""
        mine = {"size": len(self._items), "seed": self._seed, "order": type(self).__name__}
        return {"round": self._round, "given": self._given, **mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises ComponentError when it was made with another seed or number of items, or shuffled where this
        walk is not.
        """
        mine = self.state_dict()
        mends = {"seed": "give that seed", "size": "give the data that the run had", "order": "set shuffle as it was"}
        for name, mend in mends.items():
            if state.get(name) != mine[name]:
                raise ComponentError(
                    f"data: the saved position is of {name} {state.get(name)} and this run's is {mine[name]}; {mend}"
                )
        if not (state["round"] >= 0 and 0 <= state["given"] <= len(self._items)):
            raise ComponentError(f"data: the saved position {state} is none; resume from another checkpoint")
        self._enter(state["round"], state["given"])

    def _enter(self, number: int, given: int) -> None:
        self._round, self._given, self._order = number, given, self._order_of(number)

    def _order_of(self, number: int) -> Sequence[int]:
        size = len(self._items)
        return array("q", random.Random(f"{self._seed}/{number}").sample(range(size), size))


class InOrder(Shuffled[T]):
    """Gives the items as they stand, round after round."""

    def _order_of(self, number: int) -> Sequence[int]:
        return range(len(self._items))
