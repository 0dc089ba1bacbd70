"""The widest range on which a curve is a power law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Largest distance from the line, in natural logarithms: 10%.
_NEAR = 0.1
_POINTS = 48
_LEAST_RATIO = 4.0


@dataclass(frozen=True)
class PowerLawRange:
    """`y = scale * x ** -exponent` for `low <= x <= high`.

    Args:
        exponent: positive of a falling curve.
        standard_error: of the exponent, from what the fit leaves over.
        scale: value at x = 1.
        low: end of the range.
        high: likewise.
    """

    exponent: float
    standard_error: float
    scale: float
    low: float
    high: float


def widest_power_law(x: np.ndarray, y: np.ndarray) -> PowerLawRange | None:
    """The power law that holds within 10% on the widest range; None if there is none over a factor of 4.

    Args:
        x: `(m,)`, ascending, above 0.
        y: `(m,)`; those that are not above 0 end the curve.
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
