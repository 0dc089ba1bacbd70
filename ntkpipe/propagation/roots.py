"""Roots of many functions at once, by bisection: slow and sure, also where two roots nearly meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def bisect(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, steps: int = 64) -> np.ndarray:
    """Where f changes its sign between positive brackets, whose logarithms are halved.

    Args:
        f: of arrays like `low`, elementwise.
        low: above 0, `(n,)`.
        high: likewise; f has another sign there, or is 0.
        steps: 64 leave nothing of a bracket of 80 decades.

    Returns:
        The roots, `(n,)`; NaN where a bracket is.
    """
    low, high = np.log(low), np.log(high)
    begin = np.sign(f(np.exp(low)))
    for _ in range(steps):
        middle = 0.5 * (low + high)
        same = np.sign(f(np.exp(middle))) == begin
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.exp(0.5 * (low + high))
