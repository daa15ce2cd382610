"""The job of scoring answers to reasoning-gym tasks, run by ``pool_worker.py``.

Question: ``{"task": name, "entry": as the package made it, "answer": text}``; the result is the score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def prepare() -> None:
    """Import the package, which takes seconds."""
    import reasoning_gym  # noqa: F401


def answer(question: dict[str, Any]) -> float:
    """The task's own score."""
    return float(_scorer(question["task"])(question["answer"], question["entry"]))


@lru_cache(maxsize=32)
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The task's scorer; kept, since making one may read a whole word list."""
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(task)  # type: ignore[no-any-return]
