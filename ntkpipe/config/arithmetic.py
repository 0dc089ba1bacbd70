"""Numbers as people write them: `sqrt(2)`, `2**0.5`, `1e3`, `pi/2`. Nothing is executed: the tree of the text is walked."""

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
# Longer texts are no number that somebody typed, and deep trees exhaust the parser.
_LONGEST = 100


def evaluated(text: str) -> float:
    """The number that a text stands for: decimals, `+ - * / **`, brackets, `sqrt`, `pi`, `e` and `inf`.

    Raises:
        ValueError: if it stands for none, or for one that is not real or too large.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long for a number")
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no number") from error
    if isinstance(found, complex) or math.isnan(found):
        raise ValueError(f"{text!r} is no real number")
    return found


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return float(number)  # floats alone: powers of integers may take all memory
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
    raise ValueError("no arithmetic of numbers")
