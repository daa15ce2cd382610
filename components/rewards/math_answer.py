"""Mathematical equality of the answer with the prompt's label."""

from __future__ import annotations

from pathlib import Path

from components.rewards.answer import compile_pattern, extract
from components.rewards.pool import Pool
from slime_launch.types import Sample

_JOB = Path(__file__).with_name("math_worker.py")


class MathAnswer:
    """1.0 when the answer equals ``prompt.label`` as mathematics (math-verify, sympy below it), else 0.0.

    Labels are LaTeX or plain expressions; ``1/2``, ``\\frac{1}{2}`` and ``0.5`` are equal.

    pattern: one group, around the answer, which the whole response must match; null lets math-verify look through the
        response: for ``\\boxed{}`` first, then other LaTeX, then plain numbers. What it cannot read is wrong.
    time_s, memory_mb: bounds of one comparison. A process that breaks the first is killed and made anew.
    workers: comparisons at once.
    """

    def __init__(
        self, pattern: str | None = None, time_s: float = 5.0, memory_mb: int = 2048, workers: int = 2
    ) -> None:
        self._pattern = None if pattern is None else compile_pattern(pattern)
        self._pool = Pool(_JOB, time_s, memory_mb, workers)

    async def score_one(self, sample: Sample) -> float:
        """0.0 or 1.0.

        Raises DeadlineError when the comparison takes too long, ComponentError when it breaks off or the label cannot
        be read.
        """
        answer: str | None = sample.response
        if self._pattern is not None:
            found = extract(self._pattern, sample.response)
            answer = None if found is None else f"${found}$"
        if answer is None:
            return 0.0
        label = sample.prompt.label
        return float(
            await self._pool.ask({"label": label, "answer": answer}, f"comparing {answer[-80:]!r} with {label!r}")
        )

    async def close(self) -> None:
        """End the processes, once those that compare are done."""
        await self._pool.close()
