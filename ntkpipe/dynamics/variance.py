"""Variances of test outputs from filters that are applied to a batch of test images, and bounds on their errors.

Let `a` be the kernel between the training images and a test image, and A the train-train kernel plus ridge.

- a *posterior* variance (NNGP, `ntkgp`) is `K_** - a^T psi(A) a`, `psi = phi (1 + decay)`: a quadratic form;
- an *ensemble* variance (all layers trained) is `K_** + b^T K b - 2 b^T k_*`, `b = phi(A) a`, K the NNGP without ridge.

**Ensembles.** K is positive semi-definite, and `v = |K^(1/2) (b, -1)|^2` on training and test images together. So an error
e of b changes `sqrt(v)` by at most `kappa = |K^(1/2) e|`, and `|error| <= 2 sqrt(v) kappa + kappa^2`. The bound of means (`bounds.py`)
bounds `|T^(1/2) e|`. With `K <= dominance T` it also bounds kappa.

`variance_truncation` bounds the effect of a Krylov space that is too small. Rounded products and rounded tiles slightly change
A, a and K. Their effect is measured on sampled rows, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ntkpipe.dynamics.bounds import error_budget
from ntkpipe.dynamics.direct_bounds import direct_budget
from ntkpipe.dynamics.filters import EPS, SpectralFilter
from ntkpipe.dynamics.gains import final_gain, gain_at
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.dynamics.sampling import RowSample, TestErrors, independent_share, norm_safety
from ntkpipe.dynamics.variance_truncation import inverse_floor, quadratic_truncation
from ntkpipe.dynamics.weights import DirectWeights, SpannedWeights, Weights


@dataclass(frozen=True)
class KernelRows:
    """Sampled train-train rows of one kernel, to measure rounding.

    Args:
        indices: (s,) sampled rows.
        stored: (s, n) stored rows in float64.
        exact: (s, n) rows recomputed in float64; None if the stored kernel is exact.
        systematic: see `RowSample`.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray | None
    systematic: float = 0.0

    def scale(self, n: int) -> float:
        """Factor from the norm of a sample to that of all n rows, with a safety factor."""
        return norm_safety(len(self.indices), n) * math.sqrt(n / max(len(self.indices), 1))

    def storage(self, weights: Weights) -> np.ndarray:
        """Bound (T, R, k) on `v^T D w` per unit of `|v|`, for independent entries of D = stored - exact; see `sampling.INDEPENDENT`."""
        systematic = self.systematic * weights.norms()
        if self.exact is None:
            return systematic
        n = self.stored.shape[1]
        norm = self.scale(n) * np.linalg.norm(weights.along(self.stored - self.exact), axis=2)
        return norm * independent_share(n) + systematic


@dataclass(frozen=True)
class Quadratic:
    """Quadratic forms `a^T psi(A) a` of k columns, at T times and R ridges.

    Args:
        value: (T, R, k).
        truncation: (T, R, k) bound on the error of `value` from a truncated space or a residual.
        rounding: (T, R, k) bound on the error of `value` from rounded products and tiles of the train-train kernel.
        weights: `psi(A) a`.
    """

    value: np.ndarray
    truncation: np.ndarray
    rounding: np.ndarray
    weights: Weights


@dataclass(frozen=True)
class Ensemble:
    """Weights `b = phi(A) a` of k columns for ensemble variances, at T times and R ridges.

    Args:
        weights: b.
        truncation: (T, R, k) bound on `|T^(1/2) error of b|` from a truncated space or a residual.
        rounding: (T, R, k) bound on `|T^(1/2) error of b|` from rounded products and tiles.
        gain: (T, R) bound on `|T^(1/2) phi(A)|`, the factor on an error of `a`.
    """

    weights: Weights
    truncation: np.ndarray
    rounding: np.ndarray
    gain: np.ndarray


def posterior_in_space(
    solution: KrylovSolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    rows: KernelRows,
) -> Quadratic:
    """Quadratic forms from the Krylov space (or all eigenvectors) of a batch, whose columns are the targets of `solution`.

    Args:
        solution: the projected train-train kernel, without ridge.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.
        rows: sampled rows of the same kernel.
    """
    shape = (len(times), len(ridges))
    m, k = solution.targets.shape
    coordinates = np.empty((*shape, m, k))
    value, truncation, rounding = (np.zeros((*shape, k)) for _ in range(3))
    asked = np.empty((*shape, m, k))
    for j, ridge in enumerate(ridges):
        values, cutoff = solution.shifted(ridge)
        for i, time in enumerate(times):
            psi, decay = _psi(spectral_filter, values, time, cutoff)
            eigen = psi[:, None] * solution.targets
            value[i, j] = np.einsum("mk,mk->k", solution.targets, eigen)
            coordinates[i, j] = solution.rotate(eigen)
            learnt = np.where(spectral_filter.unlearnt(values, time, cutoff=cutoff), 0.0, 1.0 - decay**2)
            # The value of the equation of the weights at any row, without the part outside the space.
            asked[i, j] = solution.rotate((learnt - ridge * psi)[:, None] * solution.targets)
        truncation[:, j] = quadratic_truncation(solution, spectral_filter, times, ridge)
    truncation[solution.unlearnt(spectral_filter, times, ridges) > 0] = math.inf
    weights = SpannedWeights(solution.basis, coordinates)
    size = weights.norms()
    here = solution.basis[:, rows.indices]
    residual = np.matmul(here.T, asked) - weights.along(rows.stored)
    if len(solution.tail):
        beyond = solution.next_block[:, rows.indices].T @ solution.tail
        residual += np.matmul(beyond, _unrotated(solution, coordinates))
    columns = np.linalg.norm(solution.targets, axis=0)
    largest = solution.largest + np.asarray(ridges)[None, :, None]
    product = rows.scale(solution.n) * np.linalg.norm(residual, axis=2) + ROUNDING * EPS * (largest * size + columns)
    rounding = size * (product + rows.storage(weights))
    return Quadratic(value, truncation, rounding, weights)


def posterior_of_solution(
    weights: np.ndarray,
    residuals: np.ndarray,
    columns: np.ndarray,
    ridges: Sequence[float],
    rows: KernelRows,
    *,
    smallest: float,
    largest: float,
) -> Quadratic:
    """Quadratic forms `x^T (a + r)` from approximate solutions at `t = inf` and their residuals. They are too small by `r^T A^-1 r`.

    Args:
        weights: (R, n, k) solutions x of `(T + ridge) x = a`.
        residuals: (R, n, k), `a - (T + ridge) x` in float64.
        columns: (n, k).
        ridges: R absolute ridges.
        rows: sampled rows of the train-train kernel.
        smallest: estimate of its smallest eigenvalue, without ridge.
        largest: estimate of its largest eigenvalue, without ridge.
    """
    made = DirectWeights(weights[None])
    size, off = made.norms()[0], np.linalg.norm(residuals, axis=1)
    value = np.einsum("rnk,rnk->rk", weights, columns + residuals)
    floor = np.array([inverse_floor(ridge, smallest, math.inf) for ridge in ridges])[:, None]
    scale = largest + np.asarray(ridges)[:, None]
    rounding = size * (ROUNDING * EPS * (scale * size + np.linalg.norm(columns, axis=0)) + rows.storage(made)[0])
    return Quadratic(value[None], (off**2 * floor)[None], rounding[None], made)


def ensemble_in_space(
    solution: KrylovSolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    rows: KernelRows,
) -> Ensemble:
    """Weights of ensemble variances from the Krylov space of a batch. Arguments are those of `posterior_in_space`."""
    weights = SpannedWeights(solution.basis, solution.coordinates(spectral_filter, times, ridges))
    exact = None if rows.exact is None else rows.exact @ solution.basis.T
    sample = RowSample(rows.indices, rows.stored @ solution.basis.T, exact, rows.systematic)
    budget = error_budget(solution, spectral_filter, times, ridges, rows=sample)
    gain = np.array(
        [[gain_at(spectral_filter, t, r, solution.smallest, solution.largest).value for r in ridges] for t in times]
    )
    return Ensemble(weights, budget.krylov, budget.product + budget.storage_train, gain)


def ensemble_of_solution(
    weights: np.ndarray,
    residuals: np.ndarray,
    columns: np.ndarray,
    ridges: Sequence[float],
    rows: KernelRows,
    *,
    smallest: float,
    largest: float,
) -> Ensemble:
    """Weights of ensemble variances from approximate solutions at `t = inf`. Arguments are those of `posterior_of_solution`."""
    exact = rows.stored if rows.exact is None else rows.exact
    budget = direct_budget(
        weights,
        columns,
        ridges,
        rows.indices,
        exact,
        smallest=smallest,
        largest=largest,
        rows_stored=rows.stored,
        systematic=rows.systematic,
    )
    gain = np.array([[final_gain(ridge, smallest).value for ridge in ridges]])
    off = np.linalg.norm(residuals, axis=1)[None] * gain[:, :, None]
    return Ensemble(DirectWeights(weights[None]), off, budget.product + budget.storage_train, gain)


class Variances(NamedTuple):
    """Variances `>= 0`, bounds on their errors, and the part of the bounds from rounding and storage; (T, R, k) each."""

    value: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray


def posterior_variances(prior: np.ndarray, quadratic: Quadratic, cross: TestErrors, *, unit: float) -> Variances:
    """Posterior variances and bounds on their errors.

    Args:
        prior: (k,) `K_**`.
        quadratic: quadratic forms of the same images.
        cross: errors of the test-train rows of the kernel of the solve, which is also the kernel of the prior.
        unit: unit roundoff of the precision of `prior`.
    """
    rounding = quadratic.rounding + ROUNDING * (unit + EPS) * prior
    rounding = rounding + 2.0 * cross.reach * quadratic.weights.norms() * np.sqrt(prior)
    return _variances(prior - quadratic.value, quadratic.truncation + rounding, rounding)


def ensemble_variances(
    prior: np.ndarray,
    diagonal: np.ndarray,
    ensemble: Ensemble,
    inner: np.ndarray,
    product: np.ndarray,
    rows: KernelRows,
    cross: TestErrors,
    cross_nngp: TestErrors,
    *,
    dominance: float,
    unit: float,
    trace: float,
    cross_norm: np.ndarray,
) -> Variances:
    """Ensemble variances and bounds on their errors.

    Args:
        prior: (k,) `K_**`.
        diagonal: (k,) `T_**`.
        ensemble: weights of the same images.
        inner: (T, R, k) `b^T K b`, with K the stored NNGP kernel.
        product: (T, R, k) `b^T k_*`.
        rows: sampled rows of the NNGP kernel.
        cross: errors of the stored test-train NTK.
        cross_nngp: errors of the stored test-train NNGP kernel.
        dominance: a number with `K <= dominance T` on the training images.
        unit: unit roundoff of the precision of `prior`.
        trace: trace of the train-train NNGP kernel, a bound on its eigenvalues.
        cross_norm: (k,) `|k_*|`.
    """
    value = prior + inner - 2.0 * product
    size, root = ensemble.weights.norms(), np.sqrt(np.maximum(prior + inner - 2.0 * product, 0.0))
    scale = math.sqrt(dominance)
    rounded = scale * (ensemble.rounding + ensemble.gain[:, :, None] * cross.reach * np.sqrt(diagonal))
    kappa = scale * ensemble.truncation + rounded
    other = size * rows.storage(ensemble.weights) + 2.0 * cross_nngp.reach * size * np.sqrt(prior)
    # Products of n terms have rounding errors of a few units of eps |K| |b|^2 and of eps |k_*| |b|. The sum adds some units of each term.
    other = other + ROUNDING * EPS * (inner + 2.0 * np.abs(product) + 2.0 * cross_norm * size)
    other = other + EPS * np.sqrt(np.maximum(inner, 0.0) * trace) * size + ROUNDING * (unit + EPS) * prior
    return _variances(value, (2.0 * root + kappa) * kappa + other, (2.0 * root + rounded) * rounded + other)


def _variances(value: np.ndarray, bound: np.ndarray, rounding: np.ndarray) -> Variances:
    """Set negative variances to 0, and unknown bounds to inf."""
    known = np.isfinite(value)
    bound = np.where(known & np.isfinite(bound), bound, math.inf)
    return Variances(np.maximum(value, 0.0), bound, np.where(known & np.isfinite(rounding), rounding, math.inf))


def _psi(
    spectral_filter: SpectralFilter, values: np.ndarray, time: float, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    phi = spectral_filter.weights(values, time, cutoff=cutoff)
    decay = spectral_filter.decay(values, time, cutoff=cutoff)
    return phi * (1.0 + np.where(phi == 0, 0.0, decay)), decay


def _unrotated(solution: KrylovSolution, coordinates: np.ndarray) -> np.ndarray:
    return coordinates if solution.rotation is None else np.matmul(solution.rotation.T, coordinates)
