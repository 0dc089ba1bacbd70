"""Calibration of predicted variances: coverage, z-scores, and errors by predicted deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

# Nominal probabilities of central intervals.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)
DEVIATION_BINS = 10


def usable_variance(variance: np.ndarray) -> np.ndarray | None:
    """Raise small variances (p,) or (p, c) to the rounding error of the largest variance.

    A variance that cancels to zero is known only up to this rounding error.

    Returns:
        Variances of the same shape; None if they are not finite or all zero.
    """
    if not np.isfinite(variance).all() or not variance.max() > 0:
        return None
    return np.maximum(variance, np.finfo(np.float64).eps * variance.max())


def of_outputs(variance: np.ndarray) -> np.ndarray:
    """Return variances as (p, c). Variances (p,), which all outputs share, become (p, 1)."""
    return variance if variance.ndim == 2 else variance[:, None]


def z_scores(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return `(target - mean) / deviation`, (p, c), for means and targets (p, c), positive variances (p,) or (p, c)."""
    return (target - mean) / np.sqrt(of_outputs(variance))


def coverage(z: np.ndarray) -> np.ndarray:
    """Return the fraction of z-scores within the central interval of each probability of `LEVELS`."""
    ordered = np.sort(np.abs(z), axis=None)
    limits = ndtri(0.5 + np.asarray(LEVELS) / 2)
    return np.searchsorted(ordered, limits, side="right") / ordered.size


def error_by_deviation(
    mean: np.ndarray, target: np.ndarray, variance: np.ndarray, bins: int = DEVIATION_BINS
) -> np.ndarray:
    """Compare predicted deviations with errors, in bins of the predicted deviation.

    Args:
        mean: (p, c) predicted means.
        target: (p, c) targets.
        variance: (p,) or (p, c) predicted variances.
        bins: number of bins, which hold equally many points.

    Returns:
        (bins, 3) root mean square of the predicted deviation, root mean square of the error, and number of points.
        There are fewer rows if there are fewer points than bins.
    """
    variance = variance if variance.ndim == 1 else variance.mean(axis=1)
    order = np.argsort(variance, kind="stable")
    squared = np.mean((mean - target) ** 2, axis=1)
    groups = [group for group in np.array_split(order, bins) if len(group)]
    return np.array([[np.sqrt(variance[g].mean()), np.sqrt(squared[g].mean()), len(g)] for g in groups])


def calibration_metrics(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> dict[str, Any]:
    """Return the numbers of the calibration figure, JSON-ready.

    They are `levels` and their `coverage`, `z_mean` and `z_rms` (0 and 1 if the errors have the predicted variances),
    and `deviation`, the rows (predicted deviation, error, points) of `error_by_deviation`.
    """
    z = z_scores(mean, target, variance)
    return {
        "levels": list(LEVELS),
        "coverage": coverage(z).tolist(),
        "z_mean": float(z.mean()),
        "z_rms": float(np.sqrt(np.mean(z**2))),
        "deviation": error_by_deviation(mean, target, variance).tolist(),
    }
