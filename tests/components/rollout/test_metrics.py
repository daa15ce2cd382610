"""What is reported of samples: rollouts count once, optional fields where they are, pass@k without bias."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rollout.filters import EqualRewards
from components.rollout.metrics import evaluated, summarise, without_raw
from components.rollout.tally import pass_at, pass_rates
from slime_launch.types import UNSAMPLED, Prompt, Sample, Status


def sample(group: int, index: int, reward: float, *, source: str = "default", tokens: int = 2, **fields: Any) -> Sample:
    made = Sample(
        group, index, Prompt([], "", source=source), "", [1], status=Status.COMPLETED, reward=reward, **fields
    )
    made.add_sampled([5] * tokens, [-1.0] * tokens, 3)
    return made


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_pass(numbers: tuple[int, int, int]) -> None:
    n, k, passed = numbers
    draws = list(combinations([True] * passed + [False] * (n - passed), k))
    assert pass_at(k, n, passed) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_rates_leave_out_groups_that_are_too_small() -> None:
    groups = [[1.0, 0.0, 0.99, 0.0], [1.0, 0.0]]
    assert pass_rates(groups, [1, 2, 3, 5]) == pytest.approx({1: (0.25 + 0.5) / 2, 2: (0.5 + 1.0) / 2, 3: 0.75})


def test_parts_of_a_rollout_count_once() -> None:
    """A long conversation weighs no more than a short one, in rewards, parts and raw rewards alike."""
    talk = [sample(0, 0, 1.0, part=part, raw_reward=10.0, reward_parts={"a": 1.0}) for part in range(9)]
    told = summarise([*talk, sample(0, 1, 0.0, raw_reward=0.0, reward_parts={"a": 0.0})], 3)
    assert told["rollout/reward"] == told["rollout/reward/a"] == 0.5 and told["rollout/raw_reward"] == 5.0
    assert told["rollout/zero_std_ratio"] == 0
    assert EqualRewards()(talk) == "zero_std_1.0" and EqualRewards()([*talk, sample(0, 1, 0.0)]) is None
    assert EqualRewards(tolerance=0.2)([sample(0, 0, 0.1), sample(0, 1, 0.2)]) == "zero_std_0.1"


@pytest.mark.parametrize("first_has_it", [True, False])
def test_raw_rewards_are_decided_sample_by_sample(first_has_it: bool) -> None:
    """Whichever sample comes first, each source keeps its own, and who has none is named."""
    with_raw = [sample(0, index, 0.5, source="swe", raw_reward=7.0) for index in range(2)]
    without = [
        sample(1, index, float(index), source="math", reward_parts={"exact": float(index)}) for index in range(2)
    ]
    batch = [*with_raw, *without] if first_has_it else [*without, *with_raw]
    told = summarise(batch, 3)
    assert told["rollout/raw_reward"] == (7.0 + 7.0 + 0.0 + 1.0) / 4
    assert told["rollout/source/swe/raw_reward"] == 7.0 and told["rollout/source/math/raw_reward"] == 0.5
    assert told["rollout/source/math/no_raw_reward"] == 2 and told["rollout/source/swe/no_raw_reward"] == 0
    assert told["rollout/reward/exact"] == 0.5 and told["rollout/reward"] == 0.5
    assert told["rollout/source/swe/samples"] == 2 and told["rollout/zero_std/count_0.5"] == 1
    assert without_raw(batch) == {"math": 2}
    assert without_raw(without) == {}  # nobody has one, so nobody lacks it


def test_evaluation_reports_what_is_to_be_reported() -> None:
    """A z-score within the group says nothing about a set; a sample without the named part counts by its raw reward."""
    shown = [sample(0, 0, -1.0, raw_reward=0.0), sample(0, 1, 1.0, raw_reward=1.0, reward_parts={"a": 0.25})]
    assert evaluated("set", shown, None, [1]) == {"eval/set": 0.5, "eval/set/pass@1": 0.5}
    assert evaluated("set", shown, "a", []) == {"eval/set": 0.125}


def test_ages_are_of_sampled_tokens() -> None:
    old = sample(0, 0, 1.0)
    old.add_given([6, 6, 6])
    old.add_sampled([7, 7], [-1.0, -1.0], 5)
    assert old.weight_versions == [3, 3, UNSAMPLED, UNSAMPLED, UNSAMPLED, 5, 5]
    empty = sample(1, 0, 0.0, tokens=0)
    told = summarise([old, empty], 5)
    assert told["rollout/off_policy_ratio"] == 0.5 and told["rollout/weight_lag/max"] == 2
    assert told["rollout/weight_version"] == 3
    assert summarise([empty], 5)["rollout/weight_version"] == 5  # nothing was sampled: nothing is old


def test_equal_rewards_are_equal_however_many_samples_a_rollout_has() -> None:
    """0.1 + 0.1 + 0.1 is not 3 * 0.1."""
    samples = [sample(0, 0, 0.1), sample(0, 0, 0.1), sample(0, 0, 0.1), sample(0, 1, 0.1)]
    assert EqualRewards()(samples) == "zero_std_0.1"
    assert summarise(samples, 3)["rollout/zero_std_ratio"] == 1.0
