"""Variances and covariances of one kernel's predictions, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution


@dataclass(frozen=True)
class PredictiveCovariance:
    """Uncertainty of one kernel's predictions, test points in the order of the test kernel's rows.

    Args:
        variance: (T, R, p), at least 0.
        bound: (T, R, p) on their errors; inf where none is known.
        rounding: (T, R, p), the part of the bound that is rounding and storage of tiles.
        covariance: (T, R, p, p), or None.
        warnings: what the user should know.
    """

    variance: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray
    covariance: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def mean_of_parts(found: Sequence[PredictiveCovariance]) -> PredictiveCovariance:
    """Of a kernel in parts that know nothing of each other: the mean of theirs."""
    matrices = [one.covariance for one in found if one.covariance is not None]
    return PredictiveCovariance(
        np.mean([one.variance for one in found], axis=0),
        np.mean([one.bound for one in found], axis=0),
        np.mean([one.rounding for one in found], axis=0),
        np.mean(matrices, axis=0) if matrices else None,
    )


def rounding_warnings(solution: Solution, found: PredictiveCovariance) -> tuple[str, ...]:
    """Where rounding exceeds the variance."""
    lost = found.rounding > found.variance
    if not lost.any():
        return ()
    share = lost.mean(axis=(1, 2))
    worst = int(np.argmax(share))
    remedy = (
        "kernel.dtype=float64 computes and stores tiles that are exact to 1e-16"
        if solution.problem.kernel.matrix.dtype == np.float32
        else "a ridge (predict.ridges) mends that"
    )
    return (
        f"{solution.name}: rounding and the storage of tiles may exceed {share[worst]:.0%} of the variances at t = "
        f"{solution.times[worst]:g} (see variance_bound); {remedy}.",
    )
