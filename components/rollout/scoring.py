"""A whole group's scores, and whether it is trained on."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from components.rollout.groups import Group
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Filter, Reward
from slime_launch.types import Sample

TOO_FEW = "too_few"
"""The reason of a group of which too few rollouts are left once those without a reward are gone."""
_REASON = re.compile(r"[\w.+-]+")


@dataclass(slots=True, eq=False)
class Scored:
    """One group with its scores.

    samples: those that can be trained on. lost: how many cannot, by reason. reason: why the group is dropped, empty
    when it is kept.
    """

    group: Group
    samples: list[Sample]
    lost: Counter[str]
    reason: str = ""
    _before: list[dict[str, Any]] = field(default_factory=list)

    def undo(self) -> Group:
        """The group as it was before it was scored."""
        _restore(self.group.samples, self._before)
        return self.group


class Judge:
    """Scores whole groups and asks the filters, in their order.

    least: rollouts that a group must keep, 2 where the algorithm compares them.
    """

    def __init__(self, reward: Reward, filters: dict[str, Filter], least: int) -> None:
        self._reward, self._filters, self._least = reward, filters, least

    async def __call__(self, group: Group) -> Scored:
        """Score a group.

        Raises ComponentError for scores that are no finite numbers, and for filters that give no reason.
        """
        before = [_scores_of(sample) for sample in group.samples]
        try:
            await score(self._reward, group.samples)
        except asyncio.CancelledError:
            _restore(group.samples, before)
            raise
        left = [sample for sample in group.samples if not sample.dropped]
        lost = Counter(sample.dropped for sample in group.samples if sample.dropped)
        return Scored(group, left, lost, self._reason(left), before)

    def _reason(self, samples: Sequence[Sample]) -> str:
        if len({sample.index for sample in samples}) < self._least:
            return TOO_FEW
        for name, ask in self._filters.items():
            reason = ask(samples)
            if reason is not None:
                if not isinstance(reason, str) or not _REASON.fullmatch(reason):
                    raise ComponentError(
                        f"rollout.filters.{name}: gave {reason!r}; give None to keep a group, or one word that says why"
                    )
                return reason
        return ""


async def score(reward: Reward, samples: Sequence[Sample]) -> None:
    """Write every sample's reward, but for those that were dropped before.

    Raises ComponentError for scores that are no finite numbers or not one a sample.
    """
    ours = [sample for sample in samples if not sample.dropped]
    if not ours:
        return
    rewards = await reward.score(ours)
    if len(rewards) != len(ours):
        raise ComponentError(f"reward: {len(rewards)} scores for {len(ours)} samples")
    for sample, value in zip(ours, rewards, strict=True):
        if not sample.dropped and not math.isfinite(value):
            raise ComponentError(f"reward: {value} for sample {sample.index} of group {sample.group}")
        sample.reward = value


def _restore(samples: Sequence[Sample], before: Sequence[dict[str, Any]]) -> None:
    for sample, values in zip(samples, before, strict=True):
        for name, value in values.items():
            setattr(sample, name, value)


def _scores_of(sample: Sample) -> dict[str, Any]:
    return {
        "reward": sample.reward, "reward_parts": dict(sample.reward_parts), "raw_reward": sample.raw_reward,
        "dropped": sample.dropped,
    }  # fmt: skip
