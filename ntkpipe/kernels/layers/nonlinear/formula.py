"""Formulas that users write, such as `x * sigmoid(x)`. They are parsed into a tree of known operations, never executed.

Python's parser reads the text. Every node is compared with the lists below, and any other node is an error. This module
imports neither JAX nor NumPy, so a spec can be checked without them.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ntkpipe.errors import ConfigError

# The functions that a formula may call, with their number of arguments. `step(x)` is 1 for x > 0, else 0.
FUNCTIONS: Mapping[str, int] = {
    "exp": 1,
    "expm1": 1,
    "log": 1,
    "log1p": 1,
    "tanh": 1,
    "sinh": 1,
    "cosh": 1,
    "sin": 1,
    "cos": 1,
    "asin": 1,
    "acos": 1,
    "atan": 1,
    "atan2": 2,
    "sqrt": 1,
    "abs": 1,
    "sign": 1,
    "step": 1,
    "erf": 1,
    "sigmoid": 1,
    "softplus": 1,
    "relu": 1,
    "max": 2,
    "min": 2,
}
CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}

# A parsed formula: `("number", 2.0)`, `("name", "x")`, `("power", base, 3.0)`, or an operation or function with its
# arguments, such as `("*", left, right)`, `("negative", value)` or `("exp", value)`.
Tree = tuple[Any, ...]

# A formula within the limits below has a canonical text shorter than _MAX_LENGTH, so it can be read again.
_MAX_LENGTH = 8192
_MAX_NODES = 256
_MAX_DEPTH = 64
_MAX_EXPONENT = 32.0

_BINARY: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3, "power": 4}


def parse(text: Any, variables: Sequence[str]) -> Tree:
    """Read a formula.

    Args:
        text: the formula, such as `x * sigmoid(x)`. It may contain numbers, `pi`, `e`, the variables, `+ - * /`, `**`
            with a number as exponent, parentheses, and the functions in `FUNCTIONS`. Any type is accepted and checked.
        variables: the names that stand for arguments, such as `("x",)`.

    Raises:
        ConfigError: if the text is not such a formula; the message begins with "formula" and names what is not allowed.
    """
    if not isinstance(text, str):
        raise ConfigError(f"formula must be text such as 'x * sigmoid(x)', got {type(text).__name__}")
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"formula of {len(text)} characters is too long: at most {_MAX_LENGTH}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise ConfigError(f"formula {_short(text)} cannot be read: {reason}") from None
    reader = _Reader(text, tuple(variables))
    return reader.read(tree, 0)


class _Reader:
    """Converts Python's syntax tree to a `Tree`, and counts its nodes."""

    def __init__(self, text: str, variables: tuple[str, ...]) -> None:
        self._text = text
        self._variables = variables
        self._nodes = 0

    def _refuse(self, what: str) -> ConfigError:
        return ConfigError(f"formula {_short(self._text)} {what}")

    def read(self, node: ast.expr, depth: int) -> Tree:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise self._refuse(
                f"is too large: at most {_MAX_NODES} numbers, names and operations, nested {_MAX_DEPTH} deep"
            )
        if isinstance(node, ast.Constant):
            return "number", self._number(node.value)
        if isinstance(node, ast.Name):
            if node.id in self._variables or node.id in CONSTANTS:
                return "name", node.id
            known = ", ".join((*self._variables, *CONSTANTS))
            raise self._refuse(f"uses the name {node.id}; known names: {known}")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self.read(node.operand, depth + 1)
            return value if isinstance(node.op, ast.UAdd) else ("negative", value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return "power", self.read(node.left, depth + 1), self._exponent(node.right)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)], self.read(node.left, depth + 1), self.read(node.right, depth + 1)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._refuse(
            f"contains {_kind(node)}, which is not allowed: only + - * / **, numbers, names and function calls"
        )

    def _call(self, node: ast.Call, depth: int) -> Tree:
        if not isinstance(node.func, ast.Name):
            raise self._refuse(f"calls {_kind(node.func)}: only functions by name, such as exp(x)")
        name = node.func.id
        if name not in FUNCTIONS:
            raise self._refuse(f"calls {name}; known functions: {', '.join(FUNCTIONS)}")
        if node.keywords or len(node.args) != FUNCTIONS[name]:
            raise self._refuse(f"calls {name} with other than {FUNCTIONS[name]} plain argument(s)")
        return (name, *(self.read(argument, depth + 1) for argument in node.args))

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._refuse(f"contains {type(value).__name__} {_short(repr(value))}: only numbers")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._refuse("contains a number too large for float64")
        return number

    def _exponent(self, node: ast.expr) -> float:
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign = -sign if isinstance(node.op, ast.USub) else sign
            node = node.operand
        if not isinstance(node, ast.Constant):
            raise self._refuse("has an exponent that is not a number: write exp(b * log(a)) for a ** b")
        value = sign * self._number(node.value)
        if abs(value) > _MAX_EXPONENT:
            raise self._refuse(f"has the exponent {value:g}: at most {_MAX_EXPONENT:g} in size")
        return value


def canonical_text(tree: Tree) -> str:
    """Return the canonical text of a formula, which `parse` reads back to the same tree."""
    return _written(tree, 0)


def _written(tree: Tree, least: int) -> str:
    """Return the text of a tree, in parentheses if its precedence is below `least`."""
    op = tree[0]
    if op == "number":
        return repr(tree[1])
    if op == "name":
        return tree[1]
    if op in FUNCTIONS:
        return f"{op}({', '.join(_written(argument, 0) for argument in tree[1:])})"
    level = _PRECEDENCE[op]
    if op == "negative":
        text = f"-{_written(tree[1], level)}"
    elif op == "power":
        text = f"{_written(tree[1], level + 1)} ** {tree[2]!r}"
    else:
        text = f"{_written(tree[1], level)} {op} {_written(tree[2], level + 1)}"
    return f"({text})" if level < least else text


def evaluate(tree: Tree, operations: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]) -> Any:
    """Return the value of a formula.

    Args:
        tree: from `parse`.
        operations: one function for each name in `FUNCTIONS`, and one for `power`.
        values: values of the variables, of a type that supports `+ - * /`.
    """
    op, *arguments = tree
    if op == "number":
        return arguments[0]
    if op == "name":
        return values[arguments[0]] if arguments[0] in values else CONSTANTS[arguments[0]]
    if op == "power":
        return operations["power"](evaluate(arguments[0], operations, values), arguments[1])
    made = [evaluate(argument, operations, values) for argument in arguments]
    if op == "negative":
        return -made[0]
    if op == "+":
        return made[0] + made[1]
    if op == "-":
        return made[0] - made[1]
    if op == "*":
        return made[0] * made[1]
    if op == "/":
        return made[0] / made[1]
    return operations[op](*made)


def evaluate_number(tree: Tree, values: Mapping[str, float]) -> float:
    """Return the value at one point as a Python float; NaN where the formula is complex, infinite or undefined."""
    try:
        value = evaluate(tree, PYTHON, values)
    except (ArithmeticError, ValueError):
        return math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan


PYTHON: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in FUNCTIONS if hasattr(math, name)},
    "power": lambda base, exponent: base**exponent,
    "abs": abs,
    "sign": lambda x: math.copysign(1.0, x) if x else 0.0,
    "step": lambda x: 1.0 if x > 0 else 0.0,
    "sigmoid": lambda x: 0.5 * (1.0 + math.tanh(0.5 * x)),
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "relu": lambda x: max(x, 0.0),
    "max": max,
    "min": min,
}

_POINTS = (-3.1, -1.3, -0.4, -0.02, 0.02, 0.3, 1.1, 2.9)
_COVARIANCES = ((0.3, 0.7, 1.1), (-0.4, 0.7, 1.1), (0.02, 1.7, 0.05), (0.0, 1.0, 2.0), (0.9, 1.0, 1.0))


def canonical_function(text: Any) -> str:
    """Return the canonical text of a function of x.

    Raises:
        ConfigError: if it cannot be read, or is not a finite real number at some x.
    """
    tree = parse(text, ("x",))
    for x in _POINTS:
        if not math.isfinite(evaluate_number(tree, {"x": x})):
            raise ConfigError(f"formula {_short(text)} is not a finite real number at x = {x:g}")
    return canonical_text(tree)


def canonical_covariance(text: Any) -> str:
    """Return the canonical text of a kernel as a function of k, p and q.

    Raises:
        ConfigError: if it cannot be read, is not a finite real number for some covariance, or is not symmetric in p and
            q.
    """
    tree = parse(text, ("k", "p", "q"))
    for k, p, q in _COVARIANCES:
        value = evaluate_number(tree, {"k": k, "p": p, "q": q})
        if not math.isfinite(value):
            raise ConfigError(f"formula {_short(text)} is not a finite real number at k = {k:g}, p = {p:g}, q = {q:g}")
        swapped = evaluate_number(tree, {"k": k, "p": q, "q": p})
        # The order of the terms changes the result by a few roundings of 2^-53 each.
        if not abs(value - swapped) <= 1e-9 * max(abs(value), 1.0):
            raise ConfigError(
                f"formula {_short(text)} changes when p and q are swapped, but a kernel must be symmetric"
            )
    return canonical_text(tree)


def canonical_decay(text: Any) -> str:
    """Return the canonical text of a function of a distance d >= 0.

    Raises:
        ConfigError: if it cannot be read, or is not a finite real number at some distance.
    """
    tree = parse(text, ("d",))
    for d in (0.0, 1.0, 2.0, 5.0, 100.0):
        if not math.isfinite(evaluate_number(tree, {"d": d})):
            raise ConfigError(f"formula {_short(text)} is not a finite real number at d = {d:g}")
    return canonical_text(tree)


def _kind(node: ast.AST) -> str:
    """Return the name of a syntax node for an error message: `Attribute` is `attribute`, `BoolOp` is `bool op`."""
    name = type(getattr(node, "op", node)).__name__
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
