"""The mixer: sums, what it writes, what it refuses, and whom it blames."""

import asyncio

import pytest

from components.rewards.mix import Mix
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Reward
from tests.components.rewards.samples import sample

EXACT = {"_target_": "components.rewards.exact.Exact"}
FORMAT = {"_target_": "components.rewards.format.Format"}
GYM = {"_target_": "components.rewards.reasoning_gym.ReasoningGymScore"}


def test_weighted_sum_and_what_it_writes():
    mix = Mix({"exact": {**EXACT, "weight": 0.9}, "form": {**FORMAT, "weight": 0.1}})
    assert isinstance(mix, Reward)
    samples = [sample("[7]"), sample("[8]"), sample("7")]
    assert asyncio.run(mix.score(samples)) == pytest.approx([1.0, 0.1, 0.0])
    assert [one.reward_parts for one in samples][1] == {"exact": 0.0, "form": 1.0}
    assert [one.reward for one in samples] == pytest.approx([1.0, 0.1, 0.0])
    assert [one.raw_reward for one in samples] == [None] * 3


def test_no_samples():
    assert asyncio.run(Mix({"exact": {**EXACT, "weight": 1}}).score([])) == []


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "no rewards"),
        ({"exact": EXACT}, r"exact\.weight=None"),
        ({"exact": {**EXACT, "weight": 0}}, "above 0"),
        ({"exact": {**EXACT, "weight": -1.0}}, "above 0"),
        ({"exact": {**EXACT, "weight": True}}, "expected float"),
        ({"exact": {**EXACT, "weight": float("nan")}}, "above 0"),
        ({"one": {**EXACT, "weight": 1}, "two": {**EXACT, "weight": 2}}, "two=.*: the same as reward.parts.one"),
        ({"exact": {"_target_": "components.rewards.exact.Exakt", "weight": 1}}, "parts.exact: .*Exakt"),
        ({"exact": {"_target_": "os.system", "weight": 1}}, "parts.exact: .*os.system"),
        ({"exact": {**EXACT, "weight": 1, "patern": "x"}}, "parts.exact: .*patern"),
        ({"exact": {"weight": 1}}, "parts.exact: .*_target_"),
        (
            {"exact": {"_target_": "components.data.order.Shuffled", "weight": 1, "items": ["a"], "seed": 0}},
            "no async score",
        ),
    ],
)
def test_refuses(parts, says):
    with pytest.raises(ComponentError, match=says):
        Mix(parts)


def test_a_failing_part_is_named_with_its_sample_and_never_a_zero():
    mix = Mix({"exact": {**EXACT, "weight": 1}, "gym": {**GYM, "weight": 1}})
    good = {"task": "chain_sum", "entry": {"answer": "7"}}
    samples = [sample("[7]", metadata=good), sample("[7]", index=5)]
    with pytest.raises(ComponentError, match=r"reward\.parts\.gym: sample 5 of group 3"):
        asyncio.run(mix.score(samples))
    assert samples[0].reward_parts == {}


@pytest.mark.parametrize(
    ("scores", "says"), [([1.0], "1 scores for 2"), ([1.0, float("nan")], "score nan for sample 1")]
)
def test_a_part_that_answers_nonsense_is_named(monkeypatch, scores, says):
    async def nonsense(self, samples):
        return scores

    monkeypatch.setattr("components.rewards.exact.Exact.score", nonsense)
    with pytest.raises(ComponentError, match=rf"reward\.parts\.exact: .*{says}"):
        asyncio.run(Mix({"exact": {**EXACT, "weight": 1}}).score([sample("[7]"), sample("[7]", index=1)]))
