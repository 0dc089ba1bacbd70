"""Finds the widest range on which a curve is a power law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Largest distance from the line in natural logarithms, which is 10%.
_NEAR = 0.1
_POINTS = 48
_LEAST_RATIO = 4.0


@dataclass(frozen=True)
class PowerLawRange:
    """The power law `y = scale * x ** -exponent` for `low <= x <= high`.

    Args:
        exponent: positive for a decreasing curve.
        standard_error: standard error of the exponent, from the residuals of the fit.
        scale: value at x = 1.
        low: lower end of the range.
        high: upper end of the range.
    """

    exponent: float
    standard_error: float
    scale: float
    low: float
    high: float


def widest_power_law(x: np.ndarray, y: np.ndarray) -> PowerLawRange | None:
    """The power law that holds within 10% on the widest range; None if no range spans a factor of 4.

    Args:
        x: `(m,)`, ascending, above 0.
        y: `(m,)`; the first value that is not above 0 ends the curve.
    """
    positive = y > 0.0
    x, y = x[positive], y[positive]
    if len(x) < 5 or x[-1] < _LEAST_RATIO * x[0]:
        return None
    # Equal steps of the logarithm, so that the many small values do not outweigh the few large ones.
    at = np.linspace(np.log(x[0]), np.log(x[-1]), _POINTS)
    values = np.interp(at, np.log(x), np.log(y))
    best: PowerLawRange | None = None
    for first in range(_POINTS - 4):
        for last in range(_POINTS, first + 4, -1):
            span = at[last - 1] - at[first]
            if span < np.log(_LEAST_RATIO) or (best is not None and span <= np.log(best.high / best.low)):
                break
            here, there = at[first:last], values[first:last]
            slope, offset = np.polyfit(here, there, 1)
            left = there - (slope * here + offset)
            if np.abs(left).max() > _NEAR:
                continue
            error = np.sqrt(np.sum(left**2) / (len(here) - 2) / np.sum((here - here.mean()) ** 2))
            best = PowerLawRange(
                float(-slope), float(error), float(np.exp(offset)), float(np.exp(here[0])), float(np.exp(here[-1]))
            )
            break
    return best
