"""The critical line of a nonlinearity, `w_std^2 E phi'^2 = 1`, on which gradients neither vanish nor explode.

It is parametrised by the variance q: `w_std^2 = 1 / E phi'^2` and `b_std^2 = q - w_std^2 E phi^2`. For ReLU and every
other positively homogeneous function it is a single point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ntkpipe.propagation.correlation import CRITICAL, correlations
from ntkpipe.propagation.maps import VARIANCES, Maps
from ntkpipe.propagation.roots import bisect
from ntkpipe.propagation.variance import settled

# If `b_std^2 / q` is below this along the whole line, it is rounding, and the line is a point.
_ROUNDING = 1e-12
# Largest relative error of converged moments.
_CONVERGED = 1e-9
# Largest `w_std^2` of the line.
_LARGEST = 1e12


@dataclass(frozen=True)
class CriticalLine:
    """The points with chi_1 = 1, by ascending variance.

    Args:
        q: variances, `(n,)`.
        w_std: standard deviations of the weights, `(n,)`.
        b_std: standard deviations of the biases, `(n,)`.
        is_stable: whether q is a stable fixed point of the variance, `(n,)`. Networks do not stay at unstable points.
    """

    q: np.ndarray
    w_std: np.ndarray
    b_std: np.ndarray
    is_stable: np.ndarray

    @property
    def is_point(self) -> bool:
        """Whether the line is a single pair of standard deviations."""
        return len(self.q) == 1


def critical_line(maps: Maps) -> CriticalLine:
    """Return the whole line, tabulated.

    It is a single point for functions such as ReLU (with q NaN, because every variance is a fixed point), and empty if
    phi jumps.
    """
    w2, b2, is_stable = _tabulated(maps)
    if len(w2) == 1:
        return CriticalLine(np.array([np.nan]), np.sqrt(w2), np.zeros(1), is_stable)
    with np.errstate(invalid="ignore"):
        kept = b2 >= 0.0
    return CriticalLine(VARIANCES[kept], np.sqrt(w2[kept]), np.sqrt(b2[kept]), is_stable[kept])


def critical_w_std(maps: Maps, b_std: float, input_variance: float = 1.0) -> float | None:
    """Return the `w_std` at which networks with this `b_std` are critical at a stable variance; None if there is none.

    If there are several, it is the one whose variance is reached from inputs of mean square `input_variance`.
    """
    w2, b2, _ = _tabulated(maps)
    if len(w2) == 1:
        return math.sqrt(float(w2[0])) if b_std == 0.0 else None
    found = [q for q in _variances(maps, b2, b_std) if _is_stable(maps, q)] if len(w2) else []
    if not found:
        return None
    of_found = np.array([1.0 / float(maps.squares(q).dot) for q in found])
    biases = np.full(len(found), b_std**2)
    reached = settled(maps, of_found, biases, of_found * input_variance + biases)
    # Where the variance converges slowly, as 1 / depth, w_std is known much more accurately than q.
    order = [k for k, q in enumerate(found) if abs(reached[k] - q) <= 1e-3 * max(q, 1e-6)]
    return math.sqrt(float(of_found[order[0] if order else 0]))


def _tabulated(maps: Maps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `w_std^2`, `b_std^2` (negative or NaN where there is no point) and stability at `VARIANCES`.

    There is one entry if the line is a point, and none if phi jumps.
    """
    table = maps.table
    made = correlations(maps, np.ones(1), np.ones(1))
    if np.isinf(made.chi_1[0]) or not np.any(table.dot > 0.0):
        return np.empty(0), np.empty(0), np.empty(0, bool)
    with np.errstate(all="ignore"):
        w2 = 1.0 / table.dot
        share = 1.0 - w2 * table.value / VARIANCES
        is_stable = np.abs(w2 * table.slope) <= 1.0 + CRITICAL
    usable = (maps.table_error < _CONVERGED) & np.isfinite(w2) & np.isfinite(share) & (w2 > 0.0) & (w2 < _LARGEST)
    if usable.any() and np.all(np.abs(share[usable]) <= _ROUNDING):
        return np.array([float(np.median(w2[usable]))]), np.zeros(1), np.ones(1, bool)
    usable &= np.abs(share) > 10.0 * maps.table_error  # larger than rounding
    return w2, np.where(usable, VARIANCES * share, np.nan), is_stable


def _variances(maps: Maps, b2: np.ndarray, b_std: float) -> list[float]:
    """Return the variances at which the line has this `b_std`, including 0 if the line begins there."""
    known = ~np.isnan(b2)
    above = b2 > b_std**2  # a variance of the table that is itself the answer lies in one bracket, not in two or none
    at = np.flatnonzero((above[:-1] != above[1:]) & known[:-1] & known[1:])

    def of(q: np.ndarray) -> np.ndarray:
        made = maps.squares(q)
        return q - made.value / made.dot - b_std**2

    roots = [float(q) for q in _between(of, VARIANCES[at], VARIANCES[at + 1])] if len(at) else []
    begin = maps.squares(0.0)
    return [0.0, *roots] if b_std == 0.0 and begin.value == 0.0 and begin.dot > 0.0 else roots


def _between(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return roots of f between neighbours of the table. The table has other rounding errors than f: where f has the same
    sign at both ends, the root is the end at which it is smaller.
    """
    at_low, at_high = f(low), f(high)
    nearer = np.where(np.abs(at_low) < np.abs(at_high), low, high)
    return np.where(np.sign(at_low) == np.sign(at_high), nearer, bisect(f, low, high))


def _is_stable(maps: Maps, q: float) -> bool:
    if q == 0.0:  # where the slope is 1 itself: from above
        near = maps.squares(1e-6)
        return float(near.value) <= 1e-6 * float(maps.squares(0.0).dot)
    made = maps.squares(q)
    return abs(float(made.slope)) <= float(made.dot) * (1.0 + CRITICAL)
