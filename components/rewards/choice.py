"""The letter of a multiple-choice question."""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.rewards.answer import compile_pattern, extract
from slime_launch.errors import ComponentError
from slime_launch.types import Sample


class Choice:
    """1.0 when the letter that the response settles on is ``prompt.label``, else 0.0; case does not count.

    letters: those to choose from, e.g. ABCD.
    pattern: one group, around the letter, which the whole response must match. Null looks for the last
        ``\\boxed{C}``; without one for the last "answer is C" or "answer: C", brackets, bold type and quotes allowed
        around the letter, an "a" only where the clause ends; without one the response must be the letter alone, so
        wrapped or with a full stop behind it.
    """

    def __init__(self, letters: str = "ABCD", pattern: str | None = None) -> None:
        if not letters.isalpha() or len(set(letters.upper())) < max(2, len(letters)):
            raise ComponentError(f"letters={letters}: need two letters or more, each once")
        self._letters = letters.upper()
        self._pattern = None if pattern is None else compile_pattern(pattern)
        self._ways = _ways(self._letters)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, 0.0 or 1.0.

        Raises ComponentError for a sample whose label is none of the letters.
        """
        return [self._score_one(sample) for sample in samples]

    def _score_one(self, sample: Sample) -> float:
        label = sample.prompt.label.strip().upper()
        if len(label) != 1 or label not in self._letters:
            raise ComponentError(
                f"source {sample.prompt.source}: label {sample.prompt.label!r} is none of letters={self._letters}"
            )
        return float(self._chosen(sample.response) == label)

    def _chosen(self, response: str) -> str | None:
        if self._pattern is not None:
            found = extract(self._pattern, response)
            return None if found is None else found.upper()
        for way in self._ways:
            if letters := way.findall(response):
                return str(letters[-1]).upper()
        return None


def _ways(letters: str) -> tuple[re.Pattern[str], ...]:
    # possessive (*+): a long run of spaces or stars must not be split in every way between two places of it
    around, letter = r"[\s(\[{*\"'`$]*+", rf"([{letters}])"
    no_article = r"(?!(?-i:a)(?![)\]}*\"`$.,;:!]|[^\S\n]*+(?:\n|\Z)))"  # "is a guess" settles on nothing
    return (
        re.compile(rf"\\boxed\{{\s*+(?:\\text\{{)?{around}{letter}\b", re.IGNORECASE),
        re.compile(rf"\banswer\b{around}(?:is\b|:){around}:?{around}{no_article}{letter}\b(?!')", re.IGNORECASE),
        re.compile(rf"\A{around}{letter}[\s)\]}}*\"'`$.]*\Z", re.IGNORECASE),
    )
