"""The scorer that comes with a reasoning-gym task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.rewards.answer import ANSWER, compile_pattern, extract
from components.rewards.pool import Pool
from slime_launch.errors import ComponentError
from slime_launch.types import Sample

_JOB = Path(__file__).with_name("reasoning_gym_worker.py")
RUN_THE_ANSWER = frozenset({
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
})  # fmt: skip
"""Tasks whose scorers (reasoning-gym 0.1.25) give the answer to eval or sympy.parse_expr, which run any code in it."""


class ReasoningGymScore:
    """The task's own score of the extracted answer, 0.0 to 1.0 (some tasks give part marks).

    The tasks of ``RUN_THE_ANSWER`` are refused. The others are scored in processes of their own.

    pattern: one group, around the answer, which the whole response must match; responses that do not get 0.0.
    time_s, memory_mb: bounds of one score. A process that breaks the first is killed and made anew.
    workers: scores at once.
    """

    def __init__(self, pattern: str = ANSWER, time_s: float = 10.0, memory_mb: int = 2048, workers: int = 2) -> None:
        self._pattern = compile_pattern(pattern)
        self._pool = Pool(_JOB, time_s, memory_mb, workers)

    def refuse(self, sources: Sequence[str]) -> None:
        """Raise ComponentError where one of the data sources is called as a task of ``RUN_THE_ANSWER`` is."""
        if bad := sorted(set(sources) & RUN_THE_ANSWER):
            raise ComponentError(
                f"reasoning-gym's scorer of {', '.join(bad)} runs the model's answer as code, here beside the "
                "engines' keys; use other tasks, or score these by a component of your own that runs no answer"
            )

    async def score_one(self, sample: Sample) -> float:
        """Its score.

        Raises ComponentError for a task of ``RUN_THE_ANSWER``, for a sample whose prompt does not come from
        components.data.reasoning_gym, and when the scorer breaks off; DeadlineError when it takes too long.
        """
        facts = sample.prompt.metadata
        if "task" not in facts or "entry" not in facts:
            raise ComponentError(
                f"source {sample.prompt.source} carries no reasoning-gym entry; use this reward with "
                "components.data.reasoning_gym.ReasoningGym, or components.rewards.exact.Exact with this source"
            )
        task = facts["task"]
        self.refuse([task])
        answer = extract(self._pattern, sample.response)
        if answer is None:
            return 0.0
        question = {"task": task, "entry": facts["entry"], "answer": answer}
        return float(await self._pool.ask(question, f"scoring {answer[-80:]!r} for {task}"))

    async def close(self) -> None:
        """End the processes, once those that score are done."""
        await self._pool.close()
