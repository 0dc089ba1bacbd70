"""Rows and test images sampled to measure rounding, and what may be inferred from them about all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special

# A sampled norm or maximum may be exceeded with this probability, per time, ridge, class and kind of error.
MISS_PROBABILITY = 1e-6


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
