"""Roots of many functions at once by bisection, which is slow but also works for nearly equal roots."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Bisections that resolve a bracket of 80 decades to rounding.
_STEPS = 64


def bisect(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Find where f changes its sign inside positive brackets, by bisecting their logarithms.

    Args:
        f: elementwise function of arrays `(n,)`.
        low: lower ends, above 0, `(n,)`.
        high: upper ends, `(n,)`, where f is 0 or has the opposite sign.

    Returns:
        The roots, `(n,)`; NaN where a bracket is NaN.
    """
    begin = np.sign(f(low))  # not at exp(log(low)), which may lie beyond a root that is the end itself
    low, high = np.log(low), np.log(high)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        same = np.sign(f(np.exp(middle))) == begin
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.exp(0.5 * (low + high))
