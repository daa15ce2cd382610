"""Exact match of the answer with the prompt's label."""

from __future__ import annotations

from collections.abc import Sequence

from components.rewards.answer import ANSWER, compile_pattern, extract
from slime_launch.types import Sample


class Exact:
    """1.0 when the extracted answer equals ``prompt.label``, else 0.0. ``pattern`` has one group, the answer."""

    def __init__(self, pattern: str = ANSWER) -> None:
        self._pattern = compile_pattern(pattern)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, 0.0 or 1.0."""
        return [float(extract(self._pattern, sample.response) == sample.prompt.label) for sample in samples]
