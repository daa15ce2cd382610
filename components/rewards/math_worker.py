"""A process that compares mathematical answers: a JSON line in, a JSON line out. Run as a file, with python -I.

In: ``{"label": text, "answer": text, "memory_mb": int}``. Out: ``{"equal": bool}``, or ``{"fault": text}`` when the
label cannot be read or the comparison breaks off. The caller bounds the time; math-verify's own bound is off: it is an
alarm signal, which every library below could swallow.
"""

from __future__ import annotations

import ctypes
import json
import logging
import resource
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until stdin ends; die with the parent, also in the middle of a comparison."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        limit = asked["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        out.write(json.dumps(_compare(asked["label"], asked["answer"])) + "\n")
        out.flush()


def _compare(label: str, answer: str) -> dict[str, Any]:
    from math_verify import parse, verify

    try:
        gold = parse(_latex(label), parsing_timeout=None)
        if all(isinstance(one, str) for one in gold):
            return {"fault": f"label {label!r} is no mathematics that math-verify reads"}
        found = parse(answer, parsing_timeout=None)
        return {"equal": bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))}
    except (Exception, RecursionError, MemoryError) as error:
        return {"fault": f"comparing {answer[-80:]!r} with {label!r}: {type(error).__name__}"}


def _latex(text: str) -> str:
    """As an environment that the parser takes as a whole, where it is none yet."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    main()
