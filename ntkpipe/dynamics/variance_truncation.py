"""Bounds on the error of variances from a Krylov space that is too small. Solvers also stop by them.

The notation is that of `variance`. For gradient flow and descent psi is phi at twice the time. In the Krylov space of the
batch the weights x(t) satisfy `x' = a - A x` up to a residual r(t), which is orthogonal to the space and so to x'. Therefore

    error of a^T x(t) = int int r'(u)^T exp(-A (t - z - u)) r(z) du dz,
    |error| <= (variation of r up to t) (largest |r| up to t) min(t, 1 / l_min(A)),        at t = inf: |r|^2 / l_min(A)

This is of second order in the residual, so half as many steps suffice as for a mean. With a ridge, or at a finite time, the bound
assumes nothing about the spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ntkpipe.dynamics.bounds import error_budget, times_between
from ntkpipe.dynamics.filters import GradientDescent, Momentum, SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution

# Safety factor on the inverse of an estimated smallest eigenvalue. After one block step in the tests it was 1.42 times too small.
SPECTRUM_SAFETY = 2.0


def quadratic_truncation(
    solution: KrylovSolution, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float
) -> np.ndarray:
    """Bound (T, k) on the error of `a^T psi(A) a` from a truncated space; see the module.

    For momentum psi is not a filter at twice the time, so a bound of first order is used.
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
        # The effect of steps that overshoot decays like (q - 1)^j.
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
            out[i] = np.linalg.norm(residual(time), axis=0) ** 2 * inverse_floor(ridge, solution.smallest, math.inf)
        else:
            change, largest = reached[2.0 * time]
            elapsed = spectral_filter.scaled_time(2.0 * time)
            out[i] = change * largest * min(elapsed, max(inverse_floor(ridge, solution.smallest, elapsed), overshoot))
    return out


def inverse_floor(ridge: float, smallest: float, elapsed: float) -> float:
    """`min(elapsed, 1 / l_min(A))`, from the ridge, or from the estimate of the smallest eigenvalue with a safety factor."""
    rigorous = min(elapsed, 1.0 / ridge if ridge > 0 else math.inf)
    estimate = SPECTRUM_SAFETY / (smallest + ridge) if smallest + ridge > 0 else math.inf
    return min(rigorous, estimate)


def _grid(solution: KrylovSolution, spectral_filter: SpectralFilter, asked: Sequence[float]) -> list[float]:
    """Times at which the residual is evaluated: the requested times, and `GRID_PER_DECADE` times per decade between them."""
    if not asked or solution.largest <= 0:
        return list(asked)
    first = min(
        asked[-1], 0.1 * spectral_filter.n * spectral_filter.c / spectral_filter.learning_rate / solution.largest
    )
    between = times_between(first, asked[-1])
    if isinstance(spectral_filter, GradientDescent):
        between = np.unique(np.floor(between))
    return sorted({*asked, *(float(t) for t in between if 0 < t < asked[-1])})


def _momentum_truncation(
    solution: KrylovSolution, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float
) -> np.ndarray:
    """Bound (T, k) on the error of `a^T psi a = 2 a^T x - x^T A x` with `x = phi(A) a` for momentum.

    It is `2 (|a|_T + |x|_A) kappa + kappa^2`. `kappa` bounds `|A^(1/2) error of x|`, and `|a^T e| <= |a|_T |T^(1/2) e|` with
    `|a|_T <= sqrt(a^T T^+ a)`.
    """
    budget = error_budget(solution, spectral_filter, times, (ridge,)).krylov[:, 0]
    values, cutoff = solution.shifted(ridge)
    out = np.empty(budget.shape)
    for i, time in enumerate(times):
        x = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
        own = np.sqrt(np.einsum("mk,m,mk->k", x, np.maximum(values, 0.0), x))
        if math.isinf(time):
            residual = np.linalg.norm(solution.tail @ x, axis=0)
            out[i] = residual**2 * inverse_floor(ridge, solution.smallest, math.inf)
            continue
        kept = values > cutoff
        reach = np.sqrt(np.sum(solution.targets[kept] ** 2 / values[kept, None], axis=0))
        out[i] = 2.0 * (reach + own) * budget[i] + budget[i] ** 2
    return out
