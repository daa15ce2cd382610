"""Mathematical equality of the answer with the prompt's label."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from components.rewards.answer import compile_pattern, extract
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.types import Sample

_WORKER = Path(__file__).with_name("math_worker.py")
_START_S = 60.0
"""Longest wait for a new process's first answer: it imports sympy."""
_READY = ("1", "1")


class MathAnswer:
    """1.0 when the answer equals ``prompt.label`` as mathematics (math-verify, sympy below it), else 0.0.

    Labels are LaTeX or plain expressions; ``1/2``, ``\\frac{1}{2}`` and ``0.5`` are equal.

    pattern: one group, around the answer, which the whole response must match; null lets math-verify look through the
        response: for ``\\boxed{}`` first, then other LaTeX, then plain numbers. What it cannot read is wrong.
    time_s, memory_mb: bounds of one comparison. A process that breaks the first is killed and made anew.
    workers: comparisons at once.
    """

    def __init__(
        self, pattern: str | None = None, time_s: float = 5.0, memory_mb: int = 2048, workers: int = 2
    ) -> None:
        if not (time_s > 0 and memory_mb >= 256 and workers >= 1):
            raise ComponentError(
                f"time_s={time_s}, memory_mb={memory_mb}, workers={workers}: need time_s > 0, memory_mb >= 256 "
                "and workers >= 1"
            )
        self._pattern = None if pattern is None else compile_pattern(pattern)
        self._pool = _Pool(time_s, memory_mb, workers)

    async def score_one(self, sample: Sample) -> float:
        """0.0 or 1.0.

        Raises DeadlineError when the comparison takes too long, ComponentError when it breaks off or the label cannot
        be read.
        """
        answer: str | None = sample.response
        if self._pattern is not None:
            found = extract(self._pattern, sample.response)
            answer = None if found is None else f"${found}$"
        return 0.0 if answer is None else float(await self._pool.equal(sample.prompt.label, answer))

    async def close(self) -> None:
        """End the processes, once those that compare are done."""
        await asyncio.to_thread(self._pool.close)


class _Pool:
    """Worker processes, started when first needed; each is asked by one thread at a time. Knows no event loop."""

    def __init__(self, time_s: float, memory_mb: int, workers: int) -> None:
        self._time_s, self._memory_mb = time_s, memory_mb
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    async def equal(self, label: str, answer: str) -> bool:
        """Whether they are the same mathematics."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, label, answer)

    def close(self) -> None:
        """End them all."""
        self._threads.shutdown(cancel_futures=True)
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().kill()

    def _ask(self, label: str, answer: str) -> bool:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._memory_mb)
        try:
            equal = worker.ask(label, answer, self._time_s)
        except _FaultError as fault:
            self._idle.put(worker)
            raise ComponentError(str(fault)) from None
        except BaseException:
            worker.kill()
            raise
        self._idle.put(worker)
        return equal


class _FaultError(Exception):
    """What a worker says went wrong; it lives on."""


class _Worker:
    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"}, text=True,
        )  # fmt: skip
        try:
            self.ask(*_READY, _START_S)
        except BaseException:
            self.kill()
            raise

    def ask(self, label: str, answer: str, time_s: float) -> bool:
        """Raises DeadlineError after ``time_s``, ComponentError when the process is gone: it is of no use then."""
        asked, told = self._process.stdin, self._process.stdout
        if asked is None or told is None:
            raise ComponentError("the process that compares has no pipes")
        try:
            asked.write(json.dumps({"label": label, "answer": answer, "memory_mb": self._memory_mb}) + "\n")
            asked.flush()
        except OSError as error:
            raise ComponentError(f"the process that compares is gone ({error})") from error
        answers = select.poll()  # select() takes no descriptor above 1023, which a rollout of many sockets may have
        answers.register(told, select.POLLIN)
        if not answers.poll(time_s * 1000):
            raise DeadlineError(f"comparing {answer[-80:]!r} with {label!r} took more than {time_s} s")
        line = told.readline()
        if not line:
            raise ComponentError(f"the process that compares {answer[-80:]!r} with {label!r} died")
        result = json.loads(line)
        if "fault" in result:
            raise _FaultError(result["fault"])
        return bool(result["equal"])

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a question that nobody reads any more
                    pipe.close()
