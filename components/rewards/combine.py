"""The arithmetic of a mix: pure functions of one sample's or one group's scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from slime_launch.errors import ComponentError
from slime_launch.types import Sample

STD_FLOOR = 1e-6
"""As in the group-normalised advantages of GRPO."""


def combine(mode: str, scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """One number from a sample's scores by part; ``scores`` is not empty.

    sum: of weight x score. product: of score ** weight, so that a zero makes all zero and a weight of zero turns a part
    off. min: the lowest score; weights play no part.
    Raises ComponentError for a score below zero in a product.
    """
    if mode == "sum":
        return sum(weights[name] * score for name, score in scores.items())
    if mode == "min":
        return min(scores.values())
    for name, score in scores.items():
        if score < 0:
            raise ComponentError(
                f"reward.parts.{name}: score {score} cannot be multiplied; give normalise=[lo, hi], or add it up"
            )
    return math.prod(math.pow(score, weights[name]) for name, score in scores.items())


def in_range(scores: Sequence[float], low: float, high: float) -> list[float]:
    """``low`` to ``high`` becomes 0 to 1, what lies outside is cut off."""
    return [min(1.0, max(0.0, (score - low) / (high - low))) for score in scores]


def z_scores(samples: Sequence[Sample], scores: Sequence[float]) -> list[float]:
    """Each score minus the mean of its group, by the group's sample standard deviation + 1e-6.

    Groups may differ in size, each is taken by itself. A rollout of several samples counts once, with their mean. A
    group of one rollout, or of equal scores, is all zeros.
    """
    rollouts: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample, score in zip(samples, scores, strict=True):
        rollouts[sample.group][sample.index].append(score)
    stats = {
        group: _mean_std([math.fsum(own) / len(own) for own in members.values()]) for group, members in rollouts.items()
    }
    centred = [
        (score - stats[sample.group][0], stats[sample.group][1]) for sample, score in zip(samples, scores, strict=True)
    ]
    return [difference / (std + STD_FLOOR) for difference, std in centred]


def last_parts(samples: Sequence[Sample]) -> dict[tuple[int, int], Sample]:
    """Each rollout's last sample by (group, index): a rollout of several samples is one member of its group."""
    last: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        key = (sample.group, sample.index)
        if key not in last or sample.part >= last[key].part:
            last[key] = sample
    return last


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance)
