"""Processes that do one kind of job each, bounded in time and memory, killed when they are late."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import queue
import select
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from slime_launch.errors import ComponentError, DeadlineError

_WORKER = Path(__file__).with_name("pool_worker.py")
_START_S = 60.0
"""Longest wait for a new process: it imports what its job needs."""


class Pool:
    """Processes that answer questions, started when first needed; each is asked by one thread at a time.

    job: a Python file that defines ``prepare()``, run once in each process, and ``answer(question)``, whose result JSON
        can hold. time_s, memory_mb: bounds of one answer. A process that breaks the first is killed and made anew.
    workers: questions at once. Knows no event loop, and never blocks the one that asks.
    """

    def __init__(self, job: Path, time_s: float, memory_mb: int, workers: int) -> None:
        if not (time_s > 0 and memory_mb >= 256 and workers >= 1):
            raise ComponentError(
                f"time_s={time_s}, memory_mb={memory_mb}, workers={workers}: need time_s > 0, memory_mb >= 256 "
                "and workers >= 1"
            )
        self._job, self._time_s, self._memory_mb = job, time_s, memory_mb
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=job.stem)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    async def ask(self, question: Mapping[str, Any], what: str) -> Any:
        """What the job answers; ``what`` says in errors what was under way.

        Raises DeadlineError when it takes too long, ComponentError when it breaks off or its process dies.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question, what)

    async def close(self) -> None:
        """End the processes, once those that work are done."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().kill()

    def _ask(self, question: Mapping[str, Any], what: str) -> Any:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._job, self._memory_mb)
        try:
            told = worker.ask(question, self._time_s, what)
        except BaseException:
            worker.kill()
            raise
        self._idle.put(worker)
        if "fault" in told:
            raise ComponentError(f"{what}: {told['fault']}")
        return told["result"]


class _Worker:
    def __init__(self, job: Path, memory_mb: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER), str(job), str(memory_mb)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            self.ask(None, _START_S, f"starting {job.stem}")
        except BaseException:
            self.kill()
            raise

    def ask(self, question: Mapping[str, Any] | None, time_s: float, what: str) -> dict[str, Any]:
        """Raises DeadlineError after ``time_s``, ComponentError when the process is gone: it is of no use then."""
        asked, told = self._process.stdin, self._process.stdout
        if asked is None or told is None:
            raise ComponentError(f"{what}: its process has no pipes")
        try:
            pickle.dump(question, asked)
            asked.flush()
        except OSError as error:
            raise ComponentError(f"{what}: its process is gone ({error})") from error
        answers = select.poll()  # select() takes no descriptor above 1023, which a rollout of many sockets may have
        answers.register(told, select.POLLIN)
        if not answers.poll(time_s * 1000):
            raise DeadlineError(f"{what} took more than {time_s} s")
        line = told.readline()
        if not line:
            raise ComponentError(f"{what}: its process died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a question that nobody reads any more
                    pipe.close()
