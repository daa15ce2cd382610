"""Exact match of the answer with the prompt's label."""

from __future__ import annotations

from collections.abc import Sequence

from components.rewards.answer import ANSWER, compile_pattern, extract
from components.rewards.text import words
from slime_launch.types import Sample


class Exact:
    """1.0 when the extracted answer equals ``prompt.label``, else 0.0.

    pattern: one group, around the answer, which the whole response must match.
    loose: compare as SQuAD's exact match does: case, punctuation and articles do not count.
    """

    def __init__(self, pattern: str = ANSWER, loose: bool = False) -> None:
        self._pattern, self._loose = compile_pattern(pattern), loose

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, 0.0 or 1.0."""
        return [float(self._equal(extract(self._pattern, one.response), one.prompt.label)) for one in samples]

    def _equal(self, answer: str | None, label: str) -> bool:
        if answer is None or not self._loose:
            return answer == label
        return words(answer) == words(label)
