"""The calculator: right where Python is, and harmless whatever it is given."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rollout.environments.calculator import Calculator, calculate
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt, Sample

NUMBERS = st.integers(0, 999).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from([" + ", "-", " * ", "//", "%"]), inner).map("({0[0]}{0[1]}{0[2]})".format)
        | inner.map("(-{})".format)
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_whole_numbers_are_pythons(expression: str) -> None:
    try:
        expected = str(eval(expression))
    except ZeroDivisionError:
        expected = "error: division by zero"
    assert calculate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("7 / 2", "3.5"), ("1 / 3", "0.333333333333"), ("0.1 + 0.2", "0.3"), ("2 ** 10", "1024"), ("2 ** -1", "0.5"),
        (" 6/3 ", "2"), ("1 ** 99999999", "1"), ("-3 + 5", "2"),
        ("10 ** 15 / 7", "1.42857142857E+14"), ("(" * 90 + "1" + ")" * 90, "1"), ("-" * 190 + "1", "1"),
    ],
)  # fmt: skip
def test_fractions_are_exact_until_they_are_shown(expression: str, answer: str) -> None:
    assert calculate(expression) == answer


HOSTILE = [
    "__import__('os').system('true')", "().__class__", "a", "9 ** 9 ** 9 ** 9", "2 ** 2000", "9" * 199, "9" * 4000,
    "1e999", "1e308 * 1e308", "1j", "True", "[1] * 9", "'a' * 9", "1 if 1 else 2", "lambda: 1", "print(1)", "1 << 9",
    "\x00", "", "1;2", "é", "x := 1", "4 ** 0.5", "1 < 2", "f'{1}'", "0 ** -1", "1 / 0",
]  # fmt: skip


@pytest.mark.parametrize("expression", HOSTILE)
def test_what_is_no_arithmetic_gets_an_error_for_an_answer(expression: str) -> None:
    answer = calculate(expression)
    assert answer.startswith("error: ")
    assert len(answer) < 80


@given(st.text(max_size=40) | st.text("0123456789+-*/%(). e", max_size=60))
def test_any_text_gets_a_short_answer(text: str) -> None:
    assert len(calculate(text)) < 100


def step(text: str, **options: str) -> list[dict[str, str]]:
    return asyncio.run(Calculator(**options).step(Sample(0, 0, Prompt([], ""), "", []), text))


def test_each_call_of_a_turn_is_answered() -> None:
    told = step("so <calc>2 * 3</calc> and <calc>\n1/0\n</calc> <calc>")
    assert told == [{"role": "tool", "content": "6"}, {"role": "tool", "content": "error: division by zero"}]
    assert step("[6]") == []
    assert step("=2*3;", pattern="=(.*?);") == [{"role": "tool", "content": "6"}]


@pytest.mark.parametrize("pattern", ["(", "calc", "(a)(b)"])
def test_a_pattern_has_one_group(pattern: str) -> None:
    with pytest.raises(ComponentError, match="calculator: pattern="):
        Calculator(pattern)


def test_calls_that_never_end_are_no_calls() -> None:
    """Half a million beginnings: a search that begins anew at each and runs to the end would take hours."""
    sample = Sample(0, 0, Prompt([], ""), "", [1])
    hostile = "<calc>" * 500_000
    assert asyncio.run(Calculator().step(sample, hostile)) == []
    assert asyncio.run(Calculator().step(sample, hostile + "1 + 1</calc>")) == [{"role": "tool", "content": "2"}]
