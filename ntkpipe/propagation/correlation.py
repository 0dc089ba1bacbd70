"""The correlation of two inputs from layer to layer, at a settled variance (arXiv:1611.01232).

Followed is `g = 1 - c`: `g -> w_std^2 (E phi^2 - E phi(u) phi(v)) / q`, in which the bias cancels. The correlation map is a power
series with coefficients that are not negative, so that it is convex on [0, 1] and has at most one fixed point below 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ntkpipe.propagation.maps import Maps
from ntkpipe.propagation.roots import bisect

CRITICAL = 1e-9
"""How near 1 chi_1 is called critical: ten digits of `w_std` that are written down leave less."""

# A gap so small that the map has its slope there, and one at which it is far from 1.
_TINY = 1e-9
_LEAST = 1e-16
# A fixed point below is rounding of an odd function's, which is 0.
_ROUNDING = 4e-15


class Correlations(NamedTuple):
    """Of `(n,)` settled variances.

    Args:
        chi_1: slope of the correlation map at 1; infinite where phi jumps.
        c_star: the stable fixed point.
        gap: `1 - c_star`, with all its digits.
        chi_c_star: slope at the fixed point.
    """

    chi_1: np.ndarray
    c_star: np.ndarray
    gap: np.ndarray
    chi_c_star: np.ndarray


def gap_map(maps: Maps, w2: np.ndarray, q: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """From gaps `(n,)` to the gaps after a layer, and the slopes of the map there."""
    pairs = maps.at(q)

    def following(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        upper, dot = pairs(gap)
        return w2 * upper / q, w2 * dot

    return following


def correlations(maps: Maps, w2: np.ndarray, q: np.ndarray) -> Correlations:
    """Slopes and fixed points.

    Args:
        maps: of the nonlinearity.
        w2: squares of `w_std`, `(n,)`.
        q: settled variances, `(n,)`; where they are 0, infinite or NaN, the slope at 1 alone is known (at 0) or nothing.
    """
    q = np.asarray(q, np.float64)
    known = np.isfinite(q) & (q > 0.0)
    chi_1 = np.where(q == 0.0, w2 * maps.squares(np.zeros_like(q)).dot, np.nan)
    gap, slope = np.where(q == 0.0, 0.0, np.nan), chi_1.copy()
    if known.any():
        chi_1[known], gap[known], slope[known] = _settled(maps, w2[known], q[known])
    return Correlations(chi_1, 1.0 - gap, gap, slope)


def _settled(maps: Maps, w2: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    following = gap_map(maps, w2, q)
    chi_1 = w2 * maps.squares(q).dot
    # A convex map lies above its tangent: where it does not, the tangent misses the jumps of phi.
    steep = following(np.full_like(q, _TINY))[0] / _TINY
    jumps = steep > chi_1 * (1.0 + 1e-5) + 1e-12
    chi_1 = np.where(jumps, np.inf, chi_1)
    gap = np.zeros_like(q)
    chaotic = chi_1 > 1.0 + CRITICAL
    if chaotic.any():
        of_chaotic = gap_map(maps, w2[chaotic], q[chaotic])
        count = int(chaotic.sum())
        found = bisect(lambda g: of_chaotic(g)[0] - g, np.full(count, _LEAST), np.ones(count))
        gap[chaotic] = np.where(1.0 - found <= _ROUNDING, 1.0, found)
    slope = np.where(chaotic, following(gap)[1], chi_1)
    if jumps.any():
        slope = np.where(jumps, _difference(lambda g: following(g)[0], gap), slope)
    return chi_1, gap, slope


def _difference(f: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """The slope by central differences of fourth order."""
    h = 1e-3 * at
    return (8.0 * (f(at + h) - f(at - h)) - (f(at + 2.0 * h) - f(at - 2.0 * h))) / (12.0 * h)


def depth_scale(slope: np.ndarray) -> np.ndarray:
    """Layers in which a deviation falls to 1 / e, `-1 / log slope`: infinite at slope 1, negative where it grows."""
    slope = np.asarray(slope, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = -1.0 / np.log(np.abs(slope))
    return np.where(slope == 0.0, 0.0, np.where(np.abs(np.abs(slope) - 1.0) <= CRITICAL, np.inf, scale))
