"""Extrapolation of learning curves to more training points, with a band for its uncertainty.

Learning curves are power laws of n over wide ranges (arXiv:2002.02561, arXiv:2105.15004), but not everywhere. The middle of
the band is the power law of the upper half of the curve (in the logarithm of n). The band also covers the power laws of the
whole curve and of its last step, and a parabola in both logarithms, which continues the curvature. It is widened by twice
the residuals of each fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError

FARTHEST = 16.0
"""Largest number of training points of an extrapolation, relative to the largest computed number."""

_LEAST = 4


@dataclass(frozen=True)
class Extrapolated:
    """An extrapolated error.

    Args:
        n: number of training points.
        ridge: the configured ridge.
        test_mse: mean squared error per output.
        low: lower end of the band.
        high: upper end of the band.
    """

    n: int
    ridge: float
    test_mse: float
    low: float
    high: float


def extrapolate(
    sizes: Sequence[float],
    errors: Sequence[float],
    wanted: Sequence[int],
    ridge: float = 0.0,
    *,
    spread: float = 0.0,
) -> list[Extrapolated]:
    """Extrapolate a learning curve.

    Args:
        sizes: (m,) numbers of training points, ascending.
        errors: (m,) errors for these sizes, above 0.
        wanted: numbers of training points above the last size, and at most 16 times as large.
        ridge: copied to the results.
        spread: relative standard error of `errors`; the band is widened by twice this.

    Raises:
        ConfigError: if `wanted` is outside this range, or the curve has fewer than 4 points.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(errors, np.float64))
    if len(x) < _LEAST or not np.isfinite(y).all():
        raise ConfigError(f"{len(x)} points are too few to extrapolate a learning curve: give at least {_LEAST}")
    for n in wanted:
        if not sizes[-1] < n <= FARTHEST * sizes[-1]:
            raise ConfigError(
                f"extrapolate to {n}: sizes must be above {sizes[-1]:g} points and up to {FARTHEST * sizes[-1]:g}"
            )
    at = np.log(np.asarray(wanted, np.float64))
    upper = max(_LEAST - 1, (len(x) + 1) // 2)
    fits = [(1, upper), (1, len(x)), (1, 2), (2, len(x))]
    middle = np.polyval(np.polyfit(x[-upper:], y[-upper:], 1), at)
    low, high = middle.copy(), middle.copy()
    for degree, count in fits:
        fit = np.polyfit(x[-count:], y[-count:], degree)
        left = 2.0 * float(np.abs(y[-count:] - np.polyval(fit, x[-count:])).max())
        # More data should not increase errors, so a parabola that turns upwards is cut at the last error.
        made = np.minimum(np.polyval(fit, at), y[-1])
        low, high = np.minimum(low, made - left), np.maximum(high, made + left)
    low, high = low - 2.0 * spread, high + 2.0 * spread
    return [
        Extrapolated(int(n), ridge, float(np.exp(m)), float(np.exp(a)), float(np.exp(b)))
        for n, m, a, b in zip(wanted, middle, low, high, strict=True)
    ]
