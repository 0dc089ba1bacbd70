"""Fixed points of the variance, `q = w_std^2 E phi(sqrt q z)^2 + b_std^2` (arXiv:1606.05340)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.propagation.maps import VARIANCES, Maps
from ntkpipe.propagation.roots import bisect

# By how much V(q) may differ from q, relatively, where every q is a fixed point: rounding of w_std^2 and of the moments.
_ROUNDING = 1e-11
# Applications of a map that is not monotone, after which its fixed point is looked for nearby.
_APPLICATIONS = 2000


@dataclass(frozen=True)
class FixedPoint:
    """A variance that layers keep.

    Args:
        q: the variance.
        slope: V'(q): deviations shrink by it from layer to layer.
    """

    q: float
    slope: float

    @property
    def is_stable(self) -> bool:
        """Deviations do not grow."""
        return abs(self.slope) <= 1.0 + 1e-9


def every_variance_is_fixed(maps: Maps, w2: float, b2: float) -> bool:
    """Such as of ReLU at its critical point: the variance of the data stays what it is."""
    return b2 == 0.0 and bool(np.all(np.abs(_excess(maps, w2, b2)) <= _ROUNDING * VARIANCES))


def fixed_points(maps: Maps, w2: float, b2: float) -> list[FixedPoint]:
    """All of them, ascending; 0 too, where it is one. Empty where every variance is one.

    Those that lie within 1% of each other may both be missed.
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
    """The fixed points that variances lead to, `(n,)`.

    Args:
        maps: of the nonlinearity.
        w2: squares of `w_std`, `(n,)`.
        b2: squares of `b_std`, `(n,)`.
        start: variances of the first layer, `(n,)`, above 0.

    Returns:
        The variances: 0 where they vanish with depth, infinite where they grow without bound, NaN where they do not settle.
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
    """`V(q) - q` at `VARIANCES`."""
    with np.errstate(over="ignore"):
        return w2 * maps.table.value + b2 - VARIANCES


def _between(maps: Maps, w2: np.ndarray, b2: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return bisect(lambda q: w2 * maps.squares(q).value + b2 - q, low, high) if len(low) else low


def _iterated(maps: Maps, w2: float, b2: float, start: float) -> float:
    """By the map itself, which may step over its fixed points."""
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
