"""Answers that differ within a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from components.rewards.answer import ANSWER, compile_pattern, extract
from slime_launch.types import Sample


class Distinct:
    """The share of the group's other samples whose answer is another one, 0.0 to 1.0; 1.0 in a group of one.

    pattern: one group, around the answer, which the whole response must match; responses that do not are alike.
    """

    def __init__(self, pattern: str = ANSWER) -> None:
        self._pattern = compile_pattern(pattern)

    async def score_group(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample of one group."""
        answers = [extract(self._pattern, sample.response) for sample in samples]
        counts, others = Counter(answers), len(answers) - 1
        return [(len(answers) - counts[answer]) / others if others else 1.0 for answer in answers]
