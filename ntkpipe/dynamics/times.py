"""The default grid of training times, from the first to the last learned component."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from ntkpipe.dynamics.filters import Momentum, SpectralFilter

Numbers = float | Sequence[float]
"""One number or several numbers."""

# Largest ratio of eigenvalues that the grid covers. Smaller eigenvalues are rounding errors.
MAX_CONDITION = 1e12


def several(values: Numbers) -> tuple[float, ...]:
    """One number or several numbers, as a tuple."""
    return tuple(float(value) for value in np.atleast_1d(np.asarray(values, dtype=np.float64)))


def default_times(spectral_filter: SpectralFilter, largest: float, smallest: float) -> tuple[float, ...]:
    """Times 1 and 3 times powers of ten that cover `n c / (rate l_max)` to `n c / (rate l_min)`, and `inf`.

    Momentum learns `1 / (1 - m)` times faster in the long run, so its grid ends earlier by this factor.

    Args:
        spectral_filter: contains `n c / rate` and the momentum.
        largest: largest eigenvalue of the train-train kernel plus ridge, above 0.
        smallest: smallest eigenvalue of the train-train kernel plus ridge; at least `largest / 1e12` is used.

    Returns:
        Increasing times in steps, which end with `inf`. For discrete training they are at least 1.
    """
    if not 0 < largest < math.inf:
        return (math.inf,)
    f = spectral_filter
    unit = f.n * f.c / f.learning_rate
    speedup = 1.0 / (1.0 - f.momentum) if isinstance(f, Momentum) else 1.0
    first = unit / largest
    last = unit / (max(smallest, largest / MAX_CONDITION) * speedup)
    # Discrete steps start at 1. A network that takes less than one step to learn its first component is not
    # stable anyway.
    first = max(first, 1.0) if min(first, last) < 1.0 <= last else first
    # Extreme learning rates take times out of the range of floats, whose powers of ten are -307 to 308.
    first, last = (min(max(t, sys.float_info.min), sys.float_info.max) for t in (first, last))
    low_power = max(math.floor(math.log10(first)) - 1, -307)
    high_power = min(math.ceil(math.log10(max(first, last))) + 1, 307)
    grid = [m * 10.0**k for k in range(low_power, high_power + 1) for m in (1, 3)]
    grid = [float(f"{t:.1g}") for t in grid]
    slack = 1.0 + 1e-12
    low = max((t for t in grid if t <= first * slack), default=grid[0])
    high = min((t for t in grid if t * slack >= last), default=grid[-1])
    inside = [t for t in grid if low <= t <= max(high, low)]
    try:
        for t in inside:
            f.check_time(t)
    except ValueError:
        inside = sorted({float(np.ceil(t)) for t in inside})
    return (*inside, math.inf)
