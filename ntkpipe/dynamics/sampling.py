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
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray | None = None


@dataclass(frozen=True)
class TestSample:
    """Sampled test images, to measure rounding and storage of the test-train kernel.

    Args:
        exact: (k, m) `test_train_rows_recomputed_in_float64 @ basis.T`.
        means: (T, R, k, c) predictions of these images as exported.
        diagonal: (k,) float64, `T_**`.
        tests: test images in all.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    exact: np.ndarray
    means: np.ndarray
    diagonal: np.ndarray
    tests: int


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
