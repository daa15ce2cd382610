"""Conversations between the model and an environment: a tool, a game, a simulated user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

from slime_launch.errors import ComponentError
from slime_launch.interfaces import Engine
from slime_launch.targets import instantiate
from slime_launch.types import UNSAMPLED, Sample, Status


@runtime_checkable
class Environment(Protocol):
    """What answers the model.

    One object serves all rollouts, many at a time. What it has to remember of one goes into ``sample.metadata``, as
    plain JSON values: a rollout that is cut short then goes on later, over a checkpoint too.
    """

    async def step(self, sample: Sample, text: str) -> Sequence[Mapping[str, Any]]:
        """Chat messages that answer the assistant turn ``text``, e.g. of role tool; none when the rollout is done.

        text: without special tokens. sample: with all tokens so far. A message may show images, as parts
        ``{"type": "image", "image": ...}`` of its content (see ``slime_launch.interfaces.Engine.continuation``).
        """


class ToolLoop:
    """slime_launch.interfaces.Generate: the model writes a turn, the environment answers, until there is no answer.

    The answers are part of the response and its budget, and do not train. environment: ``_target_`` node of an
    Environment. max_turns: assistant turns at most. A rollout ends TRUNCATED when turns or budget do not suffice for an
    answer and what the model would say to it.

    Raises ComponentError where the environment is none or fails.
    """

    def __init__(self, environment: Mapping[str, Any], max_turns: int = 8) -> None:
        if max_turns < 1:
            raise ComponentError(f"rollout.generate.max_turns={max_turns}: must be at least 1")
        self._environment: Environment = instantiate(environment)
        if not isinstance(self._environment, Environment):
            raise ComponentError(
                f"rollout.generate.environment._target_={environment['_target_']}: has no async step(sample, text)"
            )
        self._max_turns = max_turns

    async def __call__(self, sample: Sample, engine: Engine) -> Sample:
        """The sample with the whole conversation; one that was cut short goes on in the turn where it was."""
        while True:
            await engine.generate(sample)
            if sample.status is not Status.COMPLETED:
                return sample
            messages = await self._answer(sample, engine.decode(_last_turn(sample)))
            if not messages:
                return sample
            told = await engine.continuation(sample, messages)
            room = int(engine.sampling["max_new_tokens"]) - len(sample.response_ids) - len(told)
            if count_turns(sample) >= self._max_turns or room <= 0:
                sample.status = Status.TRUNCATED
                return sample
            sample.add_turn(told)

    async def _answer(self, sample: Sample, text: str) -> Sequence[Mapping[str, Any]]:
        try:
            return await self._environment.step(sample, text)
        except Exception as error:  # an environment is anybody's code
            raise ComponentError(
                f"rollout.generate.environment: {type(self._environment).__name__} failed at {text!r:.200} "
                f"(sample {sample.index} of group {sample.group}): {type(error).__name__}: {error}"
            ) from error


def count_turns(sample: Sample) -> int:
    """Assistant turns begun so far: runs of sampled tokens."""
    return sum(not given for given, _ in groupby(version == UNSAMPLED for version in sample.weight_versions))


def _last_turn(sample: Sample) -> list[int]:
    """Tokens behind the last that no engine sampled."""
    given = [number for number, version in enumerate(sample.weight_versions) if version == UNSAMPLED]
    return sample.response_ids[given[-1] + 1 if given else 0 :]
