"""Answers as words, compared as the SQuAD evaluation does."""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, each counted as often as it stands there.

    Where one of them has no words: 1.0 when neither has any, else 0.0.
    """
    given, wanted = words(answer), words(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))
