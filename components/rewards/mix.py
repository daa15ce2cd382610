"""The weighted sum of named reward parts."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.interfaces import Reward
from slime_launch.targets import instantiate
from slime_launch.types import Sample


class Mix:
    """Scores each sample by every part and adds them up.

    parts: name -> ``{_target_: ..., weight: ..., **arguments}``; ``weight`` is the mixer's, the rest is the part's.
    Raises ComponentError when there is no part, a weight is not above zero, or two parts are the same.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        if not parts:
            raise ComponentError("reward.parts: empty; name at least one part")
        self._weights = {name: _weight(name, node) for name, node in parts.items()}
        nodes = {name: {k: v for k, v in node.items() if k != "weight"} for name, node in parts.items()}
        _refuse_duplicates(nodes)
        self._parts = {name: _build(name, node) for name, node in nodes.items()}

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One weighted sum a sample; also writes ``reward_parts`` (unweighted), ``raw_reward`` and ``reward``.

        Raises ComponentError naming the part and the sample when a part fails: never a silent zero.
        """
        columns = await asyncio.gather(*(self._column(name, samples) for name in self._parts))
        for sample, scores in zip(samples, zip(*columns, strict=True), strict=True):
            sample.reward_parts = dict(zip(self._parts, scores, strict=True))
            sample.raw_reward = sum(self._weights[name] * score for name, score in sample.reward_parts.items())
            sample.reward = sample.raw_reward
        return [sample.reward for sample in samples]

    async def _column(self, name: str, samples: Sequence[Sample]) -> list[float]:
        part = self._parts[name]
        try:
            scores = await part.score(samples)
        except Exception as error:
            raise await _blame(name, part, samples, error) from error
        if len(scores) != len(samples):
            raise ComponentError(f"reward.parts.{name}: gave {len(scores)} scores for {len(samples)} samples")
        for sample, score in zip(samples, scores, strict=True):
            if not math.isfinite(score):
                raise ComponentError(f"reward.parts.{name}: score {score} for {_describe(sample)}")
        return list(scores)


def _weight(name: str, node: Mapping[str, Any]) -> float:
    weight = node.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ComponentError(
            f"reward.parts.{name}.weight={weight}: must be a number above zero; drop the part to turn it off"
        )
    return float(weight)


def _refuse_duplicates(nodes: Mapping[str, Mapping[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for name, node in nodes.items():
        key = json.dumps(node, sort_keys=True, default=str)
        if key in seen:
            raise ComponentError(
                f"reward.parts.{name}: the same as reward.parts.{seen[key]}; keep one and add up the weights"
            )
        seen[key] = name


def _build(name: str, node: Mapping[str, Any]) -> Reward:
    try:
        part = instantiate(node)
    except (ComponentError, TypeError, ValueError) as error:
        raise ComponentError(f"reward.parts.{name}: {error}") from error
    if not isinstance(part, Reward):
        raise ComponentError(f"reward.parts.{name}._target_={node['_target_']}: has no async score(samples)")
    return part


async def _blame(name: str, part: Reward, samples: Sequence[Sample], error: Exception) -> ComponentError:
    """The error that names the first sample which fails alone, or the batch when none does."""
    for sample in samples:
        try:
            await part.score([sample])
        except Exception as alone:
            return ComponentError(f"reward.parts.{name}: {_describe(sample)}: {type(alone).__name__}: {alone}")
    return ComponentError(f"reward.parts.{name}: batch of {len(samples)} samples: {type(error).__name__}: {error}")


def _describe(sample: Sample) -> str:
    answer = f"{sample.response!r:.80}"
    return f"sample {sample.index} of group {sample.group} (source {sample.prompt.source}, response {answer})"
