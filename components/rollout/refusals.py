"""How often each engine gave an answer that does not hold together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from components.rollout.answers import BadAnswer
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint, Metrics


class Refusals:
    """Counts refused answers by target. most: of one target between two calls of ``take``."""

    def __init__(self, targets: Sequence[Endpoint], most: int) -> None:
        self._targets, self._most = targets, most
        self._counts: Counter[int] = Counter()

    def add(self, number: int, error: BadAnswer) -> None:
        """One more of the ``number``-th target. Raises ComponentError, naming it, when there are too many."""
        self._counts[number] += 1
        target, count = self._targets[number], self._counts[number]
        print(f"rollout: an answer of {target.url} is refused ({count} in this step): {error}", flush=True)
        if count > self._most:
            log = f"; its log is {target.log}" if target.log else "; see the log of who runs it"
            raise ComponentError(
                f"{target.url} gave {count} answers that do not hold together, and "
                f"rollout.max_refused_answers={self._most} are let pass in a step; the last: {error}{log}"
            )

    def take(self) -> Metrics:
        """``refused_answers/<server>`` of each that gave any since the last call."""
        counts, self._counts = self._counts, Counter()
        return {f"refused_answers/{_name(self._targets[number])}": float(n) for number, n in sorted(counts.items())}


def _name(target: Endpoint) -> str:
    """As its log is called; a server without one by its address."""
    return Path(target.log).stem if target.log else urlsplit(target.url).netloc.replace(":", "_")
