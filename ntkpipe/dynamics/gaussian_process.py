"""Dense means and covariances of infinitely wide networks at any training time (Lee et al. 2019, arXiv:1902.06720).

All results are evaluated from eigendecompositions of the train-train kernels *without* ridge. A ridge shifts the
eigenvalues and a time changes the filter, so one decomposition serves all of them. No inverse is formed, so a singular kernel
gives finite values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.eigh import Eigensystem

EPS = float(np.finfo(np.float64).eps)
# Safety factor on rounding errors. A sum of n products has errors of n eps, and an eigendecomposition a few times more.
_ROUNDING = 8.0


def means(
    system: Eigensystem,
    k_test_train: np.ndarray,
    targets: np.ndarray,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
) -> np.ndarray:
    """Test means `K_* phi_t(K + ridge) targets`. For a network with initial outputs `f0`, pass `y - f0` and add `f0_*`.

    Args:
        system: eigendecomposition of the (n, n) train-train kernel.
        k_test_train: (p, n).
        targets: (n, c).
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.

    Returns:
        (T, R, p, c) float64.
    """
    projected = k_test_train @ system.vectors
    rotated = system.vectors.T @ targets
    out = np.empty((len(times), len(ridges), projected.shape[0], targets.shape[1]))
    for j, ridge in enumerate(ridges):
        values, cutoff = system.shifted(ridge)
        for i, time in enumerate(times):
            weights = spectral_filter.weights(values, time, cutoff=cutoff)
            out[i, j] = projected @ (weights[:, None] * rotated)
    return out


def nngp_covariance(
    system: Eigensystem,
    k_test_train: np.ndarray,
    k_test_test: np.ndarray,
    spectral_filter: SpectralFilter,
    time: float,
    ridge: float,
    eps: float = EPS,
) -> np.ndarray:
    """Covariance over networks of which only the readout is trained.

    For gradient flow it is `K_** - K_* phi_2t(K + ridge) K_*^T`. The ridge acts as noise of the initial
    outputs. At `t = inf` it is the Bayesian posterior (with the NTK as K: `ntkgp`). For any dynamics the filter is `phi (1
    + decay)`, which for gradient flow is the filter at twice the time.

    Args:
        system: eigendecomposition of the train-train kernel.
        k_test_train: (p, n).
        k_test_test: (p, p) for the full covariance, or its (p,) diagonal for only the variances.
        spectral_filter: the training dynamics.
        time: time in steps.
        ridge: absolute ridge.
        eps: relative error of the kernels' entries.

    Returns:
        An array of the shape of `k_test_test`, symmetric. Variances that rounding makes negative are set to 0.

    Raises:
        NumericalError: if a variance is more negative than rounding explains.
    """
    values, cutoff = system.shifted(ridge)
    weights = spectral_filter.weights(values, time, cutoff=cutoff)
    weights = weights * (1.0 + np.where(weights == 0, 0.0, spectral_filter.decay(values, time, cutoff=cutoff)))
    projected = k_test_train @ system.vectors
    left = projected * weights
    size, reach = np.linalg.norm(projected, axis=1), np.linalg.norm(left, axis=1)
    scale = 2.0 * size * reach + float(values.max()) * reach**2
    if k_test_test.ndim == 1:
        return _settled(k_test_test - np.einsum("ij,ij->i", left, projected), k_test_test, scale, len(values) * eps)
    return _settled(k_test_test - left @ projected.T, k_test_test.diagonal(), scale, len(values) * eps)


def ntk_covariance(
    system: Eigensystem,
    ntk_test_train: np.ndarray,
    nngp_train_train: np.ndarray,
    nngp_test_train: np.ndarray,
    nngp_test_test: np.ndarray,
    spectral_filter: SpectralFilter,
    time: float,
    ridge: float,
    eps: float = EPS,
) -> np.ndarray:
    """Covariance over networks of which all layers are trained.

    `K_** + B K B^T - B K_*^T - (B K_*^T)^T` with `B = T_* phi(T + ridge)`.

    Args:
        system: eigendecomposition of the train-train NTK.
        ntk_test_train: (p, n).
        nngp_train_train: (n, n), without ridge.
        nngp_test_train: (p, n).
        nngp_test_test: (p, p) for the full covariance, or its (p,) diagonal for only the variances.
        spectral_filter: the training dynamics.
        time: time in steps.
        ridge: absolute ridge of the NTK.
        eps: relative error of the kernels' entries.

    Returns:
        An array of the shape of `nngp_test_test`, symmetric. Variances that rounding makes negative are set to 0.

    Raises:
        NumericalError: if a variance is more negative than rounding explains.
    """
    values, cutoff = system.shifted(ridge)
    weights = spectral_filter.weights(values, time, cutoff=cutoff)
    b = ((ntk_test_train @ system.vectors) * weights) @ system.vectors.T
    # (B K - 2 K_*) B^T, symmetrised. It takes one product of size p x n x n, and one of size p x n x p only for the full matrix.
    once = b @ nngp_train_train
    inner = once - 2.0 * nngp_test_train
    size, whole = np.linalg.norm(b, axis=1), float(np.linalg.norm(nngp_train_train))
    # Rounding error of the weights b, and its effect on the variance to first and second order.
    off = float(np.abs(weights).max()) * (np.linalg.norm(ntk_test_train, axis=1) + float(values.max()) * size)
    scale = 2.0 * size * np.linalg.norm(nngp_test_train, axis=1) + whole * size**2
    scale += 2.0 * np.linalg.norm(once - nngp_test_train, axis=1) * off + len(values) * eps * whole * off**2
    if nngp_test_test.ndim == 1:
        return _settled(nngp_test_test + np.einsum("ij,ij->i", inner, b), nngp_test_test, scale, len(values) * eps)
    return _settled(nngp_test_test + inner @ b.T, nngp_test_test.diagonal(), scale, len(values) * eps)


def _settled(covariance: np.ndarray, prior: np.ndarray, scale: np.ndarray, unit: float) -> np.ndarray:
    """Correct the sign and the symmetry of variances (p,) or of a covariance (p, p) after rounding.

    Args:
        covariance: the computed variances or covariance.
        prior: (p,) prior variances.
        scale: (p,) sizes of the subtracted terms. Their rounding errors are `unit` times these.
        unit: relative rounding error of a sum over the training points.
    """
    own = covariance if covariance.ndim == 1 else covariance.diagonal()
    below = own < -_ROUNDING * unit * (np.abs(prior) + scale)
    if below.any():
        at = int(np.argmin(np.where(below, own, 0.0)))
        raise NumericalError(
            f"the variance of test point {at} is {own[at]:.3g}, and was {prior[at]:.3g} before training. Rounding does not explain "
            "this: the kernels of training and test points are not parts of one positive semidefinite kernel. Check "
            "that all of them come from the same network and the same points"
        )
    cut = np.maximum(own, 0.0)
    if covariance.ndim == 1:
        return cut
    symmetric = 0.5 * (covariance + covariance.T)
    np.fill_diagonal(symmetric, cut)
    return symmetric


def count_unlearnt(system: Eigensystem, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float) -> int:
    """Number of null eigenvalues that are left out at the last of `times`. Above 0, callers should warn of a singular kernel."""
    values, cutoff = system.shifted(ridge)
    return int(spectral_filter.unlearnt(values, max(times, default=math.inf), cutoff=cutoff).sum())
