"""Is the answer well-formed?"""

from __future__ import annotations

from collections.abc import Sequence

from components.rewards.answer import ANSWER, compile_pattern, extract
from slime_launch.types import Sample, Status


class Format:
    """1.0 when the response ended by itself and matches ``pattern`` (one group, the answer), else 0.0."""

    def __init__(self, pattern: str = ANSWER) -> None:
        self._pattern = compile_pattern(pattern)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, 0.0 or 1.0."""
        return [float(self._well_formed(sample)) for sample in samples]

    def _well_formed(self, sample: Sample) -> bool:
        return sample.status is Status.COMPLETED and extract(self._pattern, sample.response) is not None
