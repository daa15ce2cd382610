"""One named part of a mix: whom it scores, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import stamina

from components.rewards.loops import PerLoop
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.interfaces import GroupReward, Reward, SingleReward
from slime_launch.schema.reward import OnError, PartConfig
from slime_launch.targets import instantiate
from slime_launch.types import Sample

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
"""Between tries; doubled each time, with jitter."""
GRACE_S = 1.0
"""What a call that is cancelled for its deadline gets to end, before nobody waits for it any more."""


class NonsenseError(ComponentError):
    """A reward answered, and the answer is not one finite number a sample."""


@runtime_checkable
class Refuses(Protocol):
    """A reward that must not score the samples of some data sources."""

    def refuse(self, sources: Sequence[str]) -> None:
        """Raise ComponentError where there is one among these, saying why and what to do."""


class Part:
    """A reward with its mixer settings.

    concurrency: bounds the calls at once, but for the one that takes a whole batch.
    counts: failed calls under ``errors``, samples under ``fallbacks`` and ``dropped``.
    """

    def __init__(self, name: str, config: PartConfig, reward: Any, concurrency: int) -> None:
        self.name, self.config, self.reward = name, config, reward
        self._lane = PerLoop(lambda: asyncio.Semaphore(concurrency))
        self.counts: Counter[str] = Counter()
        self._call, self._cut = _way(reward)
        self.refuse(config.sources or ())

    def refuse(self, sources: Sequence[str]) -> None:
        """Raise ComponentError, naming the part, where its reward must not score samples of one of these."""
        if isinstance(self.reward, Refuses):
            try:
                self.reward.refuse(sources)
            except ComponentError as error:
                raise ComponentError(f"reward.parts.{self.name}: {error}") from error

    async def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """One score a sample that it serves, finite; None where the sample is to be dropped.

        Raises ComponentError naming part and sample when a score fails and the part is to stop the run.
        """
        units = self._cut(samples)
        lists = await together([self._settle(unit) for unit in units])
        by_sample = {
            id(sample): score
            for unit, scores in zip(units, lists, strict=True)
            for sample, score in zip(unit, scores, strict=True)
        }
        return [by_sample[id(sample)] for sample in samples]

    async def _settle(self, unit: Sequence[Sample]) -> list[float | None]:
        """Scores of one call's samples, retried or given up where it fails."""
        if isinstance(self.reward, Reward) and len(unit) > 1:
            try:
                return list(await self._try(unit))
            except Exception as error:
                return await self._apart(unit, error)
        try:
            async for attempt in stamina.retry_context(
                on=Exception, attempts=self.config.on_error.retry + 1, timeout=None, wait_initial=FIRST_WAIT_S,
                wait_max=LONGEST_WAIT_S,
            ):  # fmt: skip
                with attempt:
                    async with self._lane.get():
                        return list(await self._try(unit))
        except Exception as error:
            return self._give_up(unit, error)
        raise AssertionError("a retry loop returns or raises")

    async def _apart(self, unit: Sequence[Sample], error: Exception) -> list[float | None]:
        """After a batch failed: each sample alone, so that only those that fail are blamed."""
        stops = self.config.on_error == OnError()
        if stops and isinstance(error, NonsenseError):
            raise self._error(unit, error) from error
        alone = await together([self._settle([sample]) for sample in unit])
        if stops:
            raise self._error(unit, error) from error  # none fails alone, and nobody asked for another try
        return [score for scores in alone for score in scores]

    async def _try(self, unit: Sequence[Sample]) -> list[float]:
        """One call, its answer looked at."""
        try:
            scores = await within(self._call(unit), self.config.deadline_s)
            if len(scores) != len(unit):
                raise NonsenseError(f"gave {len(scores)} scores for {len(unit)} samples")
            for sample, score in zip(unit, scores, strict=True):
                if not math.isfinite(score):
                    raise NonsenseError(f"score {score} for sample {sample.index} of group {sample.group}")
        except Exception:
            self.counts["errors"] += 1
            raise
        return [float(score) for score in scores]

    def _give_up(self, unit: Sequence[Sample], error: Exception) -> list[float | None]:
        policy = self.config.on_error
        if policy.fallback is not None:
            self.counts["fallbacks"] += len(unit)
            return [policy.fallback] * len(unit)
        if policy.then == "drop":
            self.counts["dropped"] += len(unit)
            return [None] * len(unit)
        raise self._error(unit, error) from error

    def _error(self, unit: Sequence[Sample], error: Exception) -> ComponentError:
        whom = describe(unit[0]) if len(unit) == 1 else f"batch of {len(unit)} samples"
        return ComponentError(f"reward.parts.{self.name}: {whom}: {type(error).__name__}: {error}")


def build_reward(name: str, node: Mapping[str, Any]) -> Any:
    """The reward that a part's node names.

    Raises ComponentError, naming the part, when it cannot be made or has no way to score.
    """
    try:
        reward = instantiate(node)
    except (ComponentError, TypeError, ValueError) as error:
        raise ComponentError(f"reward.parts.{name}: {error}") from error
    if not isinstance(reward, Reward | SingleReward | GroupReward):
        raise ComponentError(
            f"reward.parts.{name}._target_={node['_target_']}: has no async score(samples), score_one(sample) "
            "or score_group(samples)"
        )
    return reward


Call = Callable[[Sequence[Sample]], Awaitable[Sequence[float]]]
Cut = Callable[[Sequence[Sample]], list[list[Sample]]]


def _way(reward: Any) -> tuple[Call, Cut]:
    """How a reward is called, and what it is called with at a time."""
    if isinstance(reward, Reward):
        return reward.score, lambda samples: [list(samples)] if samples else []
    if isinstance(reward, GroupReward):
        return reward.score_group, groups

    async def one(samples: Sequence[Sample]) -> list[float]:
        return [await reward.score_one(samples[0])]

    return one, lambda samples: [[sample] for sample in samples]


def groups(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each prompt, groups in the order in which they begin."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.group, []).append(sample)
    return list(found.values())


def describe(sample: Sample) -> str:
    """A sample in an error's words."""
    answer = f"{sample.response!r:.80}"
    return f"sample {sample.index} of group {sample.group} (source {sample.prompt.source}, response {answer})"


async def together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others fail alike, or by being cancelled
    return [task.result() for task in tasks]


async def within(job: Awaitable[T], seconds: float | None) -> T:
    """The job's result, or DeadlineError: also when the job takes no notice of being cancelled."""
    task = asyncio.ensure_future(job)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
    if not done:
        await asyncio.wait([task], timeout=GRACE_S)
        raise DeadlineError(f"no score within {seconds} s")
    return task.result()
