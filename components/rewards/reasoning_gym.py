"""The scorer that comes with a reasoning-gym task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from components.rewards.answer import ANSWER, compile_pattern, extract
from slime_launch.errors import ComponentError
from slime_launch.types import Sample


class ReasoningGymScore:
    """The task's own score of the extracted answer, 0.0 to 1.0 (some tasks give part marks)."""

    def __init__(self, pattern: str = ANSWER) -> None:
        self._pattern = compile_pattern(pattern)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample.

        Raises ComponentError for a sample whose prompt does not come from components.data.reasoning_gym.
        """
        return [self._score_one(sample) for sample in samples]

    def _score_one(self, sample: Sample) -> float:
        facts = sample.prompt.metadata
        if "task" not in facts or "entry" not in facts:
            raise ComponentError(
                f"source {sample.prompt.source} carries no reasoning-gym entry; use this reward with "
                "components.data.reasoning_gym.ReasoningGym, or components.rewards.exact.Exact with this source"
            )
        answer = extract(self._pattern, sample.response)
        return 0.0 if answer is None else float(_scorer(facts["task"])(answer, facts["entry"]))


@lru_cache(maxsize=32)
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The task's scorer; kept, since making one may read a whole word list."""
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(task)  # type: ignore[no-any-return]
