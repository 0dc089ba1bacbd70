"""Evaluates numbers such as `sqrt(2)`, `2**0.5`, `1e3` and `pi/2` from their syntax tree. It executes no code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_NAMES = {"pi": math.pi, "e": math.e, "inf": math.inf}
# Largest number of characters, because deep trees exhaust the parser.
_LONGEST = 100


def evaluated(text: str) -> float:
    """The value of an expression of decimals, `+ - * / **`, brackets, `sqrt`, `pi`, `e` and `inf`.

    Raises:
        ValueError: if the text is not such an expression, or its value is not real or too large.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long for a number")
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no number") from error
    if isinstance(found, complex) or math.isnan(found):
        raise ValueError(f"{text!r} is not a real number")
    return found


def _value(node: ast.expr) -> float:
    """The value of a node of the syntax tree."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return float(number)  # a float, because powers of integers may exhaust the memory
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=sign, operand=inner) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(inner))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id="sqrt"), args=[inner], keywords=[]):
            return math.sqrt(_value(inner))
        case _:
            pass
    raise ValueError("not an arithmetic expression of numbers")
