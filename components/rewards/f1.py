"""Overlap of the answer's words with a reference answer's."""

from __future__ import annotations

from collections.abc import Sequence

from components.rewards.answer import compile_pattern, extract
from components.rewards.text import f1
from slime_launch.errors import ComponentError
from slime_launch.types import Sample

ANSWERS = "answers"
"""Key of ``Prompt.metadata`` with further right answers."""


class F1:
    """Word-level F1 with the label, or the best of label and ``prompt.metadata["answers"]``, 0.0 to 1.0.

    Words are compared as in SQuAD: case, punctuation and articles do not count.
    pattern: one group, around the answer, which the whole response must match; null takes the response as it is.
    """

    def __init__(self, pattern: str | None = None) -> None:
        self._pattern = None if pattern is None else compile_pattern(pattern)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample.

        Raises ComponentError for a sample whose ``metadata["answers"]`` is no list of texts.
        """
        return [self._score_one(sample) for sample in samples]

    def _score_one(self, sample: Sample) -> float:
        more = sample.prompt.metadata.get(ANSWERS, [])
        if not isinstance(more, list | tuple) or not all(isinstance(one, str) for one in more):
            raise ComponentError(f"source {sample.prompt.source}: metadata.answers={more!r:.80} is no list of texts")
        answer = sample.response if self._pattern is None else extract(self._pattern, sample.response)
        return 0.0 if answer is None else max(f1(answer, reference) for reference in (sample.prompt.label, *more))
