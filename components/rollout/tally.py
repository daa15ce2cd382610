"""Counting rollouts, however many samples each is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb, fsum

from slime_launch.types import Sample

Key = tuple[int, int]


def by_rollout(samples: Sequence[Sample]) -> dict[Key, list[Sample]]:
    """Samples by (group, index): the parts of each rollout."""
    found: dict[Key, list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.group, sample.index), []).append(sample)
    return found


def rollout_values(samples: Sequence[Sample], value: Callable[[Sample], float]) -> dict[Key, float]:
    """One value a rollout: the mean over its parts."""
    return {key: mean([value(part) for part in parts]) for key, parts in by_rollout(samples).items()}


def rollout_rewards(samples: Sequence[Sample]) -> list[float]:
    """One reward a rollout."""
    return list(rollout_values(samples, lambda sample: sample.reward).values())


def by_group(values: dict[Key, float]) -> dict[int, list[float]]:
    """Rollouts' values by group."""
    found: dict[int, list[float]] = {}
    for (group, _), value in values.items():
        found.setdefault(group, []).append(value)
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value; of equal values that value itself, which sum / n need not be."""
    return values[0] if min(values) == max(values) else fsum(values) / len(values)


def pass_at(k: int, n: int, passed: int) -> float:
    """The chance that one of ``k`` draws, out of ``n`` rollouts of which ``passed`` passed, is one that passed.

    1 - C(n - c, k) / C(n, k): unbiased, where 1 - (1 - c/n)^k is not (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374, section 2.1).
    """
    return 1.0 - comb(n - passed, k) / comb(n, k)


def pass_rates(groups: Sequence[Sequence[float]], ks: Sequence[int]) -> dict[int, float]:
    """Mean pass@k by k over groups of scores; a score of 1 passes.

    A group with fewer than k rollouts does not count for that k, and a k that no group counts for is left out.
    """
    rates = {}
    for k in ks:
        values = [
            pass_at(k, len(scores), sum(score == 1.0 for score in scores)) for scores in groups if len(scores) >= k
        ]
        if values:
            rates[k] = mean(values)
    return rates
