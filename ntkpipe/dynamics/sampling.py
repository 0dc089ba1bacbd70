"""Sampled rows and test images that measure rounding errors, and their safety factors for all rows and images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special

# Probability that a bound from samples is exceeded, for each time, ridge, class and kind of error.
MISS_PROBABILITY = 1e-6

# Bound on the error of a prediction from independent errors D of matrix entries, in units of the gain times the spread s (root mean square)
# of the entries of D u. The error is v^T D u, where v (|v| at most the gain) and u do not depend on D. It is a sum of independent terms
# with a variance of at most 2 |v|^2 s^2. It exceeds 4.9 standard deviations with probability 1e-6. s is doubled, because it differs
# between rows (the largest was 5 times the mean). For real float32 tiles of ReLU and erf networks of depths 3 and 10, v^T D u was at most
# 5.8 |v| s in 1,500 predictions each, and 14 are allowed.
INDEPENDENT = 14.0


def independent_share(n: int) -> float:
    """Share of the norm of the n entries of `D u` that a bound needs for independent errors D: 1 up to n = 196, then `14 / sqrt(n)`."""
    return min(1.0, INDEPENDENT / math.sqrt(n))


@dataclass(frozen=True)
class RowSample:
    """Sampled train-train rows times the basis of a `KrylovSolution`, which measure errors that its residual does not contain.

    Args:
        indices: (k,) distinct sampled rows (`sample_indices`).
        stored: (k, m) `rows_of_the_stored_kernel @ basis.T`, in float64.
        exact: (k, m) `rows_recomputed_in_float64 @ basis.T`; None if the stored kernel is exact.
        systematic: bound on the spectral norm of the errors of the recomputed rows: rounding in their evaluation, and approximations of
            a nonlinearity, which do not average out.
        rounding: size of the rounding errors of recomputed entries, in units of `sqrt(k(x, x) k(x', x'))`, if `systematic` consists
            only of these and they are independent between entries; 0 if it contains approximations.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray | None = None
    systematic: float = 0.0
    rounding: float = 0.0


@dataclass(frozen=True)
class TestErrors:
    """Errors of the stored rows of the test-train kernel. All are in units of `sqrt(T_**)` of their image.

    Args:
        norm: bound on the norm of the errors of any row.
        rows: (p, n) all errors if every entry was recomputed; None otherwise.
        systematic: bound on the norm of the errors of the recomputed entries of a row.
        product: (T, R, c) largest rounding error of float32 products over the test images; None for float64 products.
        spread: (p,) root mean square of the error of an entry in each row, at least that over all rows; None if unknown.
    """

    __test__ = False  # tells pytest that this is not a test class

    norm: float
    rows: np.ndarray | None = None
    systematic: float = 0.0
    product: np.ndarray | None = None
    spread: np.ndarray | None = None

    @property
    def reach(self) -> float:
        """Bound on the norm of all errors of a stored row."""
        return self.norm + self.systematic

    @staticmethod
    def of_columns(difference: np.ndarray, diagonal: np.ndarray, n: int, systematic: float = 0.0) -> TestErrors:
        """The errors from sampled columns, which contain some entries of every test image.

        Args:
            difference: (p, k) stored minus recomputed entries, for k training images drawn at random.
            diagonal: (p,) `T_**`.
            n: number of all training images.
            systematic: see the class.
        """
        root = np.sqrt(np.maximum(diagonal, np.finfo(np.float64).tiny))
        relative = difference / root[:, None]
        k = difference.shape[1]
        own = np.sqrt(np.mean(relative**2, axis=1))
        spread = np.maximum(own, math.sqrt(float(np.mean(own**2))) if len(own) else 0.0)
        if k >= n:
            largest = float(np.linalg.norm(relative, axis=1).max(initial=0.0))
            return TestErrors(largest, relative, systematic, spread=spread)
        each = own.max(initial=0.0)
        return TestErrors(norm_safety(k, n) * math.sqrt(n) * float(each), None, systematic, spread=spread)


def matrix_noise(difference: np.ndarray, n: int) -> float:
    """Bound on the spectral norm of a symmetric (n, n) matrix of independent errors, from k of its rows.

    Independent entries with spread s have the norm `2 s sqrt(n)` (Wigner). The bound uses `3 s sqrt(n)`, because rows differ. It also
    bounds the errors of the eigenvalues of the stored matrix (Weyl).

    Args:
        difference: (k, n) sampled rows of the errors. With k = n the norm itself is computed.
        n: number of all rows.
    """
    if not difference.size:
        return 0.0
    if len(difference) >= n:
        return float(np.linalg.norm(difference, 2))
    return 3.0 * math.sqrt(n) * norm_safety(len(difference), n) * float(np.sqrt(np.mean(difference**2)))


def sample_indices(n: int, size: int, seed: int = 0) -> np.ndarray:
    """min(n, size) distinct row numbers below n, drawn uniformly at random and sorted. The seed determines them."""
    return np.sort(np.random.default_rng(seed).choice(n, size=min(n, size), replace=False))


def norm_safety(sampled: int, total: int) -> float:
    """Factor by which `sqrt(total / sampled) * norm(sample)` may be smaller than the whole norm; 1 if all entries were sampled.

    The factor comes from the `MISS_PROBABILITY` quantile of the sum of k squared Gaussians. Half the degrees of freedom are used, which
    allows for entries with kurtosis 5 instead of 3.
    """
    if sampled >= total:
        return 1.0
    freedom = max(sampled, 1) / 2
    return math.sqrt(freedom / float(2 * scipy.special.gammaincinv(freedom / 2, MISS_PROBABILITY)))


def maximum_safety(sampled: int, total: int) -> float:
    """Factor on the root mean square of a sample that gives a bound on the largest of `total` Gaussians; see `norm_safety`."""
    return norm_safety(sampled, total) * float(-scipy.special.ndtri(MISS_PROBABILITY / max(total, 1)))


def largest_of_all(sampled: np.ndarray, total: int) -> np.ndarray:
    """Bound (T, R, c) on the largest of `total` numbers, from a sample (T, R, k, c) of them. Numbers are at least 0."""
    k = sampled.shape[2]
    if k >= total:
        return sampled.max(axis=2)
    return maximum_safety(k, total) * np.sqrt(np.mean(sampled**2, axis=2))
