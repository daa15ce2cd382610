"""Advantages of rollouts, whatever number of samples each is made of. N samples, M rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from slime_launch.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from slime_launch.interfaces import Algorithm


def sample_advantages(algorithm: Algorithm, samples: Sequence[Sample]) -> Tensor:
    """One advantage a sample [N]: its rollout's.

    Samples with group and index in common are parts of one rollout, which counts once in its group with the mean of
    their rewards: else the mean and spread of a group would lean towards its longest conversations.
    """
    rollouts = {rollout: number for number, rollout in enumerate(dict.fromkeys(map(_rollout, samples)))}
    number_N = torch.tensor([rollouts[_rollout(sample)] for sample in samples])
    rewards_N = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    sums_M = rewards_N.new_zeros(len(rollouts)).index_add(0, number_N, rewards_N)
    means_M = (sums_M / number_N.bincount()).float()
    groups_M = torch.tensor([group for group, _ in rollouts])
    return algorithm.advantages(means_M, groups_M)[number_N]


def _rollout(sample: Sample) -> tuple[int, int]:
    return sample.group, sample.index
