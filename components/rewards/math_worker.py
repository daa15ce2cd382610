"""The job of comparing mathematical answers, run by ``pool_worker.py``.

Question: ``{"label": text, "answer": text}``; the result is whether they are equal. math-verify's own bound of time is
off: the pool has one.
"""

from __future__ import annotations

import logging
from typing import Any


def prepare() -> None:
    """Import math-verify, and sympy below it, and run them once."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    answer({"label": "1", "answer": "1"})


def answer(question: dict[str, Any]) -> bool:
    """Whether they are the same mathematics.

    Raises ValueError for a label that cannot be read.
    """
    from math_verify import parse, verify

    label = question["label"]
    gold = parse(_latex(label), parsing_timeout=None)
    if all(isinstance(one, str) for one in gold):
        raise ValueError(f"label {label!r} is no mathematics that math-verify reads")
    found = parse(question["answer"], parsing_timeout=None)
    return bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))


def _latex(text: str) -> str:
    """As an environment that the parser takes as a whole, where it is none yet."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"
