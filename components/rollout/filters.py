"""Filters of scored groups: what is not worth training on."""

from __future__ import annotations

from collections.abc import Sequence

from components.rollout.tally import rollout_rewards
from slime_launch.types import Sample


class EqualRewards:
    """Drops groups whose rollouts all got the same reward, so that they teach nothing (DAPO's dynamic sampling, Yu et
    al. 2025, https://arxiv.org/abs/2503.14476). Reason: ``zero_std_<reward>``.

    tolerance: rewards that differ by no more count as equal.
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance

    def __call__(self, group: Sequence[Sample]) -> str | None:
        """See ``slime_launch.interfaces.Filter``."""
        rewards = rollout_rewards(group)
        if max(rewards) - min(rewards) > self._tolerance:
            return None
        return f"zero_std_{round(rewards[0], 1)}"
