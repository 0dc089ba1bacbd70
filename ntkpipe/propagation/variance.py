"""Fixed points of the variance, `q = w_std^2 E phi(sqrt q z)^2 + b_std^2` (arXiv:1606.05340)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.propagation.maps import VARIANCES, Maps
from ntkpipe.propagation.roots import bisect

# Relative difference of V(q) and q below which every q counts as a fixed point: the rounding of w_std^2 and the
# moments.
_ROUNDING = 1e-11
# Number of applications of a map that is not monotone before a fixed point is searched nearby.
_APPLICATIONS = 2000


@dataclass(frozen=True)
class FixedPoint:
    """A fixed point of the variance.

    Args:
        q: the variance.
        slope: V'(q), the factor by which each layer multiplies a deviation.
    """

    q: float
    slope: float

    @property
    def is_stable(self) -> bool:
        """Whether deviations do not grow."""
        return abs(self.slope) <= 1.0 + 1e-9


def every_variance_is_fixed(maps: Maps, w2: float, b2: float) -> bool:
    """Return whether every variance is a fixed point, as for ReLU at its critical point."""
    return b2 == 0.0 and bool(np.all(np.abs(_excess(maps, w2, b2)) <= _ROUNDING * VARIANCES))


def fixed_points(maps: Maps, w2: float, b2: float) -> list[FixedPoint]:
    """Return all fixed points, ascending, including 0. The list is empty if every variance is a fixed point.

    Two fixed points within 1% of each other may be missed.
    """
    if every_variance_is_fixed(maps, w2, b2):
        return []
    excess = _excess(maps, w2, b2)
    at = np.flatnonzero(np.sign(excess[:-1]) * np.sign(excess[1:]) < 0)
    roots = _between(maps, np.full(len(at), w2), np.full(len(at), b2), VARIANCES[at], VARIANCES[at + 1])
    roots = np.union1d(roots, VARIANCES[excess == 0.0])
    if b2 == 0.0 and float(maps.squares(0.0).value) == 0.0:
        roots = np.concatenate([[0.0], roots])
    slopes = w2 * maps.squares(roots).slope if len(roots) else roots
    return [FixedPoint(float(q), float(slope)) for q, slope in zip(roots, slopes, strict=True)]


def settled(maps: Maps, w2: np.ndarray, b2: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the limits of the variances, `(n,)`.

    Args:
        maps: maps of the nonlinearity.
        w2: squares of `w_std`, `(n,)`.
        b2: squares of `b_std`, `(n,)`.
        start: variances of the first layer, `(n,)`, above 0.

    Returns:
        The limits: 0 where the variance vanishes with depth, infinite where it grows without bound, NaN where it
        oscillates.
    """
    table = maps.table.value
    known = table[np.isfinite(table)]
    if not np.all(np.diff(known) >= -1e-12 * known[1:]):
        return np.array([_iterated(maps, *one) for one in zip(w2, b2, start, strict=True)])
    made = np.empty(len(w2))
    low, high = np.ones(len(w2)), np.ones(len(w2))
    first = w2 * maps.squares(start).value + b2 - start
    searched = np.zeros(len(w2), bool)
    for k in range(len(w2)):
        if every_variance_is_fixed(maps, w2[k], b2[k]) or first[k] == 0.0:
            made[k] = start[k]
            continue
        excess = _excess(maps, w2[k], b2[k])
        if first[k] > 0.0:
            at = np.flatnonzero((start[k] < VARIANCES) & (excess <= 0.0))
            if not len(at):
                made[k] = np.inf
                continue
            low[k], high[k] = max(start[k], VARIANCES[max(at[0] - 1, 0)]), VARIANCES[at[0]]
        else:
            at = np.flatnonzero((start[k] > VARIANCES) & (excess >= 0.0))
            if not len(at):
                made[k] = 0.0
                continue
            low[k], high[k] = VARIANCES[at[-1]], min(start[k], VARIANCES[min(at[-1] + 1, len(VARIANCES) - 1)])
        searched[k] = True
    if searched.any():
        made[searched] = _between(maps, w2[searched], b2[searched], low[searched], high[searched])
    return made


def _excess(maps: Maps, w2: float, b2: float) -> np.ndarray:
    """Return `V(q) - q` at `VARIANCES`.

    Without biases it may be below rounding near 0. There it has the sign of the smallest variance that shows one, so that
    rounding is no fixed point.
    """
    with np.errstate(over="ignore"):
        excess = w2 * maps.table.value + b2 - VARIANCES
    shown = np.flatnonzero(np.abs(excess) > _ROUNDING * VARIANCES)
    if b2 == 0.0 and len(shown) and (first := int(shown[0])):
        excess[:first] = np.sign(excess[first]) * _ROUNDING * VARIANCES[:first]
    return excess


def _between(maps: Maps, w2: np.ndarray, b2: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return bisect(lambda q: w2 * maps.squares(q).value + b2 - q, low, high) if len(low) else low


def _iterated(maps: Maps, w2: float, b2: float, start: float) -> float:
    """Return the limit by applying the map repeatedly; it may jump over fixed points."""
    points = [point for point in fixed_points(maps, w2, b2) if point.is_stable]
    q = start
    for _ in range(_APPLICATIONS):
        before, q = q, float(w2 * maps.squares(q).value + b2)
        if not np.isfinite(q):
            return np.inf
        if abs(q - before) <= 1e-12 * q:
            break
    near = [point.q for point in points if abs(point.q - q) <= 0.02 * max(point.q, 1e-300)]
    return near[0] if near else (np.inf if q > VARIANCES[-1] else np.nan)
