"""Rows and test images sampled to measure rounding, and what may be inferred from them about all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special

# A sampled norm or maximum may be exceeded with this probability, per time, ridge, class and kind of error.
MISS_PROBABILITY = 1e-6

# How far independent errors of a matrix's entries reach, in root mean squares of its products with the weights, per unit of
# gain. A prediction is off by v^T D u, where v (|v| at most the gain) and u know nothing of D: a sum of independent terms of
# variance at most 2 |v|^2 s^2, s the spread of the entries of D u. That is exceeded 4.9-fold with probability 1e-6; s is
# doubled, since it differs between rows (the largest was 5 times the mean). Real float32 tiles of ReLU and erf networks, depths 3
# and 10: v^T D u was at most 5.8 |v| s in 1,500 predictions each, where 14 are allowed.
INDEPENDENT = 14.0


def independent_share(n: int) -> float:
    """What counts of the norm of n entries of `D u`, D independent errors: all of it up to n = 196, then `14 / sqrt(n)`."""
    return min(1.0, INDEPENDENT / math.sqrt(n))


@dataclass(frozen=True)
class RowSample:
    """Train-train rows times the basis of a `KrylovSolution`, to measure what its own residual does not see.

    Args:
        indices: (k,) sampled rows, distinct (`sample_indices`).
        stored: (k, m) `rows_of_the_stored_kernel @ basis.T`, in float64.
        exact: (k, m) `rows_recomputed_in_float64 @ basis.T`; None where the stored kernel is the exact one.
        systematic: bound on the spectral norm of what the recomputed rows are themselves off by: the rounding of their own
            evaluation, and approximations of a nonlinearity, which do not average out.
        rounding: what `systematic` is made of where it is rounding of one entry independently of the next: its size, in units of
            `sqrt(k(x, x) k(x', x'))`. 0 where approximations are in it.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray | None = None
    systematic: float = 0.0
    rounding: float = 0.0


@dataclass(frozen=True)
class TestErrors:
    """How far the stored rows of the test-train kernel are from the exact ones, of every test image by its own entries.

    Args:
        norm: bound on the norm of the errors of any row, in units of the root of its image's kernel diagonal `T_**`.
        rows: (p, n) all errors, in the same units, where every entry was recomputed; else None.
        systematic: bound on the norm of what the recomputed entries of a row are themselves off by, likewise.
        product: (T, R, c) largest rounding of float32 products over the test images, likewise; None of float64 ones.
        spread: (p,) root mean square of an entry's error in each row, likewise, at least that over all rows; None if unknown.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    norm: float
    rows: np.ndarray | None = None
    systematic: float = 0.0
    product: np.ndarray | None = None
    spread: np.ndarray | None = None

    @property
    def reach(self) -> float:
        """Bound on the norm of all that a stored row is off by."""
        return self.norm + self.systematic

    @staticmethod
    def of_columns(difference: np.ndarray, diagonal: np.ndarray, n: int, systematic: float = 0.0) -> TestErrors:
        """From sampled columns: of every test image some of its own entries.

        Args:
            difference: (p, k), stored less recomputed, of k training images drawn at random.
            diagonal: (p,) `T_**`.
            n: training images in all.
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

    That of independent entries of spread s is `2 s sqrt(n)` (Wigner), of which 3 are allowed here: rows differ. An
    eigenvalue of the stored matrix is off by no more (Weyl).

    Args:
        difference: (k, n) sampled rows of the errors; with k = n the norm itself is computed.
        n: rows in all.
    """
    if not difference.size:
        return 0.0
    if len(difference) >= n:
        return float(np.linalg.norm(difference, 2))
    return 3.0 * math.sqrt(n) * norm_safety(len(difference), n) * float(np.sqrt(np.mean(difference**2)))


def sample_indices(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Distinct row numbers below n, increasing and uniformly at random: min(n, size) of them, fixed by the seed."""
    return np.sort(np.random.default_rng(seed).choice(n, size=min(n, size), replace=False))


def norm_safety(sampled: int, total: int) -> float:
    """Factor by which `sqrt(total / sampled) * norm(sample)` may fall short of the whole norm.

    The sum of k squared Gaussians falls below its `MISS_PROBABILITY` quantile that rarely; half the degrees of
    freedom allow for entries with kurtosis 5 instead of 3. 1 when all were sampled.
    """
    if sampled >= total:
        return 1.0
    freedom = max(sampled, 1) / 2
    return math.sqrt(freedom / float(2 * scipy.special.gammaincinv(freedom / 2, MISS_PROBABILITY)))


def maximum_safety(sampled: int, total: int) -> float:
    """Factor on the root mean square of a sample that covers the largest of `total` Gaussians; see `norm_safety`."""
    return norm_safety(sampled, total) * float(-scipy.special.ndtri(MISS_PROBABILITY / max(total, 1)))


def largest_of_all(sampled: np.ndarray, total: int) -> np.ndarray:
    """(T, R, c), what the largest of `total` numbers like those sampled, (T, R, k, c) at least 0, is taken for."""
    k = sampled.shape[2]
    if k >= total:
        return sampled.max(axis=2)
    return maximum_safety(k, total) * np.sqrt(np.mean(sampled**2, axis=2))
