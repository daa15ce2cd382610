"""A rollout counts once in its group, however many samples it is made of."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.algorithms.grpo import GRPO
from components.megatron.advantages import sample_advantages
from slime_launch.types import Prompt, Sample

ROLLOUTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=4)),
    min_size=1,
    max_size=12,
)
"""Of each rollout: its group, and the rewards of its parts (quarters, whose sums are exact in any order)."""


def samples_of(rollouts: list[tuple[int, list[float]]]) -> list[Sample]:
    prompt = Prompt([], "")
    return [
        Sample(group, index, prompt, "", [1], part=part, reward=reward)
        for index, (group, rewards) in enumerate(rollouts)
        for part, reward in enumerate(rewards)
    ]


def test_parts_do_not_outweigh_their_group() -> None:
    """Rewards 1 and 0, the first in three parts: +- 0.5, not +0.25 and -0.75."""
    samples = samples_of([(0, [1.0, 1.0, 1.0]), (0, [0.0])])
    assert sample_advantages(GRPO(normalize_std=False), samples).tolist() == [0.5, 0.5, 0.5, -0.5]


def test_a_rollout_has_the_mean_of_its_parts() -> None:
    samples = samples_of([(0, [1.0, 0.0]), (0, [0.25])])
    assert sample_advantages(GRPO(normalize_std=False), samples).tolist() == pytest.approx([0.125, 0.125, -0.125])


@given(ROLLOUTS, st.randoms(use_true_random=False))
def test_parts_share_what_their_rollout_gets_alone_in_any_order(
    rollouts: list[tuple[int, list[float]]], random: Random
) -> None:
    samples = samples_of(rollouts)
    random.shuffle(samples)
    means = torch.tensor([sum(rewards) / len(rewards) for _, rewards in rollouts])
    alone = GRPO().advantages(means, torch.tensor([group for group, _ in rollouts]))
    given_N = sample_advantages(GRPO(), samples)
    torch.testing.assert_close(given_N, alone[[sample.index for sample in samples]])
