"""The walk over training prompts: every round whole, an order fixed by the seed, exact resume from any position."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.order import InOrder, Shuffled
from slime_launch.errors import ComponentError

sizes, seeds, batches = st.integers(1, 40), st.integers(0, 2**31), st.lists(st.integers(0, 50), max_size=8)


def walk(size: int, seed: int) -> Shuffled[int]:
    return Shuffled(range(size), seed)


@given(sizes, seeds, batches, batches)
def test_resume_anywhere_gives_the_same_remaining_order(size, seed, before, after):
    straight, stopped, resumed = walk(size, seed), walk(size, seed), walk(size, seed)
    for count in before:
        straight.take(count)
        stopped.take(count)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    rest = [straight.take(count) for count in after]
    assert [resumed.take(count) for count in after] == rest
    assert resumed.state_dict() == straight.state_dict()


@given(sizes, seeds, batches)
def test_rounds_are_whole_however_they_are_cut(size, seed, counts):
    cut, whole = walk(size, seed), walk(size, seed)
    taken = [item for count in counts for item in cut.take(count)]
    assert taken == whole.take(sum(counts))
    for start in range(0, len(taken) - size + 1, size):
        assert sorted(taken[start : start + size]) == list(range(size))


@given(sizes, seeds, batches)
def test_a_position_is_also_reached_backward(size, seed, counts):
    source = walk(size, seed)
    start, first = source.state_dict(), [source.take(count) for count in counts]
    source.load_state_dict(start)
    assert [source.take(count) for count in counts] == first


def test_rounds_and_seeds_have_their_own_order():
    source = walk(100, 1)
    first, second = source.take(100), source.take(100)
    assert first != second and first != walk(100, 2).take(100) and first == walk(100, 1).take(100)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (walk(10, 4), "seed 4 .* is 3"),
        (walk(11, 3), "size 11 .* is 10"),
        (InOrder(range(10), 3), "order InOrder .* is Shuffled; set shuffle"),
    ],
)
def test_a_position_of_other_data_is_refused(other, says):
    with pytest.raises(ComponentError, match=says):
        walk(10, 3).load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [{"round": -1}, {"given": 11}, {"given": -1}])
def test_a_position_outside_of_the_round_is_refused(change):
    source = walk(10, 3)
    with pytest.raises(ComponentError, match="is none"):
        source.load_state_dict(source.state_dict() | change)


def test_nothing_to_walk_over_is_refused():
    with pytest.raises(ComponentError, match="not one training prompt"):
        Shuffled([], 0)
