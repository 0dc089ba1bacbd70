"""The kinks and jumps of a formula, found in its tree: the places where integrals have to be split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.layers.nonlinear.formula import Tree, parse
from ntkpipe.kernels.layers.nonlinear.operations import apply_formula

# Functions that are not smooth where their argument is 0, and those that are not smooth where their arguments agree.
_OF_ONE = ("abs", "sign", "step", "relu")
_OF_TWO = ("max", "min")
# Arguments are searched for changes of sign at these points. The grid is not symmetric, so a kink at 0 lies within an interval.
_GRID = np.sort(
    np.concatenate([np.linspace(-60.0007, 60.0, 24_001), np.geomspace(60.1, 1e4, 400), -np.geomspace(60.1, 1e4, 400)])
)
# Periodic functions have a kink in every period; those nearest 0 have most of the weight.
_MOST = 24
_STEPS = 60


@lru_cache(maxsize=64)
def kinks(function: str) -> tuple[tuple[float, ...], bool]:
    """Return where a formula or its derivative may jump, and whether the formula itself jumps somewhere.

    Args:
        function: the formula of x.

    Returns:
        The places, ascending, at most 24 (those nearest 0), and whether the value differs on both sides of one of them.
    """
    tree = parse(function, ("x",))
    places: set[float] = set()
    with precision_context(np.float64):
        for argument in _arguments(tree):
            places.update(_roots(argument))
        found = tuple(sorted(sorted(places, key=abs)[:_MOST]))
        if not found:
            return (), False
        at = np.array(found)
        close, wide = (
            np.abs(_values(tree, at + h) - _values(tree, at - h)) for h in (1e-9 * _scale(at), 1e-7 * _scale(at))
        )
    # Across a jump the difference does not depend on the distance; across a kink it falls with it.
    return found, bool(np.any((close > 0.5 * wide) & (close > 1e-12)))


def _scale(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), 1.0)


def _arguments(tree: Tree) -> Iterator[Tree]:
    """Yield the expressions whose roots are kinks."""
    if tree[0] in _OF_ONE:
        yield tree[1]
    if tree[0] in _OF_TWO:
        yield ("-", tree[1], tree[2])
    for part in tree[1:]:
        if isinstance(part, tuple):
            yield from _arguments(part)


def _values(tree: Tree, x: np.ndarray) -> np.ndarray:
    return np.asarray(apply_formula(tree, x=jnp.asarray(x, jnp.float64)))


def _roots(argument: Tree) -> list[float]:
    """Return where an expression changes its sign, by bisection."""
    values = _values(argument, _GRID)
    at = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    low, high, begin = _GRID[at], _GRID[at + 1], np.sign(values[at])
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        same = np.sign(_values(argument, middle)) == begin
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    found = np.concatenate([0.5 * (low + high), _GRID[values == 0.0]])
    # Bisection ends a rounding beside a kink at 0, where rules are split exactly.
    return [0.0 if abs(x) < 1e-14 else float(x) for x in found]
