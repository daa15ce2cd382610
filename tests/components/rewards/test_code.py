"""The code reward: what counts as passing, and that no code gives itself a point."""

import asyncio

import pyarrow as pa
import pytest

from components.rewards.code import Code, _same
from components.rewards.sandbox import sandbox as module
from components.rewards.sandbox.sandbox import Sandbox
from slime_launch.errors import ComponentError
from slime_launch.interfaces import SingleReward
from tests.components.rewards.hostile import FORGERIES, no_sandbox
from tests.components.rewards.samples import sample

pytestmark = pytest.mark.skipif(no_sandbox() is not None, reason=str(no_sandbox()))
ADD = [
    {"stdin": "1 2\n", "stdout": "3\n"},
    {"stdin": "5 5\n", "stdout": "10"},
]
CALLS = [
    {"call": "f", "args": [3], "result": 4711},
    {"call": "f", "kwargs": {"x": 0}, "result": 4708},
]
SECRET = [{"call": "f", "args": [3], "result": 4711}, {"stdin": "3\n", "stdout": "4711\n"}]


def written(code, tests, before="Thinking ```x``` of it.\n"):
    return sample(f"{before}```python\n{code}\n```\nDone.", metadata={"tests": tests})


def scores(samples, **args):
    async def all_of_them():
        code = Code(**args)
        assert isinstance(code, SingleReward)
        return await asyncio.gather(*map(code.score_one, samples))

    return asyncio.run(all_of_them())


def test_shares_of_tests():
    program = "a, b = map(int, input().split())\nprint(a + b, '  ')\nprint()"
    solution = "class Solution:\n    def f(self, x): return {'k': (x, 1 / 3, None, True)}"
    answers = [
        written(program, ADD),
        written("input(); print(3)", ADD),
        written("while True: pass", ADD[:1]),
        written("def f(x): return 4708 + x", CALLS),
        written("print('noise')\ndef f(x):\n    print('more')\n    return 4711", CALLS),
        written("def f(x): return 4708 + x\nif __name__ == '__main__': print(int(input()) + 4708)", SECRET),
        written(solution, [{"call": "Solution.f", "args": [2], "result": {"k": [2, 0.3333333, None, True]}}]),
        written("raise SystemExit", ADD, before="```python\nprint('an earlier try')\n```\n"),
        sample("print(3)", metadata={"tests": ADD}),
        sample("```python\nprint(3)", metadata={"tests": ADD}),
        sample("```python\nx\n" * 200_000, metadata={"tests": ADD}),  # for hours, if read to the end from each fence
    ]
    wanted = [1.0, 0.5, 0.0, 1.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores(answers, time_s=2.0) == wanted
    assert scores([answers[0], answers[1], answers[4]], credit="all") == [1.0, 0.0, 0.0]


def test_all_or_nothing_stops_at_the_first_failure(monkeypatch):
    done = []

    async def counted(self, *args, **more):
        runs = await real(self, *args, **more)
        done.append(len(runs))
        return runs

    real = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", counted)
    wrong = written("print(0)\ndef f(x): return 4711", [*ADD * 3, *CALLS])
    assert scores([wrong], credit="all") == [0.0] and done == [1]
    assert scores([wrong]) == [1 / 8] and done == [1, 6, 2]


def test_endless_code_ends_no_run(monkeypatch):
    """Each test takes its whole time, and a while to set up."""
    monkeypatch.setattr(module, "_SPARE_S", 0.0)
    tests = [{"stdin": "", "stdout": "x"}] * 20
    assert scores([written("while True: pass", tests)], time_s=0.1) == [0.0]


def test_tests_of_both_kinds_come_from_one_table():
    """Arrow gives every row all columns, with null where there was nothing."""
    rows = [{"stdin": "3\n", "stdout": "4711\n"}, {"call": "f", "args": [3], "result": 4711}]
    table = [[row] for row in pa.array(rows).to_pylist()]
    assert table[0][0].keys() == {"stdin", "stdout", "call", "args", "result"}
    code = "def f(x): return x + 4708\nif __name__ == '__main__': print(f(int(input())))"
    nothing = [{"call": "f", "args": [3], "kwargs": None, "result": None, "stdin": None}]
    assert scores([*(written(code, tests) for tests in table), written("def f(x): pass", nothing)]) == [1.0] * 3


def test_no_code_gives_itself_a_point():
    forged = [written(code, SECRET) for code in FORGERIES.values()]
    honest = written("def f(x): return 4711\nprint(4711)", [SECRET[1]])
    given = scores([*forged, honest])
    assert dict(zip(FORGERIES, given, strict=False)) == dict.fromkeys(FORGERIES, 0.0)
    assert given[-1] == 1.0


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (1, True, False), (True, 1, False), (1, 1.0, True), (1.0000001, 1, True), (1.1, 1, False), (None, None, True),
        (None, False, False), ("1", 1, False), (1, "1", False), ([1, [2.0]], [1, [2]], True), ([1], [1, 1], False),
        ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False), (10**400, 1.0, False), (10**400, 10**400, True),
        (float("nan"), 1.0, False), (2**53 + 1, 2**53, False), ({}, [], False),
    ],
)  # fmt: skip
def test_same_results(given, expected, same):
    assert _same(given, expected) is same


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "source digits: .*no list of tests"),
        ({"tests": []}, "no list of tests"),
        ({"tests": [*ADD, {"stdin": "1"}]}, r"tests\[2\] is neither"),
        ({"tests": [{"stdin": "1", "stdout": "1", "result": 1}]}, r"tests\[0\] is neither"),
        ({"tests": [{"call": "f", "argz": [1], "result": 1}]}, "is neither"),
        ({"tests": ["assert f(1) == 2"]}, "is neither"),
    ],
)
def test_refuses_tests(metadata, says):
    with pytest.raises(ComponentError, match=says):
        scores([sample("```python\nprint(1)\n```", metadata=metadata)])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"credit": "some"}, "credit=some"),
        ({"time_s": 0}, "time_s=0: must be a number from 0.1"),
        ({"memory_mb": 1.5}, "memory_mb=1.5: must be a whole"),
        ({"processes": True}, "processes=True"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"folders": ["nowhere"]}, "folders=.*nowhere"),
    ],
)
def test_refuses_arguments(args, says):
    with pytest.raises(ComponentError, match=says):
        Code(**args)
