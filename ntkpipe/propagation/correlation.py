"""The correlation c of two inputs from layer to layer, at a fixed point of the variance (arXiv:1611.01232).

The gap `g = 1 - c` is followed: `g -> w_std^2 (E phi^2 - E phi(u) phi(v)) / q`, in which the bias cancels. The
correlation map is a power series with coefficients `>= 0`, so it is convex on [0, 1] and has at most one fixed point
below 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ntkpipe.propagation.maps import ACCURATE, Maps
from ntkpipe.propagation.roots import bisect

CRITICAL = 1e-9
"""chi_1 counts as critical if it differs from 1 by less than this; ten written digits of `w_std` give less."""

# A gap so small that the map is linear up to it, and the smallest gap that is considered.
_TINY = 1e-9
_LEAST = 1e-16
# A variance that stands for its limit 0.
_VANISHING = 1e-30
# A fixed point below this is the rounding of 0, the fixed point of odd functions.
_ROUNDING = 4e-15


class Correlations(NamedTuple):
    """Properties of the correlation map at `(n,)` fixed points of the variance.

    Args:
        chi_1: `w_std^2 E phi'^2`; infinite where phi jumps. It is the slope of the correlation map at 1 if the variance is
            above 0.
        c_star: the stable fixed point; NaN if no correlation changes, as with linear functions.
        gap: `1 - c_star`, computed without cancellation.
        chi_c_star: slope of the correlation map at the stable fixed point.
    """

    chi_1: np.ndarray
    c_star: np.ndarray
    gap: np.ndarray
    chi_c_star: np.ndarray


def gap_map(
    maps: Maps, w2: np.ndarray, q: np.ndarray, accuracy: float = ACCURATE
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the function from gaps `(n,)` to the gaps after a layer and the slopes of the map."""
    pairs = maps.at(q, accuracy)

    def following(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        upper, dot = pairs(gap)
        return w2 * upper / q, w2 * dot

    return following


def correlations(maps: Maps, w2: np.ndarray, q: np.ndarray) -> Correlations:
    """Return slopes and fixed points of the correlation maps.

    Args:
        maps: maps of the nonlinearity.
        w2: squares of `w_std`, `(n,)`.
        q: fixed points of the variance, `(n,)`. Where q is 0, correlations have the limits of vanishing variances, which do
            not depend on `w_std`. Where it is infinite or NaN, nothing is known.
    """
    q = np.asarray(q, np.float64)
    known = np.isfinite(q) & (q > 0.0)
    chi_1 = np.where(q == 0.0, w2 * maps.squares(np.zeros_like(q)).dot, np.nan)
    gap, slope = np.full_like(q, np.nan), np.full_like(q, np.nan)
    if known.any():
        chi_1[known], gap[known], slope[known] = _settled(maps, w2[known], q[known])
    if (vanishing := q == 0.0).any():
        # Without biases the correlation map does not depend on w_std, so take the one that keeps a small variance.
        small = np.array([_VANISHING])
        _, gap[vanishing], slope[vanishing] = _settled(maps, small / maps.squares(small).value, small)
    return Correlations(chi_1, 1.0 - gap, gap, slope)


def _settled(maps: Maps, w2: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    following = gap_map(maps, w2, q)
    chi_1 = w2 * maps.squares(q).dot
    jumps = np.full(len(q), maps.jumps)
    if maps.panels is None:
        # A convex map lies above its tangent. If it does not, the tangent does not include the jumps of phi.
        jumps = following(np.full_like(q, _TINY))[0] / _TINY > chi_1 * (1.0 + 1e-5) + 1e-12
    chi_1 = np.where(jumps, np.inf, chi_1)
    gap = np.zeros_like(q)
    chaotic = chi_1 > 1.0 + CRITICAL
    if chaotic.any():
        found = _lowest(maps, w2[chaotic], q[chaotic])
        gap[chaotic] = np.where(1.0 - found <= _ROUNDING, 1.0, found)
    slope = np.where(chaotic, following(gap)[1], chi_1)
    if not chaotic.all():  # a convex map with slope 1 at 1 that has another fixed point is the identity
        still = ~chaotic & (np.abs(following(np.full_like(q, 0.5))[0] - 0.5) <= CRITICAL)
        gap[still] = np.nan
    if jumps.any():
        slope = np.where(jumps, _difference(lambda g: following(g)[0], gap), slope)
    return chi_1, gap, slope


def _lowest(maps: Maps, w2: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the gaps at the fixed points below correlation 1. Maps of 1e-3 bracket them, because accurate ones may be slow."""

    def excess(accuracy: float) -> Callable[[np.ndarray], np.ndarray]:
        following = gap_map(maps, w2, q, accuracy)
        return lambda gap: following(gap)[0] - gap

    least, most, accurate = np.full_like(q, _LEAST), np.ones_like(q), excess(ACCURATE)
    near = bisect(excess(1e-3), least, most)
    low, high = np.maximum(near / 4.0, _LEAST), np.minimum(near * 4.0, 1.0)
    right = (accurate(low) > 0.0) & ((accurate(high) <= 0.0) | (high == 1.0))
    return bisect(accurate, np.where(right, low, least), np.where(right, high, most))


def _difference(f: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """Return the slope by central differences of fourth order."""
    h = 1e-3 * at
    return (8.0 * (f(at + h) - f(at - h)) - (f(at + 2.0 * h) - f(at - 2.0 * h))) / (12.0 * h)


def depth_scale(slope: np.ndarray) -> np.ndarray:
    """Return the number of layers in which a deviation falls to 1 / e, `-1 / log slope`.

    It is infinite at slope 1, and negative where deviations grow.
    """
    slope = np.asarray(slope, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = -1.0 / np.log(np.abs(slope))
    return np.where(slope == 0.0, 0.0, np.where(np.abs(np.abs(slope) - 1.0) <= CRITICAL, np.inf, scale))
