"""Which engine and rank takes a request: any order of requests, ends and cancellations."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rollout.balance import Balance, Slot, Slots

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7), st.integers(0, 99))


def spread(balance: Balance[Any]) -> int:
    """How far the ranks' counts lie apart."""
    counts = [count for engine in balance.counts for count in engine]
    return max(counts) - min(counts)


@given(SIZES, st.lists(st.integers(0, 999), max_size=200))
def test_ranks_differ_by_at_most_one_while_requests_wait(sizes: tuple[int, int, int, int], moves: list[int]) -> None:
    """A move of a third of the numbers ends a request, any other begins one."""
    engines, ranks, limit, seed = sizes
    balance: Balance[int] = Balance([ranks] * engines, limit, seed)
    running: list[Slot] = []
    asked = 0
    for move in moves:
        if move % 3 == 0 and running:
            granted = balance.give_back(running.pop(move % len(running)))
            running += [granted[1]] if granted else []
        else:
            slot = balance.take(asked)
            asked += 1
            running += [slot] if slot else []
        assert Counter(running) == {
            Slot(e, r): count for e, counts in enumerate(balance.counts) for r, count in enumerate(counts) if count
        }
        assert all(sum(counts) <= limit for counts in balance.counts)
        assert not balance.waiting or (spread(balance) <= 1 and balance.in_flight == engines * limit)
    while running:
        granted = balance.give_back(running.pop())
        running += [granted[1]] if granted else []
    assert (balance.in_flight, balance.waiting) == (0, 0)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99), st.data())
def test_a_bound_request_goes_where_it_belongs_and_no_place_stays_empty(
    ranks: list[int], limit: int, seed: int, data: st.DataObject
) -> None:
    balance: Balance[int] = Balance(ranks, limit, seed)
    running: list[Slot] = []
    bound: dict[int, Slot | None] = {}
    for number in range(data.draw(st.integers(0, 60))):
        if running and data.draw(st.booleans()):
            granted = balance.give_back(running.pop(data.draw(st.integers(0, len(running) - 1))))
            if granted:
                assert bound[granted[0]] in (None, granted[1])
                running.append(granted[1])
        else:
            engine = data.draw(st.integers(0, len(ranks) - 1))
            wanted = Slot(engine, data.draw(st.integers(0, ranks[engine] - 1))) if data.draw(st.booleans()) else None
            bound[number] = wanted
            slot = balance.take(number, wanted)
            assert slot is None or wanted in (None, slot)
            assert slot is not None or all(
                sum(counts) == limit for e, counts in enumerate(balance.counts) if wanted is None or e == wanted.engine
            )
            running += [slot] if slot else []
        assert all(sum(counts) <= limit for counts in balance.counts)


def test_ties_are_drawn_and_a_seed_repeats_the_draws() -> None:
    def draws(seed: int) -> list[Slot | None]:
        balance: Balance[int] = Balance([2, 2], 1, seed)
        taken = []
        for number in range(60):
            slot = balance.take(number)
            assert slot is not None
            taken.append(slot)
            balance.give_back(slot)
        return taken

    assert draws(1) == draws(1) != draws(2)
    assert len(set(draws(1))) == 4


@pytest.mark.parametrize(("ranks", "limit"), [([], 1), ([0], 1), ([1], 0)])
def test_nowhere_to_go_is_an_error(ranks: list[int], limit: int) -> None:
    with pytest.raises(ValueError, match="no place for any request"):
        Balance(ranks, limit, 0)


def test_giving_back_what_nobody_took_is_an_error() -> None:
    with pytest.raises(ValueError, match="no request in flight"):
        Balance([1], 1, 0).give_back(Slot(0, 0))


def test_a_waiter_that_is_turned_away_and_cancelled_at_once_is_cancelled() -> None:
    async def one(slots: Slots) -> None:
        async with slots.held():
            pass

    async def both() -> bool:
        slots = Slots([1], 1, 0)
        async with slots.held():
            waiting = asyncio.create_task(one(slots))
            await asyncio.sleep(0)
            slots.turn_away(OSError())
            waiting.cancel()
            await asyncio.wait([waiting])
        return waiting.cancelled()

    assert asyncio.run(both())


@given(st.integers(0, 9999))
def test_every_way_out_gives_the_place_back(seed: int) -> None:
    """Tasks that end, fail, are cancelled while they run, wait, or have just been let in."""
    draw = random.Random(seed)

    async def one(slots: Slots, bound: Slot | None) -> None:
        async with slots.held(bound):
            for _ in range(draw.randint(0, 3)):
                await asyncio.sleep(0)
            if draw.random() < 0.3:
                raise OSError

    async def all_of_them() -> Slots:
        slots = Slots([2, 2], 2, seed)
        tasks = [
            asyncio.create_task(one(slots, draw.choice([None, None, Slot(draw.randint(0, 1), 1)]))) for _ in range(25)
        ]
        while pending := [task for task in tasks if not task.done()]:
            if draw.random() < 0.4:
                for victim in draw.sample(pending, draw.randint(1, min(3, len(pending)))):
                    victim.cancel()
            if draw.random() < 0.02:
                slots.turn_away(OSError())
            await asyncio.sleep(0)
        for task in tasks:
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), OSError)
        return slots

    slots = asyncio.run(all_of_them())
    assert (slots.balance.in_flight, slots.balance.waiting) == (0, 0)


def test_elsewhere_is_the_emptiest_place_of_another_engine() -> None:
    balance: Balance[str] = Balance([1, 2, 1], 4, 0)
    for number, bound in enumerate([Slot(1, 0), Slot(2, 0), Slot(2, 0)]):
        balance.take(str(number), bound)
    assert balance.elsewhere(Slot(0, 0)) == Slot(1, 1) and balance.elsewhere(Slot(1, 1)) == Slot(0, 0)
    assert Balance[str]([2], 1, 0).elsewhere(Slot(0, 1)) == Slot(0, 1)
