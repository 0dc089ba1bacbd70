"""Predicted variances against the errors that were made: coverage, z-scores, and errors by predicted deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

# Nominal probabilities of central intervals.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)
DEVIATION_BINS = 10


def usable_variance(variance: np.ndarray) -> np.ndarray | None:
    """Variances (p,) or (p, c) with a floor at the rounding of the largest; None where they are not finite or all zero.

    A variance that cancels to zero is known only to rounding of the largest: that much is kept of it.
    """
    if not np.isfinite(variance).all() or not variance.max() > 0:
        return None
    return np.maximum(variance, np.finfo(np.float64).eps * variance.max())


def of_outputs(variance: np.ndarray) -> np.ndarray:
    """Variances (p, c), or (p, 1) of those that outputs share, which are given as (p,)."""
    return variance if variance.ndim == 2 else variance[:, None]


def z_scores(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """`(target - mean) / deviation`, (p, c), for means and targets (p, c) and positive variances (p,) or (p, c)."""
    return (target - mean) / np.sqrt(of_outputs(variance))


def coverage(z: np.ndarray, levels: tuple[float, ...] = LEVELS) -> np.ndarray:
    """Fraction of z-scores within the central interval of each nominal probability, (levels,)."""
    ordered = np.sort(np.abs(z), axis=None)
    limits = ndtri(0.5 + np.asarray(levels) / 2)
    return np.searchsorted(ordered, limits, side="right") / ordered.size


def error_by_deviation(
    mean: np.ndarray, target: np.ndarray, variance: np.ndarray, bins: int = DEVIATION_BINS
) -> np.ndarray:
    """Root mean square of the predicted deviation and of the error, and the number of points, by quantiles of the former.

    Args:
        mean: (p, c).
        target: (p, c).
        variance: (p,) or (p, c).
        bins: of equally many points.

    Returns:
        (bins, 3), fewer where there are fewer points.
    """
    variance = variance if variance.ndim == 1 else variance.mean(axis=1)
    order = np.argsort(variance, kind="stable")
    squared = np.mean((mean - target) ** 2, axis=1)
    groups = [group for group in np.array_split(order, bins) if len(group)]
    return np.array([[np.sqrt(variance[g].mean()), np.sqrt(squared[g].mean()), len(g)] for g in groups])


def calibration_metrics(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> dict[str, Any]:
    """Numbers of the calibration figure, JSON-ready.

    `levels` and `coverage` (see `coverage`), `z_mean` and `z_rms` (0 and 1 where the variances are those of the errors),
    and `deviation`: rows of (predicted deviation, error, points), see `error_by_deviation`.
    """
    z = z_scores(mean, target, variance)
    return {
        "levels": list(LEVELS),
        "coverage": coverage(z).tolist(),
        "z_mean": float(z.mean()),
        "z_rms": float(np.sqrt(np.mean(z**2))),
        "deviation": error_by_deviation(mean, target, variance).tolist(),
    }
