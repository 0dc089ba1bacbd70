"""Where signals neither die out nor blow up: the critical line of a nonlinearity, `w_std^2 E phi'^2 = 1`.

It is parametrised by the variance q: `w_std^2 = 1 / E phi'^2`, `b_std^2 = q - w_std^2 E phi^2`. Of ReLU, and of every function
whose variance only scales, it is a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.propagation.correlation import CRITICAL, correlations
from ntkpipe.propagation.maps import VARIANCES, Maps
from ntkpipe.propagation.roots import bisect
from ntkpipe.propagation.variance import settled

# Of `b_std^2 / q` along the line: below, it is rounding, and the line is a point.
_ROUNDING = 1e-12
# Of the moments' relative error.
_CONVERGED = 1e-9
# Of `w_std^2`: beyond, weights are no network's.
_LARGEST = 1e12


@dataclass(frozen=True)
class CriticalLine:
    """Points at which chi_1 = 1, by ascending variance.

    Args:
        q: the variance, `(n,)`.
        w_std: `(n,)`.
        b_std: `(n,)`.
        is_stable: the variance settles there, `(n,)`; where it does not, no network stays at the point.
    """

    q: np.ndarray
    w_std: np.ndarray
    b_std: np.ndarray
    is_stable: np.ndarray

    @property
    def is_point(self) -> bool:
        """One pair of deviations alone."""
        return len(self.q) == 1


def critical_line(maps: Maps) -> CriticalLine:
    """The whole line, tabulated; a point of such as ReLU (its q is NaN: every variance is fixed); empty where phi jumps."""
    w2, b2, is_stable = _tabulated(maps)
    if len(w2) == 1:
        return CriticalLine(np.array([np.nan]), np.sqrt(w2), np.zeros(1), is_stable)
    with np.errstate(invalid="ignore"):
        kept = b2 >= 0.0
    return CriticalLine(VARIANCES[kept], np.sqrt(w2[kept]), np.sqrt(b2[kept]), is_stable[kept])


def critical_w_std(maps: Maps, b_std: float, input_variance: float = 1.0) -> float | None:
    """The `w_std` at which networks with this `b_std` are critical, at a variance that is stable; None if there is none.

    Of several, the one at which inputs of this mean square settle.
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
    # Where the variance settles slowly, as 1 / depth, w_std is known far better than q is.
    order = [k for k, q in enumerate(found) if abs(reached[k] - q) <= 1e-3 * max(q, 1e-6)]
    return math.sqrt(float(of_found[order[0] if order else 0]))


def _tabulated(maps: Maps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At `VARIANCES`: `w_std^2`, `b_std^2` (negative, or NaN where no point is) and stability.

    Of a point one entry; none where phi jumps.
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
    usable &= np.abs(share) > 10.0 * maps.table_error  # not rounding alone
    return w2, np.where(usable, VARIANCES * share, np.nan), is_stable


def _variances(maps: Maps, b2: np.ndarray, b_std: float) -> list[float]:
    """Where the line has this `b_std`, and 0 if it begins there."""
    with np.errstate(invalid="ignore"):
        excess = b2 - b_std**2
        at = np.flatnonzero(np.sign(excess[:-1]) * np.sign(excess[1:]) < 0)

    def of(q: np.ndarray) -> np.ndarray:
        made = maps.squares(q)
        return q - made.value / made.dot - b_std**2

    roots = [float(q) for q in bisect(of, VARIANCES[at], VARIANCES[at + 1])] if len(at) else []
    begin = maps.squares(0.0)
    return [0.0, *roots] if b_std == 0.0 and begin.value == 0.0 and begin.dot > 0.0 else roots


def _is_stable(maps: Maps, q: float) -> bool:
    if q == 0.0:  # where the slope is 1 itself: from above
        near = maps.squares(1e-6)
        return float(near.value) <= 1e-6 * float(maps.squares(0.0).dot)
    made = maps.squares(q)
    return abs(float(made.slope)) <= float(made.dot) * (1.0 + CRITICAL)
