"""The seed of each sample, and that the rollout sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from components.rollout.seeds import sampling_seed
from tests.components.rollout.http_engine import HttpEngine, make_worker, serving

PARTS = st.lists(st.integers() | st.text(max_size=8), max_size=5).map(tuple)


@given(PARTS, PARTS)
def test_a_seed_is_its_parts(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert 0 <= sampling_seed(*first) < 2**63
    assert (sampling_seed(*first) == sampling_seed(*second)) == (
        [(type(part), part) for part in first] == [(type(part), part) for part in second]
    )


def test_seeds_do_not_change_between_releases() -> None:
    assert sampling_seed(0, "train", 1, 2, 3) == 3545768424974411557


def asked(engine: HttpEngine) -> list[tuple[tuple[int, ...], int]]:
    """Prompt and seed of every request since the last time, whatever order they came in."""
    found = sorted((tuple(body["input_ids"]), body["sampling_params"]["sampling_seed"]) for body, _ in engine.exchanges)
    engine.exchanges.clear()
    return found


def test_every_rollout_has_a_seed_that_its_place_alone_decides(checkpoint: Path) -> None:
    rounds = []
    with serving(HttpEngine()) as engine:
        for seed, concurrency, steps in ((1, 64, (1, 2)), (1, 5, (1,)), (2, 64, (1,))):
            made = make_worker(checkpoint, engine.url, seed=seed, max_concurrency=concurrency)
            for step in steps:
                samples, _ = made.generate(step)
                groups = range(3 * step - 3, 3 * step)
                assert [(one.group, one.index) for one in samples] == [(g, i) for g in groups for i in range(4)]
                rounds.append(asked(engine))
            made.stop()
    first, later, again, other = rounds
    assert len({seed for _, seed in first}) == 12
    assert first == again
    for different in (later, other):
        assert not {seed for _, seed in first} & {seed for _, seed in different}


def test_evaluation_uses_the_same_seeds_at_each_step(checkpoint: Path) -> None:
    rounds = []
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url)
        for step in (0, 1):
            made.evaluate(step)
            rounds.append(asked(engine))
        made.stop()
    assert rounds[0] == rounds[1]
    assert len({seed for _, seed in rounds[0]}) == 4
