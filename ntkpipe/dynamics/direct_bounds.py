"""Error bounds of direct solutions at t = inf; see `bounds.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget, error_of_test_rows, scaled
from ntkpipe.dynamics.filters import EPS
from ntkpipe.dynamics.gains import RIGOROUS, final_gain
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.dynamics.sampling import TestErrors, independent_share, norm_safety


def direct_budget(
    weights: np.ndarray,
    targets: np.ndarray,
    ridges: Sequence[float],
    indices: np.ndarray,
    rows_exact: np.ndarray,
    *,
    smallest: float,
    largest: float,
    rows_stored: np.ndarray | None = None,
    systematic: float = 0.0,
    tests: TestErrors | None = None,
) -> ErrorBudget:
    """The error bound of direct solutions at `t = inf` (Cholesky, cg), from their residual at sampled rows.

    Args:
        weights: (R, n, c) solutions of `(T + ridge) u = targets`.
        targets: (n, c).
        ridges: R absolute ridges.
        indices: (k,) sampled rows.
        rows_exact: (k, n) float64 rows of the exact kernel without ridge.
        smallest: estimate of the smallest eigenvalue without ridge; 0 if errors of the entries may be as large as it.
        largest: estimate of the largest eigenvalue without ridge.
        rows_stored: (k, n) stored rows; None if the stored kernel is exact.
        systematic: see `RowSample`.
        tests: see `error_budget`.

    Returns:
        Arrays (1, R, c).
    """
    n, c = targets.shape
    stored = rows_exact if rows_stored is None else rows_stored.astype(np.float64)
    scale = norm_safety(len(indices), n) * math.sqrt(n / max(len(indices), 1))
    product, storage = (np.zeros((1, len(ridges), c)) for _ in range(2))
    kind = np.full((1, len(ridges)), RIGOROUS, dtype="<U12")
    for j, ridge in enumerate(ridges):
        gain = final_gain(ridge, smallest)
        size = np.linalg.norm(weights[j], axis=0)
        floor = ROUNDING * EPS * ((largest + ridge) * size + np.linalg.norm(targets, axis=0))
        residual = targets[indices] - stored @ weights[j] - ridge * weights[j][indices]
        product[0, j] = scaled(gain, scale * np.linalg.norm(residual, axis=0) + floor)
        rounded = scale * np.linalg.norm((stored - rows_exact) @ weights[j], axis=0)
        storage[0, j] = scaled(gain, rounded * independent_share(n) + systematic * size)
        kind[0, j] = gain.kind
    test = error_of_test_rows(weights[None], largest, tests, None if tests is None else tests.rows)
    return ErrorBudget(np.zeros((1, len(ridges), c)), product, storage, test, kind)
