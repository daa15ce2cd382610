"""The mixer: one reward from named parts, each with its weight, its data sources and its way to fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from components.rewards.combine import combine, in_range, z_scores
from components.rewards.part import Part, build_reward, describe, together
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Closes, Connects, Stepped
from slime_launch.schema.reward import build_part, mix_problems, own_node
from slime_launch.types import Endpoint, Metrics, Sample

RAW_REWARD = "raw_reward"
"""Key of ``Prompt.metadata`` under which a data source gives the value to report."""


class Mix:
    """Scores each sample by the parts that serve its source and combines their scores.

    parts: name -> ``{_target_: ..., **arguments}`` with the mixer's own keys beside them: weight, sources, normalise,
        gate, on_error, deadline_s (``slime_launch.schema.reward.PartConfig``). A part is a Reward, a SingleReward or a
        GroupReward.
    mode: how the parts that are no gates are combined, see ``combine``; gates then multiply the result.
    concurrency: calls at once of each part that is asked for single samples or groups.
    Raises ComponentError with everything wrong with the parts.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], mode: str = "sum", concurrency: int = 64) -> None:
        problems = [str(problem) for problem in mix_problems(parts, mode, "reward")]
        if concurrency < 1:
            problems.append(f"error: reward.mix.concurrency={concurrency}: nothing would be scored; give 1 or more")
        if problems:
            raise ComponentError("\n".join(problems))
        self._mode = mode
        self._parts = {name: _part(name, node, concurrency) for name, node in parts.items()}
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Take the weights of a step; parts that change over the run are told too."""
        self._weights = {name: part.config.weight_at(step) for name, part in self._parts.items()}
        for part in self._parts.values():
            if isinstance(part.reward, Stepped):
                part.reward.begin_step(step)

    def connect(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Hand the routers to the parts that ask models."""
        for part in self._parts.values():
            if isinstance(part.reward, Connects):
                part.reward.connect(endpoints)

    async def close(self) -> None:
        """Let the parts give back what they hold."""
        async with AsyncExitStack() as stack:  # whatever fails, all of them are closed
            for part in self._parts.values():
                if isinstance(part.reward, Closes):
                    stack.push_async_callback(part.reward.close)

    def unserved(self, sources: Sequence[str]) -> list[str]:
        """The data sources among these whose samples no part scores, sorted.

        Raises ComponentError, naming the part, where one that scores them may not.
        """
        for part in self._parts.values():
            part.refuse([source for source in sources if part.config.serves(source)])
        return sorted({source for source in sources if not any(p.config.serves(source) for p in self._parts.values())})

    def counts(self) -> Metrics:
        """What went wrong since the last call: ``rollout/reward_errors/<part>``, failed calls, for every part; where
        there are any, ``rollout/reward_fallbacks/<part>`` and ``rollout/reward_dropped/<part>``, samples."""
        found: Metrics = {}
        for name, part in self._parts.items():
            part.counts.setdefault("errors", 0)
            found |= {f"rollout/reward_{kind}/{name}": float(count) for kind, count in part.counts.items()}
            part.counts.clear()
        return found

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One reward a sample; whole groups at a time. Writes into each sample

        - ``reward_parts``: the scores by part, before weight and normalise, of the parts that serve it;
        - ``reward``: their mix;
        - ``raw_reward``, the value to report in place of the reward: what ``prompt.metadata["raw_reward"]``, its
          generation or one of the parts says; else, where a part takes z-scores, the mix without them; else None.
          What an earlier scoring wrote is forgotten;
        - ``dropped``, where a part that drops what it cannot score failed; its reward is nan then. Samples that were
          dropped before are not scored.

        Raises ComponentError when a part that is to stop the run fails, naming part and sample, and for samples whose
        sources no part serves, naming all of these.
        """
        live = [sample for sample in samples if not sample.dropped]
        if missing := self.unserved([sample.prompt.source for sample in live]):
            raise ComponentError(
                f"reward.parts: no part scores samples of {', '.join(missing)}; name them in the sources of a part"
            )
        for sample in live:
            if sample.reward_parts:
                sample.reward_parts, sample.raw_reward = {}, None
        columns = await together([self._ask(part, live) for part in self._parts.values()])
        for name, column in zip(self._parts, columns, strict=True):
            for sample, score in column:
                if score is None:
                    sample.dropped = f"reward {name} failed"
                else:
                    sample.reward_parts[name] = score
        for sample in samples:
            if sample.dropped:
                sample.reward = math.nan
        self._mix([sample for sample in live if not sample.dropped])
        return [sample.reward for sample in samples]

    async def _ask(self, part: Part, live: Sequence[Sample]) -> list[tuple[Sample, float | None]]:
        """One part's scores of the samples that it serves."""
        served = [sample for sample in live if part.config.serves(sample.prompt.source)]
        return list(zip(served, await part.scores(served), strict=True))

    def _mix(self, samples: Sequence[Sample]) -> None:
        plain: list[dict[str, float]] = [{} for _ in samples]
        normal: list[dict[str, float]] = [{} for _ in samples]
        for name, part in self._parts.items():
            rows = [row for row, sample in enumerate(samples) if name in sample.reward_parts]
            own = [samples[row] for row in rows]
            scores = [sample.reward_parts[name] for sample in own]
            if isinstance(part.config.normalise, tuple):
                scores = in_range(scores, *part.config.normalise)
            final = z_scores(own, scores) if part.config.normalise == "group" else scores
            for row, score, value in zip(rows, scores, final, strict=True):
                plain[row][name], normal[row][name] = score, value
        for sample, before, after in zip(samples, plain, normal, strict=True):
            sample.reward = self._combine(after)
            sample.raw_reward = _given_raw(sample)
            if sample.raw_reward is None and any(self._parts[name].config.normalise == "group" for name in after):
                sample.raw_reward = self._combine(before)

    def _combine(self, scores: Mapping[str, float]) -> float:
        gates = {name: score for name, score in scores.items() if self._parts[name].config.gate}
        mixed = {name: score for name, score in scores.items() if name not in gates}
        return combine("product", gates, self._weights) * combine(self._mode, mixed, self._weights)


def _part(name: str, node: Mapping[str, Any], concurrency: int) -> Part:
    config, problems = build_part(node, f"reward.parts.{name}")
    if config is None:
        raise ComponentError("\n".join(map(str, problems)))
    return Part(name, config, build_reward(name, own_node(node)), concurrency)


def _given_raw(sample: Sample) -> float | None:
    """The value to report, where the prompt or what made or scored the sample says one."""
    if RAW_REWARD not in sample.prompt.metadata:
        return sample.raw_reward
    value = sample.prompt.metadata[RAW_REWARD]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ComponentError(f"{describe(sample)}: metadata.raw_reward={value!r} is not a finite number")
    return float(value)
