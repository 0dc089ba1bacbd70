"""The default grid of training times: all of training, from the first component learnt to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ntkpipe.dynamics.filters import Momentum, SpectralFilter

Numbers = float | Sequence[float]
"""One number, or several."""

# Beyond this spread of eigenvalues the last ones are rounding, and times for them would only lengthen the table.
MAX_CONDITION = 1e12


def several(values: Numbers) -> tuple[float, ...]:
    """One number or several as several."""
    return tuple(float(value) for value in np.atleast_1d(np.asarray(values, dtype=np.float64)))


def default_times(spectral_filter: SpectralFilter, largest: float, smallest: float) -> tuple[float, ...]:
    """1 and 3 times powers of ten from `n c / (rate l_max)` to `n c / (rate l_min)`, widened to cover both, and `inf`.

    Momentum learns `1 / (1 - m)` times faster once the friction has balanced the force, so its grid ends that much
    earlier.

    Args:
        spectral_filter: gives `n c / rate` (and the momentum).
        largest: eigenvalue of the train-train kernel plus ridge, `> 0`.
        smallest: likewise; values at or below `largest / 1e12` are taken as that.

    Returns:
        Increasing times in steps, at least 1 when discrete training could resolve them, ending in `inf`.
    """
    if not 0 < largest < math.inf:
        return (math.inf,)
    f = spectral_filter
    unit = f.n * f.c / f.learning_rate
    speedup = 1.0 / (1.0 - f.momentum) if isinstance(f, Momentum) else 1.0
    first = unit / largest
    last = unit / (max(smallest, largest / MAX_CONDITION) * speedup)
    # Discrete steps start at 1; a network that takes less than one step to learn its first component is beyond
    # stability anyway.
    first = max(first, 1.0) if min(first, last) < 1.0 <= last else first
    grid = [
        m * 10.0**k
        for k in range(math.floor(math.log10(first)) - 1, math.ceil(math.log10(max(first, last))) + 2)
        for m in (1, 3)
    ]
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
