"""What a rollout reports about its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from slime_launch.types import Metrics, Sample, Status


def score_of(sample: Sample, part: str | None) -> float:
    """The score that evaluation reports: one reward part, or the mixed reward."""
    return sample.reward if part is None else sample.reward_parts[part]


def summarise(samples: Sequence[Sample], seconds: float) -> Metrics:
    """``rollout/*`` of one batch that took ``seconds`` to generate."""
    lengths = [len(sample.response_ids) for sample in samples]
    raw = [sample.raw_reward if sample.raw_reward is not None else sample.reward for sample in samples]
    return {
        "rollout/reward": _mean([sample.reward for sample in samples]),
        **{f"rollout/reward/{name}": _mean(values) for name, values in _parts(samples).items()},
        "rollout/raw_reward": _mean(raw),
        "rollout/response_len/mean": _mean(lengths),
        "rollout/response_len/max": float(max(lengths)),
        "rollout/truncated_ratio": _mean([sample.status is Status.TRUNCATED for sample in samples]),
        "rollout/zero_std_ratio": _zero_std_ratio(samples),
        "rollout/tokens_per_s": sum(lengths) / seconds,
        "rollout/weight_version": float(min(sample.weight_version for sample in samples)),
    }


def _parts(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Values by part; a part that only some samples have is averaged over those."""
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.reward_parts.items():
            values[name].append(value)
    return values


def _zero_std_ratio(samples: Sequence[Sample]) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    groups: dict[int, set[float]] = defaultdict(set)
    for sample in samples:
        groups[sample.group].add(sample.reward)
    return _mean([len(rewards) == 1 for rewards in groups.values()])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
