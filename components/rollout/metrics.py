"""What a rollout reports about its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from components.rollout.collect import Collected
from components.rollout.tally import by_group, mean, pass_rates, rollout_rewards, rollout_values
from slime_launch.types import UNSAMPLED, Metrics, Sample, Status


def raw_of(sample: Sample) -> float:
    """What to report in place of the reward, where the sample has it."""
    return sample.reward if sample.raw_reward is None else sample.raw_reward


def score_of(sample: Sample, part: str | None) -> float:
    """The score that evaluation reports: one reward part; where there is none, the reward as it is to be reported."""
    return raw_of(sample) if part is None else sample.reward_parts.get(part, raw_of(sample))


def summarise(samples: Sequence[Sample], version: int) -> Metrics:
    """``rollout/*`` of one batch, made while the engines served weights ``version``.

    The parts of one rollout count once in rewards. Optional fields count where a sample has them, decided sample by
    sample.
    """
    lengths = [len(sample.response_ids) for sample in samples]
    return {
        **_rewards("rollout", samples),
        **{f"rollout/reward/{name}": value for name, value in _parts(samples).items()},
        "rollout/response_len/mean": mean(lengths),
        "rollout/response_len/max": float(max(lengths)),
        "rollout/truncated_ratio": mean([sample.status is Status.TRUNCATED for sample in samples]),
        **_zero_std(samples),
        **_sources(samples),
        **_ages(samples, version),
    }


def control(collected: Collected) -> Metrics:
    """What over-sampling, filters and aborts did."""
    lost: dict[str, int] = defaultdict(int)
    for scored in collected.scored:
        for reason, count in scored.lost.items():
            lost[reason] += count
    return {
        "rollout/groups_begun": float(collected.drawn),
        "rollout/groups_surplus": float(collected.surplus),
        **{f"rollout/dynamic_filter/drop_{reason}": float(count) for reason, count in collected.drops.items()},
        **{f"rollout/dropped_samples/{reason}": float(count) for reason, count in lost.items()},
        "rollout/partial/cut": float(collected.cut),
        "rollout/partial/kept": float(collected.kept),
        "rollout/partial/kept_tokens": float(collected.kept_tokens),
        "rollout/partial/lost_tokens": float(collected.lost_tokens),
        "rollout/partial/anew": float(collected.anew),
        "rollout/images_sent": float(collected.images_sent),
        "rollout/tokens_per_s": collected.tokens / collected.generate_s,
        "perf/rollout_time": collected.generate_s,
        "perf/reward_time": collected.score_s,
    }


def passrates(collected: Collected, part: str | None, ks: Sequence[int]) -> Metrics:
    """``passrate/pass@k`` over every group that was scored, the filtered ones too: else easy and hard ones lack."""
    samples = [sample for scored in collected.scored for sample in scored.samples]
    return {f"passrate/pass@{k}": rate for k, rate in pass_rates(_scores(samples, part), ks).items()}


def evaluated(name: str, samples: Sequence[Sample], part: str | None, ks: Sequence[int]) -> Metrics:
    """``eval/<name>`` and ``eval/<name>/pass@k`` of at least one sample."""
    score = mean(list(rollout_values(samples, lambda sample: score_of(sample, part)).values()))
    rates = pass_rates(_scores(samples, part), ks)
    return {f"eval/{name}": score} | {f"eval/{name}/pass@{k}": rate for k, rate in rates.items()}


def without_raw(samples: Sequence[Sample]) -> dict[str, int]:
    """Samples without a raw reward by source, where others of the batch have one."""
    lacking: dict[str, int] = defaultdict(int)
    for sample in samples:
        if sample.raw_reward is None:
            lacking[sample.prompt.source] += 1
    return {} if sum(lacking.values()) == len(samples) else dict(lacking)


def _rewards(prefix: str, samples: Sequence[Sample]) -> Metrics:
    raw = rollout_values(samples, raw_of)
    return {f"{prefix}/reward": mean(rollout_rewards(samples)), f"{prefix}/raw_reward": mean(list(raw.values()))}


def _scores(samples: Sequence[Sample], part: str | None) -> list[list[float]]:
    """Rollouts' scores, group by group."""
    return list(by_group(rollout_values(samples, lambda sample: score_of(sample, part))).values())


def _parts(samples: Sequence[Sample]) -> Metrics:
    """Means by reward part; a part that only some samples have is averaged over those."""
    names = dict.fromkeys(name for sample in samples for name in sample.reward_parts)
    return {name: _part_mean(samples, name) for name in names}


def _part_mean(samples: Sequence[Sample], name: str) -> float:
    having = [sample for sample in samples if name in sample.reward_parts]
    return mean(list(rollout_values(having, lambda sample: sample.reward_parts[name]).values()))


def _zero_std(samples: Sequence[Sample]) -> Metrics:
    """Groups whose rewards are all equal, so that they teach nothing: their share, and their number by reward."""
    groups = by_group(rollout_values(samples, lambda sample: sample.reward)).values()
    equal = [rewards[0] for rewards in groups if len(set(rewards)) == 1]
    counts: Metrics = defaultdict(float)
    for reward in equal:
        counts[f"rollout/zero_std/count_{round(reward, 1)}"] += 1.0
    return {"rollout/zero_std_ratio": len(equal) / len(groups)} | counts


def _sources(samples: Sequence[Sample]) -> Metrics:
    """Every source's own rewards and lengths, and how many of its samples lack a raw reward that others have."""
    by_source: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_source[sample.prompt.source].append(sample)
    lacking = without_raw(samples)
    metrics: Metrics = {}
    for source, own in by_source.items():
        prefix = f"rollout/source/{source}"
        metrics |= _rewards(prefix, own) | {
            f"{prefix}/samples": float(len(own)),
            f"{prefix}/response_len": mean([len(sample.response_ids) for sample in own]),
            f"{prefix}/no_raw_reward": float(lacking.get(source, 0)),
        }
    return metrics


def _ages(samples: Sequence[Sample], version: int) -> Metrics:
    """How old the weights were that sampled the tokens: ``off_policy_ratio`` is the share of older ones."""
    made_by = [made for sample in samples for made in sample.weight_versions if made != UNSAMPLED]
    return {
        "rollout/weight_version": float(min(made_by, default=version)),
        "rollout/off_policy_ratio": mean([made < version for made in made_by] or [0.0]),
        "rollout/weight_lag/max": float(version - min(made_by, default=version)),
    }
