"""The variances and covariances of one kernel's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution


@dataclass(frozen=True)
class PredictiveCovariance:
    """Uncertainty of one kernel's predictions at T times, R ridges and p test points, in the order of the test kernel.

    Args:
        variance: (T, R, p) float64, at least 0.
        bound: (T, R, p) bounds on the errors of the variances; inf where none is known.
        rounding: (T, R, p) part of the bound that comes from rounding and from the storage of tiles.
        covariance: (T, R, p, p) float64, or None.
        warnings: texts for the user.
    """

    variance: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray
    covariance: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def mean_of_parts(found: Sequence[PredictiveCovariance]) -> PredictiveCovariance:
    """The mean over the independent parts of a kernel: covariances, bounds and rounding."""
    matrices = [one.covariance for one in found if one.covariance is not None]
    return PredictiveCovariance(
        np.mean([one.variance for one in found], axis=0),
        np.mean([one.bound for one in found], axis=0),
        np.mean([one.rounding for one in found], axis=0),
        np.mean(matrices, axis=0) if matrices else None,
    )


def rounding_warnings(solution: Solution, found: PredictiveCovariance) -> tuple[str, ...]:
    """A warning if the bound on rounding exceeds some of the variances."""
    lost = found.rounding > found.variance
    if not lost.any():
        return ()
    share = lost.mean(axis=(1, 2))
    worst = int(np.argmax(share))
    remedy = (
        "set kernel.dtype=float64, which computes and stores tiles that are exact to 1e-16"
        if solution.problem.kernel.matrix.dtype == np.float32
        else "set a ridge (predict.ridges)"
    )
    return (
        f"{solution.name}: rounding and the storage of tiles may exceed {share[worst]:.0%} of the variances at t = "
        f"{solution.times[worst]:g} (see variance_bound); {remedy}.",
    )
