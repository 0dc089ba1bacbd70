"""Mean squared error of kernel regression on the points outside of a random training set, point by point.

Of M points, n are chosen at random to train on. With `A = K + ridge`, the inverse of the chosen block of A, as a matrix of all
points, has the mean `R = (A + diag(d))^-1` up to fluctuations, where each point's own `d` solves

    d_i R_ii = 1 - n / M

(the cavity argument: the other points act on point i as a single number `1 / R_ii`). Sums of squares follow from the derivative of `R`
with respect to the penalty that keeps the unchosen points at zero:

    S c = n / M,   S = diag(R_ii / d_i) - R o R,   error = sum_i c_i (R y)_i^2 / (M - n)

If all d are equal this is the theory of `learning_theory` for a subset instead of independent draws. As n approaches M it is the
exact leave-one-out error, whereas that theory becomes GCV, which is too large where points differ in norm.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float64

# Newton's method converges quadratically, so the step after a step of 1e-4 changes d by 1e-8.
_SETTLED = 1e-4
_MOST_STEPS = 40


def left_over_error(
    matrix: Float64[np.ndarray, "m m"], targets: Float64[np.ndarray, "m c"], n: int, start: float
) -> float | None:
    """Expected squared error per output on the m - n points that are left over.

    Args:
        matrix: `K + ridge` of all m points, positive semi-definite with more than n positive eigenvalues.
        targets: targets of all points.
        n: training points, from 1 to m - 1.
        start: a guess of all d, above 0.

    Returns:
        None if the equations for d are not solved, because the matrix is too close to singular.
    """
    m, held = len(matrix), 1.0 - n / len(matrix)
    d = np.full(m, start)
    settled = False
    for _ in range(_MOST_STEPS):
        inverse = _inverse(matrix, d)
        if inverse is None:
            return None
        own = np.diagonal(inverse)
        # The system is positive definite, because S d >= 0 for any d: sum_j R_ij d_j R_ji <= R_ii.
        system = -(inverse**2)
        system[np.diag_indices(m)] += own / d
        try:
            factor = scipy.linalg.cho_factor(system, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        if settled:
            c = scipy.linalg.cho_solve(factor, np.full(m, 1.0 - held))
            error = float(np.mean((inverse @ targets) ** 2, axis=1) @ c) / (m - n)
            return error if np.isfinite(error) else None
        step = scipy.linalg.cho_solve(factor, held / d - own) / d
        largest = float(np.abs(step).max())
        if not np.isfinite(largest):
            return None
        d = d * np.exp(step / max(1.0, largest))
        settled = largest < _SETTLED
    return None


def _inverse(matrix: np.ndarray, d: np.ndarray) -> np.ndarray | None:
    """The inverse of `matrix + diag(d)`; None if it is singular."""
    shifted = np.asfortranarray(matrix + np.diag(d))
    potrf, potri = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (shifted,))
    factor, failed = potrf(shifted, lower=True, overwrite_a=True)
    if failed:
        return None
    lower, failed = potri(factor, lower=True, overwrite_c=True)
    if failed:
        return None
    lower = np.tril(lower)
    return lower + np.tril(lower, -1).T
