"""Residuals of approximate dual weights: what the equation of training leaves, by origin, at one time and ridge; see `bounds.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.filters import EPS, SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample, independent_share, norm_safety

# Residual of the evaluation in units of eps (|A| |u| + |b|): measured at most 8 over the spectra of the tests.
ROUNDING = 16.0
# Of a finite time's contour, as a residual in units of |b|: its error is at most 1e-14 |b| / sqrt(l), and the gain 1 / sqrt(l).
QUADRATURE = 2e-14

AnySolution = KrylovSolution | RestartedSolution


@dataclass(frozen=True)
class Residuals:
    """Norms per column (c,) of the parts of the residual at one time and ridge; `left` of what is left out for good."""

    krylov: np.ndarray
    product: np.ndarray
    storage: np.ndarray
    left: np.ndarray


def residuals_at(
    solution: AnySolution, spectral_filter: SpectralFilter, time: float, ridge: float, sample: RowSample | None
) -> tuple[Residuals, np.ndarray]:
    """Norms of the residual's parts, and what the truncated space leaves in the next block's coordinates (k, c).

    Args:
        solution: evaluated basis, or restarted weights.
        spectral_filter: the training dynamics.
        time: in steps.
        ridge: absolute.
        sample: sampled training rows; None leaves rounding at its float64 floor.
    """
    if isinstance(solution, RestartedSolution):
        return _restarted(solution, time, ridge, sample)
    values, cutoff = solution.shifted(ridge)
    phi = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
    krylov = solution.tail @ phi  # b - u' - A u = -V_next tail phi when products are exact
    # Slightly negative Ritz values are moved to zero by the filter: their residual inside the space.
    moved = np.linalg.norm((np.maximum(values, 0.0) - values)[:, None] * phi, axis=0)
    size = np.linalg.norm(phi, axis=0)
    floor = ROUNDING * EPS * ((solution.largest + ridge) * size + np.linalg.norm(solution.targets, axis=0))
    storage = np.zeros(solution.c)
    left = solution.left_out(spectral_filter, time, ridge)[1]
    if sample is None:
        return Residuals(np.linalg.norm(krylov, axis=0) + moved, floor, storage, left), krylov
    residual, rounded = _rows_in_space(solution, spectral_filter, time, ridge, sample, phi, krylov)
    scale = norm_safety(len(sample.indices), solution.n) * math.sqrt(solution.n / max(len(sample.indices), 1))
    product = scale * np.linalg.norm(residual, axis=0) + floor
    if rounded is not None:
        storage = scale * np.linalg.norm(rounded, axis=0) * independent_share(solution.n)
    return Residuals(np.linalg.norm(krylov, axis=0) + moved, product, storage + sample.systematic * size, left), krylov


def _rows_in_space(
    solution: KrylovSolution,
    spectral_filter: SpectralFilter,
    time: float,
    ridge: float,
    sample: RowSample,
    phi: np.ndarray,
    krylov: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `row_residuals`, from what `residuals_at` has computed: weights `phi` (m, c), and `krylov` (k, c)."""
    values, cutoff = solution.shifted(ridge)
    # What the equation asks of A u at the sampled rows: targets that are learnt at all, minus what is still to learn.
    decay = spectral_filter.decay(values, time, cutoff=cutoff)
    asked = (
        np.where(spectral_filter.unlearnt(values, time, cutoff=cutoff), 0.0, 1.0 - decay)[:, None] * solution.targets
    )
    weights, asked = solution.rotate(phi), solution.rotate(asked)
    rows = sample.indices
    here = solution.basis[:, rows].T
    residual = here @ (asked - ridge * weights) - sample.stored @ weights
    residual += solution.next_block[:, rows].T @ krylov
    return residual, None if sample.exact is None else (sample.stored - sample.exact) @ weights


def _rows_of_restarts(
    solution: RestartedSolution, i: int, j: int, ridge: float, sample: RowSample
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `row_residuals`, at a time `i` of the grid and ridge `j`."""
    k = len(sample.indices)
    along, exact = solution.along[i, j, :k], solution.along[i, j, k:]
    residual = solution.asked[i, j] - ridge * solution.here[i, j] - along
    residual -= solution.next_block[:, sample.indices].T @ solution.coefficients[i, j]
    return residual, along - exact if len(exact) else None


def row_residuals(
    solution: AnySolution, spectral_filter: SpectralFilter, time: float, ridge: float, sample: RowSample
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """What disturbs the equation of the weights at the sampled rows.

    Returns:
        Residuals of rounded products (k, c); errors of the stored tiles times the weights (k, c), or None; and the residual that the
        truncated space leaves, in the next block's coordinates.
    """
    if isinstance(solution, RestartedSolution):
        i, j = solution.grid.index(time), solution.ridges.index(ridge)
        return *_rows_of_restarts(solution, i, j, ridge, sample), solution.coefficients[i, j]
    values, cutoff = solution.shifted(ridge)
    phi = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
    krylov = solution.tail @ phi
    return *_rows_in_space(solution, spectral_filter, time, ridge, sample, phi, krylov), krylov


def _restarted(
    solution: RestartedSolution, time: float, ridge: float, sample: RowSample | None
) -> tuple[Residuals, np.ndarray]:
    """The same where weights have been added up; those of the sampled rows were, as `sample` only says."""
    i, j = solution.grid.index(time), solution.ridges.index(ridge)
    left = solution.coefficients[i, j]
    krylov, target = np.linalg.norm(left, axis=0), np.linalg.norm(solution.targets, axis=0)
    # |u| grows with time: that at the next time asked for is not below.
    later = min((t for t in solution.times if t >= time), default=solution.times[-1])
    size = np.linalg.norm(solution.weights[:, solution.times.index(later), j], axis=0)
    floor = ROUNDING * EPS * ((solution.largest + ridge) * size + target) + QUADRATURE * target
    lost = solution.left_out(solution.spectral_filter, time, ridge)[1]
    if sample is None:
        return Residuals(krylov, floor, np.zeros(solution.c), lost), left
    k = len(sample.indices)
    residual, rounded = _rows_of_restarts(solution, i, j, ridge, sample)
    scale = norm_safety(k, solution.n) * math.sqrt(solution.n / max(k, 1))
    product = scale * np.linalg.norm(residual, axis=0) + floor
    storage = sample.systematic * size
    if rounded is not None:
        storage = storage + scale * np.linalg.norm(rounded, axis=0) * independent_share(solution.n)
    return Residuals(krylov, product, storage, lost), left
