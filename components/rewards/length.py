"""Rewards for length, in tokens of the response, those of tools among them."""

from __future__ import annotations

from collections.abc import Sequence

from components.rewards.combine import last_parts
from slime_launch.errors import ComponentError
from slime_launch.types import Sample


class Overlong:
    """The soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13), -1.0 to 0.0.

    0 up to ``max_tokens * (1 - buffer)``, then falling linearly to -1 at ``max_tokens``, and -1 beyond. The paper's
    buffer is 4,096 of 20,480 tokens.
    """

    def __init__(self, max_tokens: int, buffer: float = 0.2) -> None:
        if not (max_tokens > 0 and 0 < buffer <= 1):
            raise ComponentError(
                f"max_tokens={max_tokens}, buffer={buffer}: need max_tokens above 0, and a buffer above 0 and up to 1"
            )
        self._max, self._buffer = max_tokens, max_tokens * buffer

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample."""
        left = [(self._max - len(sample.response_ids)) / self._buffer for sample in samples]
        return [-min(1.0, max(0.0, 1.0 - buffers)) for buffers in left]


class GroupLength:
    """Shorter than the others of its group is better, 0.5 for the shortest to -0.5 for the longest; 0 when all are
    equally long.

    The length reward of Kimi k1.5 (arXiv:2501.12599, section 2.3.3) for right answers; let a right answer be the gate.
    A rollout of several samples is as long as its last one, and all of them get its score.
    """

    async def score_group(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample of one group."""
        lengths = {key: len(last.response_ids) for key, last in last_parts(samples).items()}
        shortest, longest = min(lengths.values()), max(lengths.values())
        if shortest == longest:
            return [0.0] * len(samples)
        own = [lengths[sample.group, sample.index] for sample in samples]
        return [0.5 - (length - shortest) / (longest - shortest) for length in own]
