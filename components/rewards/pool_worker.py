"""A process of a ``Pool``: pickled questions in, JSON lines out. Run as a file, with python -I, a job file and MiB.

Out: ``{"result": value}``, or ``{"fault": text}`` when the job raises. None asks nothing but to be ready. The caller
bounds the time: an alarm signal could be swallowed by every library below. Only what comes in is pickled, from a
process of ours; what goes out was computed over a model's words.
"""

from __future__ import annotations

import ctypes
import json
import pickle
import resource
import runpy
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until stdin ends; die with the parent, also in the middle of an answer."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    job = runpy.run_path(sys.argv[1])
    job["prepare"]()
    limit = int(sys.argv[2]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        out.write(json.dumps(_told(job, question)) + "\n")
        out.flush()


def _told(job: dict[str, Any], question: dict[str, Any] | None) -> dict[str, Any]:
    try:
        return {"result": question is None or job["answer"](question)}
    except (Exception, RecursionError, MemoryError) as error:
        return {"fault": f"{type(error).__name__}: {error!s:.200}"}


if __name__ == "__main__":
    main()
