"""Dense means and covariances of infinitely wide networks at any training time (Lee et al. 2019, arXiv:1902.06720).

Everything is evaluated from eigendecompositions of the train-train kernels *without* ridge: a ridge shifts the
eigenvalues, a time changes the filter, so one decomposition serves all. No inverse is formed, hence a singular kernel
gives finite values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter, null_cutoff


@dataclass(frozen=True)
class Eigensystem:
    """`kernel = vectors @ diag(values) @ vectors.T`, without ridge.

    Args:
        values: (n,) float64.
        vectors: (n, n) float64, columns.
    """

    values: np.ndarray
    vectors: np.ndarray

    @staticmethod
    def of(kernel: np.ndarray) -> Eigensystem:
        """Of a dense symmetric (n, n) kernel, by divide and conquer."""
        import scipy.linalg

        values, vectors = scipy.linalg.eigh(np.asarray(kernel, dtype=np.float64), driver="evd")
        return Eigensystem(values, vectors)

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """Eigenvalues plus ridge, and the cutoff below which they are null."""
        values = self.values + ridge
        return values, null_cutoff(len(values), float(values.max()))


def means(
    system: Eigensystem,
    k_test_train: np.ndarray,
    targets: np.ndarray,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
) -> np.ndarray:
    """Test means `K_* phi_t(K + ridge) targets`; for a network that starts at `f0`, pass `y - f0` and add `f0_*`.

    Args:
        system: of the (n, n) train-train kernel.
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
) -> np.ndarray:
    """Covariance over networks of which only the readout is trained.

    For gradient flow it is `K_** - K_* phi_2t(K + ridge) K_*^T`. The ridge is inside, as noise of the initial
    outputs; `t = inf` is the Bayesian posterior (with the NTK for K: `ntkgp`). For any dynamics the filter is `phi (1
    + decay)`, which for gradient flow is that of twice the time.

    Args:
        system: of the train-train kernel.
        k_test_train: (p, n).
        k_test_test: (p, p) for the full covariance, or its (p,) diagonal for the variances alone.
        spectral_filter: the training dynamics.
        time: in steps.
        ridge: absolute.

    Returns:
        The shape of `k_test_test`. Variances are cut at 0, below which rounding may carry them.
    """
    values, cutoff = system.shifted(ridge)
    weights = spectral_filter.weights(values, time, cutoff=cutoff)
    weights = weights * (1.0 + np.where(weights == 0, 0.0, spectral_filter.decay(values, time, cutoff=cutoff)))
    projected = k_test_train @ system.vectors
    left = projected * weights
    if k_test_test.ndim == 1:
        return np.maximum(k_test_test - np.einsum("ij,ij->i", left, projected), 0.0)
    product = left @ projected.T
    return k_test_test - 0.5 * (product + product.T)


def ntk_covariance(
    system: Eigensystem,
    ntk_test_train: np.ndarray,
    nngp_train_train: np.ndarray,
    nngp_test_train: np.ndarray,
    nngp_test_test: np.ndarray,
    spectral_filter: SpectralFilter,
    time: float,
    ridge: float,
) -> np.ndarray:
    """Covariance over networks of which all layers are trained.

    `K_** + B K B^T - B K_*^T - (B K_*^T)^T` with `B = T_* phi(T + ridge)`.

    Args:
        system: of the train-train NTK.
        ntk_test_train: (p, n).
        nngp_train_train: (n, n), without ridge.
        nngp_test_train: (p, n).
        nngp_test_test: (p, p), or its (p,) diagonal for the variances alone.
        spectral_filter: the training dynamics.
        time: in steps.
        ridge: absolute, of the NTK.

    Returns:
        The shape of `nngp_test_test`.
    """
    values, cutoff = system.shifted(ridge)
    weights = spectral_filter.weights(values, time, cutoff=cutoff)
    b = ((ntk_test_train @ system.vectors) * weights) @ system.vectors.T
    # (B K - 2 K_*) B^T symmetrised: one product of size p x n x n, and one of p x n x p only where the full matrix is
    # wanted.
    inner = b @ nngp_train_train - 2.0 * nngp_test_train
    if nngp_test_test.ndim == 1:
        return np.maximum(nngp_test_test + np.einsum("ij,ij->i", inner, b), 0.0)
    product = inner @ b.T
    return nngp_test_test + 0.5 * (product + product.T)


def count_unlearnt(system: Eigensystem, spectral_filter: SpectralFilter, times: Sequence[float], ridge: float) -> int:
    """Null eigenvalues that stay unlearnt at the last of `times`; above 0, warn of a singular kernel."""
    values, cutoff = system.shifted(ridge)
    return int(spectral_filter.unlearnt(values, max(times, default=math.inf), cutoff=cutoff).sum())
