"""A calculator: the model writes ``<calc>88 * 94 + 83</calc>`` and is told 8355."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from fractions import Fraction

from slime_launch.errors import ComponentError
from slime_launch.types import Sample

CALL = r"<calc>((?:(?!<calc>).)*?)</calc>"
"""Never past another call's beginning: the search of hostile text takes time in proportion to its length."""
MAX_CHARACTERS = 200
MAX_BITS = 256
"""Of numerator and denominator of every number on the way."""
_SHOWN = Context(prec=12)

_Number = Callable[[Fraction, Fraction], Fraction | int]
_BINARY: Mapping[type[ast.operator], _Number] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Calculator:
    """components.rollout.tools.Environment: a turn without a call ends the rollout, each call gets a tool message.

    pattern: of a call; its one group is the expression. An expression that is none is answered by ``error: ...``.
    """

    def __init__(self, pattern: str = CALL) -> None:
        try:
            self._pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ComponentError(f"calculator: pattern={pattern}: not a regular expression ({error})") from error
        if self._pattern.groups != 1:
            raise ComponentError(f"calculator: pattern={pattern}: needs exactly one group, around the expression")

    async def step(self, sample: Sample, text: str) -> list[dict[str, str]]:
        """The answer to each call of a turn."""
        return [{"role": "tool", "content": calculate(call)} for call in self._pattern.findall(text)]


def calculate(expression: str) -> str:
    """Value of an arithmetic expression, exact if it is whole, else to 12 digits; or what is wrong with it.

    Numbers, ``+ - * / // % **`` and brackets; nothing else is looked up or run, and sizes are bounded at every step.
    """
    if len(expression) > MAX_CHARACTERS:
        return f"error: longer than {MAX_CHARACTERS} characters"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"error: {error.args[0] if isinstance(error, _Refused) else 'not an expression'}"
    if value.denominator == 1:
        return str(value.numerator)
    shown = _SHOWN.divide(Decimal(value.numerator), Decimal(value.denominator))
    return str(shown.normalize(_SHOWN))


class _Refused(ValueError):
    """An expression that is well-formed and not calculated; the message says why."""


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(Fraction(str(number)))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(Fraction(_BINARY[type(op)](_value(left), _value(right))))
    raise _Refused("only numbers, + - * / // % ** and brackets")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _Refused("only whole powers")
    if abs(exponent) * (_bits(base) - 1) > MAX_BITS:
        raise _Refused("too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bits(value: Fraction) -> int:
    return max(abs(value.numerator), value.denominator).bit_length()


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _Refused("too large")
    return value
