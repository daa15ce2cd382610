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


def test_a_raw_reward_is_what_somebody_says_it_is():
    """By the prompt, by what generated, else None; decided sample by sample, and an old scoring is forgotten."""
    mix = Mix({"exact": {**EXACT, "weight": 2.0}})
    samples = [sample("[7]", metadata={"raw_reward": 3}), sample("[7]"), sample("[8]")]
    samples[1].raw_reward = 0.25
    assert asyncio.run(mix.score(samples)) == [2.0, 2.0, 0.0]
    assert [one.raw_reward for one in samples] == [3.0, 0.25, None]
    asyncio.run(mix.score(samples))
    assert [one.raw_reward for one in samples] == [3.0, None, None]
    with pytest.raises(ComponentError, match=r"sample 0 of group 3 \(source digits.*raw_reward='1'"):
        asyncio.run(mix.score([sample("[7]", metadata={"raw_reward": "1"})]))


def test_sources_that_no_part_serves_are_all_named():
    mix = Mix({"exact": {**EXACT, "weight": 1, "sources": ["digits"]}})
    samples = [sample("[7]"), sample("[7]", source="swe"), sample("[7]", source="math")]
    with pytest.raises(ComponentError, match="no part scores samples of math, swe;"):
        asyncio.run(mix.score(samples))
    assert mix.unserved(["swe", "digits", "swe"]) == ["swe"]


def test_a_product_refuses_scores_below_zero():
    long = {"_target_": "components.rewards.length.Overlong", "max_tokens": 1}
    mix = Mix({"exact": {**EXACT, "weight": 1}, "long": {**long, "weight": 1}}, mode="product")
    with pytest.raises(ComponentError, match=r"parts\.long: score -1\.0 cannot be multiplied; give normalise"):
        asyncio.run(mix.score([sample("[7]")]))
    ranged = Mix({"exact": {**EXACT, "weight": 1}, "long": {**long, "weight": 1, "normalise": [-2, 0]}}, "product")
    assert asyncio.run(ranged.score([sample("[7]")])) == [0.5]
