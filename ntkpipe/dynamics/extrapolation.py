"""Where a learning curve goes beyond what was computed: an extrapolation, with a band that says how little it is worth.

Learning curves fall as powers of n over wide ranges (arXiv:2002.02561, arXiv:2105.15004), and stop doing so. The middle is the power law of
the upper half of the curve (of the logarithm of n). The band holds it, what the whole curve says, what its last step says, and a parabola
in both logarithms, which goes on bending as the curve has bent; and what each of these leaves of the curve it was fitted to, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError

FARTHEST = 16.0
"""Times the sample beyond which nothing is said."""

_LEAST = 4


@dataclass(frozen=True)
class Extrapolated:
    """An extrapolated error.

    Args:
        n: training points, more than there are.
        ridge: as it was asked for.
        test_mse: mean squared error per output.
        low, high: ends of the band.
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
    """Errors beyond a curve.

    Args:
        sizes: (m,) training points, ascending.
        errors: (m,) at these, above 0.
        wanted: training points, beyond the last size and at most 16 times as many.
        ridge: goes along.
        spread: relative standard error of the errors, from the points that they were looked at on; the band is wider by twice that.

    Raises:
        ConfigError: for sizes that are no extrapolation, or a curve of fewer than 4 points.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(errors, np.float64))
    if len(x) < _LEAST or not np.isfinite(y).all():
        raise ConfigError(f"{len(x)} points of a learning curve are too few to go on from: give at least {_LEAST}")
    for n in wanted:
        if not sizes[-1] < n <= FARTHEST * sizes[-1]:
            raise ConfigError(
                f"extrapolate to {n}: from {sizes[-1]:g} points that goes up to {FARTHEST * sizes[-1]:g}, and starts beyond them"
            )
    at = np.log(np.asarray(wanted, np.float64))
    upper = max(_LEAST - 1, (len(x) + 1) // 2)
    fits = [(1, upper), (1, len(x)), (1, 2), (2, len(x))]
    middle = np.polyval(np.polyfit(x[-upper:], y[-upper:], 1), at)
    low, high = middle.copy(), middle.copy()
    for degree, count in fits:
        fit = np.polyfit(x[-count:], y[-count:], degree)
        left = 2.0 * float(np.abs(y[-count:] - np.polyval(fit, x[-count:])).max())
        # More data that is used rightly does not make errors grow: a parabola that turns up is flat from there.
        made = np.minimum(np.polyval(fit, at), y[-1])
        low, high = np.minimum(low, made - left), np.maximum(high, made + left)
    low, high = low - 2.0 * spread, high + 2.0 * spread
    return [
        Extrapolated(int(n), ridge, float(np.exp(m)), float(np.exp(a)), float(np.exp(b)))
        for n, m, a, b in zip(wanted, middle, low, high, strict=True)
    ]
