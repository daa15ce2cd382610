"""Part of a point for an answer that is partly right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slime_launch.types import Sample

_ANSWER = re.compile(r"\[(\w+)\]")


class Placed:
    """The share of letters at their right place in an answer of the right length; 0.0 for any other response."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, from 0.0 to 1.0."""
        return [_placed(sample.response, sample.prompt.label) for sample in samples]


def _placed(response: str, label: str) -> float:
    found = _ANSWER.search(response)
    if found is None or len(found[1]) != len(label):
        return 0.0
    return sum(given == right for given, right in zip(found[1], label, strict=True)) / len(label)
