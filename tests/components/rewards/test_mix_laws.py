"""Laws of the mixer, for any scores."""

import asyncio
import math
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.rewards.combine import z_scores
from components.rewards.mix import Mix
from slime_launch.schema.reward import PartConfig
from tests.components.rewards.scripted import Batch, Single, Whole, node, scored

SCORES = st.floats(0, 1).map(lambda value: round(value, 6))
WEIGHTS = st.floats(0.01, 10)
ROWS = st.lists(st.tuples(st.integers(0, 4), SCORES, SCORES, SCORES), min_size=1, max_size=15)
NAMES = ("a", "b", "c")
LAW = settings(max_examples=60, deadline=None)


def make(rows, sources=None):
    return [
        scored(group, index, (sources or {}).get(index, "default"), **dict(zip(NAMES, scores, strict=True)))
        for index, (group, *scores) in enumerate(rows)
    ]


def parts(weights, **more):
    kinds = (Batch, Single, Batch)
    return {name: node(kind, name, weight, **more) for name, kind, weight in zip(NAMES, kinds, weights, strict=True)}


def rewards(mix, samples):
    return asyncio.run(mix.score(samples))


@LAW
@given(
    ROWS, st.tuples(WEIGHTS, WEIGHTS, WEIGHTS), st.randoms(use_true_random=False), st.sampled_from(["none", "group"])
)
def test_neither_the_samples_nor_the_parts_order_matters(rows, weights, shuffler: random.Random, normalise):
    nodes = parts(weights, normalise=normalise)
    samples = make(rows)
    straight = rewards(Mix(nodes), samples)
    order = shuffler.sample(range(len(rows)), len(rows))
    other = make(rows)
    mixed = rewards(Mix(dict(shuffler.sample(list(nodes.items()), 3))), [other[row] for row in order])
    assert mixed == pytest.approx([straight[row] for row in order], rel=1e-9, abs=1e-9)


@LAW
@given(ROWS, st.tuples(WEIGHTS, WEIGHTS, WEIGHTS), WEIGHTS)
def test_a_sum_is_linear_in_weights(rows, weights, factor):
    once = rewards(Mix(parts(weights)), make(rows))
    assert once == pytest.approx([math.fsum(w * s for w, s in zip(weights, row[1:], strict=True)) for row in rows])
    assert rewards(Mix(parts([w * factor for w in weights])), make(rows)) == pytest.approx([factor * r for r in once])


@LAW
@given(ROWS, st.tuples(WEIGHTS, WEIGHTS, WEIGHTS))
def test_a_gate_of_zero_is_zero_and_a_gate_of_one_is_none(rows, weights):
    nodes = parts(weights)
    gated = nodes | {"c": nodes["c"] | {"gate": True}}
    without = rewards(Mix({name: nodes[name] for name in "ab"}), make(rows))
    found = rewards(Mix(gated), make(rows))
    for row, before, after in zip(rows, without, found, strict=True):
        assert after == pytest.approx(before * row[3] ** weights[2], abs=1e-12)
        assert after == 0 if row[3] == 0 else True
    assert rewards(Mix(gated), make([(g, a, b, 1.0) for g, a, b, _ in rows])) == pytest.approx(without)
    assert rewards(Mix(gated), make([(g, a, b, 0.0) for g, a, b, _ in rows])) == [0.0] * len(rows)


@LAW
@given(ROWS, st.tuples(WEIGHTS, WEIGHTS, WEIGHTS))
def test_products_and_minima_are_bounded_by_each_score(rows, weights):
    for row, product, least in zip(
        rows, rewards(Mix(parts(weights), "product"), make(rows)), rewards(Mix(parts([1, 1, 1]), "min"), make(rows)),
        strict=True,
    ):  # fmt: skip
        assert all(0 <= product <= score**weight for score, weight in zip(row[1:], weights, strict=True))
        assert least == min(row[1:]) and (product == 0) == (
            min(s**w for s, w in zip(row[1:], weights, strict=True)) == 0
        )


@LAW
@given(ROWS, st.data())
def test_routes_cut_the_samples_up(rows, data):
    """A sample is scored by exactly the parts that name its source, and as if it were alone with them."""
    names = st.sampled_from(["x", "y", "z"])
    sources = {index: data.draw(names) for index in range(len(rows))}
    served = {"a": ["x"], "b": ["x", "y"], "c": None}
    nodes = parts((1.0, 2.0, 3.0))
    routed = {name: part | {"sources": served[name]} for name, part in nodes.items()}
    samples = make(rows, sources)
    found = rewards(Mix(routed), samples)
    for source in "xyz":
        own = {name: nodes[name] for name in NAMES if served[name] is None or source in served[name]}
        picked = [index for index in sources if sources[index] == source]
        alone = make(rows)
        expected = rewards(Mix(own), [alone[index] for index in picked])
        assert [found[index] for index in picked] == pytest.approx(expected)
        assert all(list(samples[index].reward_parts) == list(own) for index in picked)


KNOTS = st.dictionaries(st.integers(0, 50), st.floats(0.1, 5), min_size=1, max_size=5).map(
    lambda found: [list(pair) for pair in sorted(found.items())]
)


@LAW
@given(KNOTS, st.integers(0, 60))
def test_a_schedule_meets_its_pairs_and_is_straight_between_them(knots, step):
    mix = Mix({"a": node(Batch, "a", knots)})
    mix.begin_step(step)
    (weight,) = rewards(mix, [scored(a=1.0)])
    before = [pair for pair in knots if pair[0] <= step] or [knots[0]]
    after = [pair for pair in knots if pair[0] >= step] or [knots[-1]]
    (a, low), (b, high) = before[-1], after[0]
    assert weight == pytest.approx(low if a >= b else low + (high - low) * (step - a) / (b - a))
    assert PartConfig(weight=2.0).weight_at(step) == 2.0


@LAW
@given(st.lists(st.tuples(st.integers(0, 3), SCORES), min_size=1, max_size=20))
def test_z_scores_are_each_groups_own(pairs):
    samples = [scored(group, index) for index, (group, _) in enumerate(pairs)]
    found = z_scores(samples, [score for _, score in pairs])
    by_group = defaultdict(list)
    for (group, score), value in zip(pairs, found, strict=True):
        by_group[group].append((score, value))
    for group, own in by_group.items():
        values = [value for _, value in own]
        assert abs(math.fsum(values)) < 1e-6
        if len({score for score, _ in own}) == 1:
            assert all(abs(value) < 1e-6 for value in values)  # one sample, or all alike: no silent spread
        alone = [index for index, (other, _) in enumerate(pairs) if other == group]
        assert z_scores([samples[i] for i in alone], [pairs[i][1] for i in alone]) == values


def test_z_scores_by_hand_and_what_is_reported():
    """Groups of 2, 3 and 1; in the second a rollout of two samples counts once, with their mean."""
    samples = [
        scored(0, 0, a=0.0), scored(0, 1, a=1.0), scored(1, 0, a=1.0), scored(1, 1, a=2.0, part=0),
        scored(1, 1, a=4.0, part=1), scored(1, 2, a=5.0), scored(2, 0, a=9.0),
    ]  # fmt: skip
    mix = Mix({"a": node(Batch, "a", 2.0, normalise="group")})
    half = math.sqrt(0.5)
    assert rewards(mix, samples) == pytest.approx(
        [2 * -0.5 / half, 2 * 0.5 / half, -2.0, -1.0, 1.0, 2.0, 0.0], abs=1e-4
    )
    assert [sample.raw_reward for sample in samples] == [0.0, 2.0, 2.0, 4.0, 8.0, 10.0, 18.0]
    assert [sample.reward_parts["a"] for sample in samples] == [0.0, 1.0, 1.0, 2.0, 4.0, 5.0, 9.0]


def test_a_range_becomes_zero_to_one():
    mix = Mix({"a": node(Batch, "a", 3.0, normalise=[1, 5])})
    assert rewards(mix, [scored(a=value) for value in (-1.0, 1.0, 2.0, 5.0, 9.0)]) == [0.0, 0.0, 0.75, 3.0, 3.0]


def test_a_group_reward_sees_whole_groups():
    samples = [scored(0, 0, a=3.0), scored(1, 0, a=1.0), scored(0, 1, a=2.0), scored(1, 1, a=1.5), scored(0, 2, a=9.0)]
    assert rewards(Mix({"a": node(Whole)}), samples) == [1.0, 0.0, 0.0, 1.0, 2.0]
