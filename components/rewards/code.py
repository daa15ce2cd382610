"""Do the tests of a programming task pass?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.rewards.sandbox import caller
from components.rewards.sandbox.sandbox import Sandbox
from components.rewards.sandbox.spec import Limits, Run
from slime_launch.errors import ComponentError
from slime_launch.types import Sample

_FENCED = re.compile(r"^```(?:python3?|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_CLOSING = re.compile(r"^```[ \t]*$", re.MULTILINE)
_TOLERANCE = 1e-6
_CALLER = Path(caller.__file__).read_text()


class Code:
    """The share of the prompt's tests that the response's Python passes, or 1.0 only when all of them do.

    The code is the response's last fenced block. ``prompt.metadata["tests"]`` is a list whose entries are either

    - ``{"stdin": text, "stdout": text}``: the code is a program; lines are compared, white space at their ends and
      empty lines at the end left out, or
    - ``{"call": "name" or "Class.method", "args": [...], "kwargs": {...}, "result": value}``: the code defines it; what
      it returns is compared as JSON, numbers within 1e-6 of each other.

    Fields that are null, but for the result of a call, count as absent: files with a column each fill them in so.

    Each test runs in a ``Sandbox`` of its own. What is expected never goes there: the code can fake an output, which
    is what it is asked for, but not a reward.

    credit: fraction, or all, which stops at the first test that fails.
    time_s, memory_mb, scratch_mb, output_kb, processes: of each test, see ``Limits``.
    concurrency: samples at a time; null: one a CPU core. folders: that the code may import from, e.g. a site-packages.
    """

    def __init__(
        self,
        credit: Literal["fraction", "all"] = "fraction",
        time_s: float = 5.0,
        memory_mb: int = 512,
        scratch_mb: int = 16,
        output_kb: int = 64,
        processes: int = 16,
        concurrency: int | None = None,
        folders: Sequence[str] = (),
    ) -> None:
        if credit not in ("fraction", "all"):
            raise ComponentError(f"credit={credit}: must be fraction or all")
        self._all = credit == "all"
        limits = Limits(time_s, memory_mb, scratch_mb, output_kb, processes)
        _refuse_nonsense(limits, concurrency)
        self._sandbox = Sandbox(limits, concurrency, folders)

    async def score_one(self, sample: Sample) -> float:
        """Its score, 0.0 to 1.0; 0.0 without code.

        Raises ComponentError for a prompt without tests and when the sandbox itself fails.
        """
        tests = _tests(sample)
        blocks = _blocks(sample.response)
        if not blocks:
            return 0.0
        passed = 0
        for script in ("main.py", "caller.py"):
            mine = [test for test in tests if test.script == script]
            if mine:
                now = await self._passed(blocks[-1], script, mine)
                if self._all and now < len(mine):
                    return 0.0
                passed += now
        return passed / len(tests)

    async def _passed(self, code: str, script: str, tests: Sequence[_Test]) -> int:
        """How many of the tests pass; where all must, none is run after the first that does not."""
        files = {"main.py": code, "caller.py": _CALLER}
        given = [test.given for test in tests]
        runs = await self._sandbox.run(
            files, script, given, lambda number, run: not self._all or _passes(tests[number], run)
        )
        return sum(map(_passes, tests, runs))


@dataclass(frozen=True)
class _Test:
    """Which file is started with which standard input, and what is expected: a text, or a JSON value of a call."""

    script: str
    given: str
    expected: Any


def _blocks(response: str) -> list[str]:
    """The code in fences, in time linear in the response's length: behind the last closing fence no block ends."""
    ends = [fence.end() for fence in _CLOSING.finditer(response)]
    return _FENCED.findall(response[: ends[-1]]) if ends else []


def _refuse_nonsense(limits: Limits, concurrency: int | None) -> None:
    least = {"time_s": 0.1, "memory_mb": 32, "scratch_mb": 1, "output_kb": 1, "processes": 1}
    most = {"time_s": 600, "memory_mb": 1 << 20, "scratch_mb": 1 << 14, "output_kb": 4096, "processes": 1024}
    for name in least:
        value = getattr(limits, name)
        whole = isinstance(value, int) or (name == "time_s" and isinstance(value, float))
        if isinstance(value, bool) or not whole or not least[name] <= value <= most[name]:
            kind = "number" if name == "time_s" else "whole number"
            raise ComponentError(f"{name}={value}: must be a {kind} from {least[name]} to {most[name]}")
    if concurrency is not None and (isinstance(concurrency, bool) or concurrency < 1):
        raise ComponentError(f"concurrency={concurrency}: must be at least 1, or null")


def _tests(sample: Sample) -> list[_Test]:
    tests = sample.prompt.metadata.get("tests")
    if not isinstance(tests, list) or not tests:
        raise ComponentError(
            f'source {sample.prompt.source}: metadata["tests"] is no list of tests; use this reward with tasks that '
            "have tests, or route the source to other parts"
        )
    return [_test(test, f"source {sample.prompt.source}: tests[{number}]") for number, test in enumerate(tests)]


def _test(test: object, where: str) -> _Test:
    if isinstance(test, Mapping):
        match _given(test):
            case {"stdin": str(stdin), "stdout": str(stdout), **rest} if not rest:
                return _Test("main.py", stdin, stdout)
            case {"call": str(name), "result": result, **rest} if rest.keys() <= {"args", "kwargs"}:
                return _Test("caller.py", json.dumps({"call": name, **rest}), result)
    raise ComponentError(f"{where} is neither {{stdin, stdout}} nor {{call, args, kwargs, result}}: {test!r:.200}")


def _given(test: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null: a parquet file fills in absent fields so. A call may be expected to return null."""
    kept = {"result"} if test.get("call") is not None else set()
    return {name: value for name, value in test.items() if value is not None or name in kept}


def _passes(test: _Test, run: Run) -> bool:
    if run.ended != "exit" or run.code != 0:
        return False
    if test.script == "main.py":
        return _lines(run.stdout) == _lines(test.expected)
    try:
        return _same(json.loads(run.stdout), test.expected)
    except (ValueError, RecursionError):  # whatever the code wrote in the place of a result
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same(given: Any, expected: Any) -> bool:
    """JSON equality, with numbers nearly equal where either is no integer; true is not 1."""
    if isinstance(expected, bool) or isinstance(given, bool) or not isinstance(expected, int | float | list | dict):
        return type(given) is type(expected) and bool(given == expected)
    if isinstance(expected, int | float):
        if not isinstance(given, int | float):
            return False
        whole = isinstance(given, int) and isinstance(expected, int)
        return given == expected if whole else _close(given, expected)
    if isinstance(expected, list):
        alike = isinstance(given, list) and len(given) == len(expected)
        return alike and all(map(_same, given, expected))
    alike = isinstance(given, dict) and given.keys() == expected.keys()
    return alike and all(_same(given[key], value) for key, value in expected.items())


def _close(given: float, expected: float) -> bool:
    try:
        return math.isclose(given, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # an integer that no float holds
        return False
