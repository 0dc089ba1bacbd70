"""Variances of test outputs from filters applied to a batch of test images, and bounds on their errors.

With `a` the kernel between the training images and a test image, and A the train-train kernel plus ridge:

- a *posterior* variance (NNGP, `ntkgp`) is `K_** - a^T psi(A) a`, `psi = phi (1 + decay)`: a quadratic form;
- an *ensemble* variance (all layers trained) is `K_** + b^T K b - 2 b^T k_*`, `b = phi(A) a`, K the NNGP without ridge.

**Quadratic forms.** For gradient flow and descent psi is phi at twice the time. In the Krylov space of the batch the
weights x(t) obey `x' = a - A x` up to a residual r(t) that is orthogonal to the space, hence to x'. So

    error of a^T x(t) = int int r'(u)^T exp(-A (t - z - u)) r(z) du dz,
    |error| <= (variation of r up to t) (largest |r| up to t) min(t, 1 / l_min(A)),        at t = inf: |r|^2 / l_min(A)

which is of second order in the residual: half as many steps do as for a mean. With a ridge, or at a finite time, nothing
is assumed of the spectrum.

**Ensembles.** `v = |K^(1/2) (b, -1)|^2` on training and test images together, K being positive semi-definite, so that an error
e of b moves `sqrt(v)` by at most `kappa = |K^(1/2) e|`, and `|error| <= 2 sqrt(v) kappa + kappa^2`. The bound of means (`bounds.py`)
is one of `|T^(1/2) e|`; with `K <= dominance T` it is one of kappa.

Rounded products and rounded tiles move A, a and K a little: that is measured on sampled rows, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ntkpipe.dynamics.bounds import GRID_PER_DECADE, error_budget, krylov_factors
from ntkpipe.dynamics.direct_bounds import direct_budget
from ntkpipe.dynamics.filters import EPS, GradientDescent, Momentum, SpectralFilter
from ntkpipe.dynamics.gains import final_gain, gain_at
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.dynamics.sampling import RowSample, TestErrors, independent_share, norm_safety
from ntkpipe.dynamics.weights import DirectWeights, SpannedWeights, Weights

# On the inverse of a smallest eigenvalue that is an estimate: after one block step of the tests it was 1.42 too small.
SPECTRUM_SAFETY = 2.0


@dataclass(frozen=True)
class KernelRows:
    """Sampled train-train rows of one kernel, to measure rounding.

    Args:
        indices: (s,) sampled rows.
        stored: (s, n) float64, as stored.
        exact: (s, n) recomputed in float64, or None where the stored kernel is the exact one.
        systematic: see `RowSample`.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray | None
    systematic: float = 0.0

    def scale(self, n: int) -> float:
        """Factor from the norm of a sample to that of all n rows, with its safety."""
        return norm_safety(len(self.indices), n) * math.sqrt(n / max(len(self.indices), 1))

    def storage(self, weights: Weights) -> np.ndarray:
        """What counts of the norm of `D w` in a product `v^T D w`, (T, R, k), D = stored - exact; zero without exact rows.

        Entries of D are taken for independent, see `sampling.INDEPENDENT`.
        """
        systematic = self.systematic * weights.norms()
        if self.exact is None:
            return systematic
        n = self.stored.shape[1]
        norm = self.scale(n) * np.linalg.norm(weights.along(self.stored - self.exact), axis=2)
        return norm * independent_share(n) + systematic


@dataclass(frozen=True)
class Quadratic:
    """`a^T psi(A) a` of k columns, at T times and R ridges.

    Args:
        value: (T, R, k).
        truncation: (T, R, k) bound on the error of `value` from a space that is too small, or a residual.
        rounding: (T, R, k) likewise from rounded products and tiles of the train-train kernel.
        weights: `psi(A) a`.
    """

    value: np.ndarray
    truncation: np.ndarray
    rounding: np.ndarray
    weights: Weights


@dataclass(frozen=True)
class Ensemble:
    """`b = phi(A) a` of k columns, at T times and R ridges.

    Args:
        weights: b.
        truncation: (T, R, k) bound on `|T^(1/2) error of b|` from a space that is too small, or a residual.
        rounding: (T, R, k) likewise from rounded products and tiles.
        gain: (T, R) bound on `|T^(1/2) phi(A)|`: what an error of `a` becomes.
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
    """From the Krylov space (or all eigenvectors) of a batch, whose columns are the targets of `solution`.

    Args:
        solution: of the train-train kernel, without ridge.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.
        rows: of the same kernel.
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
            # What the equation makes of the weights at any row, but for the part outside the space.
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


def quadratic_truncation(
    solution: KrylovSolution, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float
) -> np.ndarray:
    """Bound (T, k) on what a space that is too small does to `a^T psi(A) a`; see the top of this file.

    For momentum psi is no filter at twice the time, and a bound of first order takes its place.
    """
    out = np.zeros((len(times), solution.c))
    if not len(solution.tail):
        return out
    if isinstance(spectral_filter, Momentum):
        return _momentum_truncation(solution, spectral_filter, times, ridge)
    values, cutoff = solution.shifted(ridge)

    def residual(time: float) -> np.ndarray:
        return solution.tail @ (spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets)

    overshoot = 0.0
    if isinstance(spectral_filter, GradientDescent):
        eta = spectral_filter.scaled_time(1)
        q = eta * (solution.largest + ridge)
        if q >= 2:  # diverges
            return np.full(out.shape, math.inf)
        # Steps that go too far die out like (q - 1)^j.
        overshoot = eta / (2.0 - q) if q > 1 else 0.0
    finite = sorted({2.0 * t for t in times if math.isfinite(t) and t > 0})
    variation, peak = np.zeros(solution.c), np.zeros(solution.c)
    reached: dict[float, tuple[np.ndarray, np.ndarray]] = {0.0: (variation, peak)}
    before = np.zeros((len(solution.tail), solution.c))
    for time in _grid(solution, spectral_filter, finite):
        now = residual(time)
        variation = variation + np.linalg.norm(now - before, axis=0)
        peak = np.maximum(peak, np.linalg.norm(now, axis=0))
        reached[time], before = (variation, peak), now
    for i, time in enumerate(times):
        if math.isinf(time):
            out[i] = np.linalg.norm(residual(time), axis=0) ** 2 * _inverse_floor(ridge, solution.smallest, math.inf)
        else:
            change, largest = reached[2.0 * time]
            elapsed = spectral_filter.scaled_time(2.0 * time)
            out[i] = change * largest * min(elapsed, max(_inverse_floor(ridge, solution.smallest, elapsed), overshoot))
    return out


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
    """From approximate solutions at `t = inf` and their residuals, `x^T (a + r)`: off by `r^T A^-1 r`, never above.

    Args:
        weights: (R, n, k) solutions x of `(T + ridge) x = a`.
        residuals: (R, n, k), `a - (T + ridge) x` in float64.
        columns: (n, k).
        ridges: R absolute ridges.
        rows: of the train-train kernel.
        smallest: estimate of its smallest eigenvalue, without ridge.
        largest: likewise of the largest.
    """
    made = DirectWeights(weights[None])
    size, off = made.norms()[0], np.linalg.norm(residuals, axis=1)
    value = np.einsum("rnk,rnk->rk", weights, columns + residuals)
    floor = np.array([_inverse_floor(ridge, smallest, math.inf) for ridge in ridges])[:, None]
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
    """Arguments as for `posterior_in_space`."""
    weights = SpannedWeights(solution.basis, solution.coordinates(spectral_filter, times, ridges))
    exact = None if rows.exact is None else rows.exact @ solution.basis.T
    sample = RowSample(rows.indices, rows.stored @ solution.basis.T, exact, rows.systematic)
    budget = error_budget(solution, spectral_filter, times, ridges, rows=sample)
    gain = np.array(
        [[gain_at(spectral_filter, t, r, solution.smallest, solution.largest).value for r in ridges] for t in times]
    )
    return Ensemble(weights, budget.krylov, budget.product + budget.storage_train, gain)


def ensemble_truncation(
    solution: KrylovSolution, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
) -> np.ndarray:
    """Bound (T, R, k) on `|T^(1/2) error of phi(A) a|` by a space that is too small, but for what is left out."""
    return krylov_factors(solution, spectral_filter, times, ridges)


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
    """Arguments as for `posterior_of_solution`."""
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
    """Variances `>= 0`, bounds on their errors, and the part of the bound that is rounding and storage; (T, R, k) each."""

    value: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray


def posterior_variances(prior: np.ndarray, quadratic: Quadratic, cross: TestErrors, *, unit: float) -> Variances:
    """Variances and bounds on their errors.

    Args:
        prior: (k,) `K_**`.
        quadratic: of the same images.
        cross: of the kernel that is solved with, which is also that of the prior.
        unit: roundoff of what `prior` was computed in.
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
    """Variances and bounds on their errors.

    Args:
        prior: (k,) `K_**`.
        diagonal: (k,) `T_**`.
        ensemble: of the same images.
        inner: (T, R, k) `b^T K b`, K the stored NNGP.
        product: (T, R, k) `b^T k_*`.
        rows: of the NNGP.
        cross: errors of the stored test-train NTK.
        cross_nngp: likewise of the NNGP.
        dominance: a number with `K <= dominance T` on the training images.
        unit: roundoff of what `prior` was computed in.
        trace: of the train-train NNGP: no eigenvalue is above it.
        cross_norm: (k,) `|k_*|`.
    """
    value = prior + inner - 2.0 * product
    size, root = ensemble.weights.norms(), np.sqrt(np.maximum(prior + inner - 2.0 * product, 0.0))
    scale = math.sqrt(dominance)
    rounded = scale * (ensemble.rounding + ensemble.gain[:, :, None] * cross.reach * np.sqrt(diagonal))
    kappa = scale * ensemble.truncation + rounded
    other = size * rows.storage(ensemble.weights) + 2.0 * cross_nngp.reach * size * np.sqrt(prior)
    # Products of n terms lose a few units of eps |K| |b|^2 and of eps |k_*| |b|, and the sum some of each of its parts.
    other = other + ROUNDING * EPS * (inner + 2.0 * np.abs(product) + 2.0 * cross_norm * size)
    other = other + EPS * np.sqrt(np.maximum(inner, 0.0) * trace) * size + ROUNDING * (unit + EPS) * prior
    return _variances(value, (2.0 * root + kappa) * kappa + other, (2.0 * root + rounded) * rounded + other)


def _variances(value: np.ndarray, bound: np.ndarray, rounding: np.ndarray) -> Variances:
    """Nothing negative, and no bound where there is none to be had."""
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


def _inverse_floor(ridge: float, smallest: float, elapsed: float) -> float:
    """`min(elapsed, 1 / l_min(A))`: from the ridge, or from the estimate of the smallest eigenvalue with its safety."""
    rigorous = min(elapsed, 1.0 / ridge if ridge > 0 else math.inf)
    estimate = SPECTRUM_SAFETY / (smallest + ridge) if smallest + ridge > 0 else math.inf
    return min(rigorous, estimate)


def _grid(solution: KrylovSolution, spectral_filter: SpectralFilter, asked: Sequence[float]) -> list[float]:
    """Times at which the residual is looked at: those asked for, and between them so many a decade."""
    if not asked or solution.largest <= 0:
        return list(asked)
    first = min(
        asked[-1], 0.1 * spectral_filter.n * spectral_filter.c / spectral_filter.learning_rate / solution.largest
    )
    count = 2 + math.ceil(GRID_PER_DECADE * math.log10(max(asked[-1] / first, 1.0)))
    between = np.geomspace(first, asked[-1], count)
    if isinstance(spectral_filter, GradientDescent):
        between = np.unique(np.floor(between))
    return sorted({*asked, *(float(t) for t in between if 0 < t < asked[-1])})


def _momentum_truncation(
    solution: KrylovSolution, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float
) -> np.ndarray:
    """`a^T psi a = 2 a^T x - x^T A x` with `x = phi(A) a`: off by at most `2 (|a|_T + |x|_A) kappa + kappa^2`.

    `kappa` bounds `|A^(1/2) error of x|` and `|a^T e| <= |a|_T |T^(1/2) e|`, where `|a|_T` is at most `sqrt(a^T T^+ a)`.
    """
    budget = error_budget(solution, spectral_filter, times, (ridge,)).krylov[:, 0]
    values, cutoff = solution.shifted(ridge)
    out = np.empty(budget.shape)
    for i, time in enumerate(times):
        x = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
        own = np.sqrt(np.einsum("mk,m,mk->k", x, np.maximum(values, 0.0), x))
        if math.isinf(time):
            residual = np.linalg.norm(solution.tail @ x, axis=0)
            out[i] = residual**2 * _inverse_floor(ridge, solution.smallest, math.inf)
            continue
        kept = values > cutoff
        reach = np.sqrt(np.sum(solution.targets[kept] ** 2 / values[kept, None], axis=0))
        out[i] = 2.0 * (reach + own) * budget[i] + budget[i] ** 2
    return out
