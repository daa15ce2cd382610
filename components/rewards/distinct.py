"""Answers that differ within a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from components.rewards.answer import ANSWER, compile_pattern, extract
from components.rewards.combine import last_parts
from slime_launch.types import Sample


class Distinct:
    """The share of the group's other rollouts whose answer is another one, 0.0 to 1.0; 1.0 in a group of one.

    A rollout of several samples gives the answer of its last one, and all of them get its score.

    pattern: one group, around the answer, which the whole response must match; responses that do not are alike.
    """

    def __init__(self, pattern: str = ANSWER) -> None:
        self._pattern = compile_pattern(pattern)

    async def score_group(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample of one group."""
        answers = {key: extract(self._pattern, last.response) for key, last in last_parts(samples).items()}
        counts, others = Counter(answers.values()), len(answers) - 1
        own = [answers[sample.group, sample.index] for sample in samples]
        return [(len(answers) - counts[answer]) / others if others else 1.0 for answer in own]
