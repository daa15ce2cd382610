"""Which waiting requests a prefill takes, with a scheduler reduced to its queue."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from components.sglang.samples import prefill_once

LONG, OTHER = list(range(20, 40)), list(range(60, 80))


class Request:
    """What the choice looks at, and what it asks: how much of the prompt is known."""

    def __init__(self, ids: list[int], **differing: Any) -> None:
        self.origin_input_ids, self.output_ids, self.prefix_len = array("q", ids), list[int](), 0
        self.return_logprob, self.logprob_start_len = True, -1
        self.extra_key = self.cache_salt = self.positional_embed_overrides = None
        vars(self).update(differing)

    def init_next_round_input(self, tree: Any, cow_mamba: bool) -> None:
        assert not cow_mamba
        self.prefix_len = len(self.origin_input_ids) - 1 if tuple(self.origin_input_ids) in tree.known else 0


class Scheduler:
    """Prefills up to ``room`` requests a batch, and remembers their prompts."""

    def __init__(self, *waiting: Any, room: int = 99, disable: bool = False) -> None:
        self.waiting_queue, self.room = list(waiting), room
        self.tree_cache = SimpleNamespace(disable=disable, known=set[tuple[int, ...]]())

    def take(self) -> list[Any]:
        taken, self.waiting_queue = self.waiting_queue[: self.room], self.waiting_queue[self.room :]
        self.tree_cache.known |= {tuple(each.origin_input_ids) for each in taken}
        return taken


class _Forgetful(set[tuple[int, ...]]):
    def __contains__(self, _: object) -> bool:
        return False


def batches(scheduler: Scheduler, count: int) -> list[list[Any]]:
    return [prefill_once(Scheduler.take, scheduler) for _ in range(count)]


def test_samples_wait_for_the_first_of_their_prompt_and_keep_their_places() -> None:
    a, b = [Request(LONG) for _ in range(3)], [Request(OTHER) for _ in range(2)]
    assert batches(Scheduler(*a, *b), 2) == [[a[0], b[0]], [a[1], a[2], b[1]]]
    assert batches(Scheduler(a[0], *b, room=1), 3) == [[a[0]], [b[0]], [b[1]]]


def test_none_waits_for_a_prompt_that_is_known_already() -> None:
    a = [Request(LONG) for _ in range(3)]
    scheduler = Scheduler(*a)
    scheduler.tree_cache.known.add(tuple(LONG))
    assert batches(scheduler, 1) == [a]


def test_none_waits_twice() -> None:
    a = [Request(LONG) for _ in range(3)]
    scheduler = Scheduler(*a)
    scheduler.tree_cache.known = _Forgetful()
    assert batches(scheduler, 2) == [[a[0]], [a[1], a[2]]]


@pytest.mark.parametrize(
    "differing",
    [{"extra_key": "other"}, {"cache_salt": "other"}, {"logprob_start_len": 0}, {"output_ids": [5]}],
    ids=lambda each: next(iter(each)),
)
def test_none_waits_for_what_the_cache_would_not_give_it(differing: dict[str, Any]) -> None:
    a = [Request(LONG), Request(LONG, **differing)]
    assert batches(Scheduler(*a), 1) == [a]


def test_nothing_waits_without_a_cache_and_a_failing_scheduler_loses_no_request() -> None:
    a = [Request(LONG) for _ in range(2)]
    assert batches(Scheduler(*a, disable=True), 1) == [a]

    def fails(_: Any) -> None:
        raise RuntimeError

    scheduler = Scheduler(*a)
    with pytest.raises(RuntimeError):
        prefill_once(fails, scheduler)
    assert scheduler.waiting_queue == a
