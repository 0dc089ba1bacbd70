"""Cholesky factorisation in memory, with refinement in float64 and a remedy where the matrix is indefinite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.lanczos import block_lanczos, largest_eigenvalue
from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.solution import Reason, Solution

# Below this size the smallest eigenvalue of an indefinite matrix is computed; above it Lanczos estimates it.
_DENSE_EIGENVALUE = 2000


@dataclass(frozen=True)
class CholeskyFactor:
    """`A + ridge I = L L^T`.

    Args:
        factor: `(n, n)` F order; its lower triangle is `L`, what lies above is undefined.
        ridge: absolute, included in the factor.
    """

    factor: np.ndarray
    ridge: float

    @property
    def logdet(self) -> float:
        """Logarithm of the determinant of `A + ridge I`."""
        return 2 * float(np.log(self.factor.diagonal().astype(np.float64)).sum())

    def half_solve(self, b: np.ndarray) -> np.ndarray:
        """`L^-1 b`, `(n, k)` float64: the variance explained is the sum of its squares."""
        b = np.asarray(b, dtype=self.factor.dtype)
        return scipy.linalg.solve_triangular(self.factor, b, lower=True, check_finite=False).astype(np.float64)

    def solve(
        self, b: np.ndarray, operator: Operator, *, tolerance: float = 1e-14, max_refinements: int = 20
    ) -> Solution[np.ndarray]:
        """Solve `(A + ridge I) x = b` with iterative refinement: residuals in float64, corrections from the factor.

        Args:
            b: `(n, k)` float64.
            operator: `A` (without the ridge), with float64 products.
            tolerance: of the relative residual of every column; one at the rounding of its own computation will do.
            max_refinements: most corrections after the first solve.

        Returns:
            `x` `(n, k)` float64, with its measured residual; STAGNATED if a correction no longer halves it.
        """
        b = np.asarray(b, dtype=np.float64)
        norms = np.linalg.norm(b, axis=0)
        norms[norms == 0] = 1.0
        x, residual = np.zeros_like(b), b
        best, worst = x, np.inf
        reason = Reason.STAGNATED
        sweeps = 0
        while sweeps <= max_refinements:
            sweeps += 1
            # The factor is float32 in places: scale, so that a small residual does not underflow.
            scale = np.linalg.norm(residual, axis=0)
            scale[scale == 0] = 1.0
            x = x + self.apply_inverse(residual / scale) * scale
            residual = b - operator.matmul(x) - self.ridge * x
            now = float((np.linalg.norm(residual, axis=0) / norms).max(initial=0.0))
            stagnated = not now < worst / 2
            if now < worst:
                best, worst = x, now
            if worst <= tolerance:
                reason = Reason.CONVERGED
                break
            if stagnated:
                break
        # The residual itself is computed to about eps |A| |x|, and |A| <= trace A: below that it cannot be improved on.
        trace = float(operator.diagonal().sum()) + len(b) * self.ridge
        floor = 4 * float(np.finfo(np.float64).eps) * trace * np.linalg.norm(best, axis=0) / norms
        if worst <= max(tolerance, float(floor.max(initial=0.0))):
            reason = Reason.CONVERGED
        return Solution(best, worst, sweeps, reason)

    def smallest_eigenvalue(self) -> float:
        """Of `A + ridge I`, from above, to a few digits: by Lanczos on the inverse."""
        return 1.0 / largest_eigenvalue(_Inverse(self))

    def apply_inverse(self, b: np.ndarray) -> np.ndarray:
        """`(A + ridge I)^-1 b`, `(n, k)` float64, in the factor's precision: without refinement."""
        (potrs,) = scipy.linalg.get_lapack_funcs(("potrs",), (self.factor,))
        x, info = potrs(self.factor, np.asfortranarray(b, dtype=self.factor.dtype), lower=1)
        if info != 0:
            raise NumericalError(f"LAPACK potrs refused argument {-info}")
        return np.asarray(x, dtype=np.float64)


def cholesky(array: np.ndarray, *, ridge: float = 0.0, overwrite: bool = False) -> CholeskyFactor:
    """Factor `A + ridge I` in the precision of `array`, n^3 / 3 flops.

    LAPACK `potrf` in place on an F-ordered array: 28 GF/s in float64 and 46 in float32 on one core, where
    `np.linalg.cholesky` reaches 18 and 13.

    Args:
        array: `(n, n)` symmetric, both triangles, float32 or float64.
        ridge: absolute, `>= 0`.
        overwrite: the array may be destroyed, which saves a copy.

    Raises:
        ValueError: if the array is not square.
        NumericalError: if the matrix is not positive definite; the text names the pivot and a ridge that would do.
    """
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"a Cholesky factorisation needs a square matrix, got shape {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"a Cholesky factorisation needs float32 or float64, got {array.dtype}")
    a = array.T if array.flags.c_contiguous else array  # symmetric: the transpose of C order is F order
    if not (overwrite and a.flags.f_contiguous):
        a = np.array(a, order="F")
    n = len(a)
    diagonal = a.diagonal().astype(np.float64)
    if not np.isfinite(diagonal).all():
        raise NumericalError("the matrix holds non-finite values: run `ntkpipe verify` to find the tile")
    a[np.arange(n), np.arange(n)] += a.dtype.type(ridge)
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (a,))
    factor, info = potrf(a, lower=1, clean=0, overwrite_a=1)
    if info == 0:
        if not np.isfinite(factor.diagonal()).all():
            raise NumericalError("the matrix holds non-finite values: run `ntkpipe verify` to find the tile")
        return CholeskyFactor(factor, ridge)
    # potrf has used the lower triangle only; the upper one and the saved diagonal still are the matrix.
    smallest, largest = _extreme_eigenvalues(_Upper(factor, diagonal))
    # What rounding moves an eigenvalue by, in the precision of the factor.
    slack = n * float(np.finfo(a.dtype).eps) * largest
    needed = slack - smallest
    mean = float(diagonal.mean())
    relative = f" (relative to the mean of the diagonal: predict.ridges=[{needed / mean:.1e}])" if mean > 0 else ""
    raise NumericalError(
        f"the matrix with ridge {ridge:g} is not positive definite in {a.dtype}: pivot {info} of {n} is not positive, "
        f"the smallest eigenvalue without ridge is about {smallest:.1e}. A ridge of {needed:.1e} would do{relative}; "
        "or use solver=krylov, which needs none"
    )


class _Inverse:
    """The inverse of a factored matrix as a linear map."""

    def __init__(self, factor: CholeskyFactor) -> None:
        self._factor, self.n = factor, len(factor.factor)

    def matmul(self, x: np.ndarray) -> np.ndarray:
        return self._factor.apply_inverse(x)


class _Upper:
    """The symmetric operator of an upper triangle (strict) and a diagonal."""

    def __init__(self, array: np.ndarray, diagonal: np.ndarray) -> None:
        self._array, self._diagonal, self.n = array, diagonal, len(array)

    def matmul(self, x: np.ndarray) -> np.ndarray:
        y = self._diagonal[:, None] * x
        for low in range(0, self.n, 256):
            panel = np.triu(self._array[low : low + 256], low + 1).astype(np.float64)
            y[low : low + 256] += panel @ x
            y += panel.T @ x[low : low + 256]
        return y

    def dense(self) -> np.ndarray:
        upper = np.triu(self._array, 1).astype(np.float64)
        return upper + upper.T + np.diag(self._diagonal)


def _extreme_eigenvalues(operator: _Upper) -> tuple[float, float]:
    """Smallest (or a little below) and largest eigenvalue."""
    if operator.n <= _DENSE_EIGENVALUE:
        values = scipy.linalg.eigvalsh(operator.dense())
        return float(values[0]), float(values[-1])
    start = np.random.default_rng(0).standard_normal((operator.n, 4))
    result = block_lanczos(operator, start, max_steps=40)
    values, vectors = np.linalg.eigh(result.projected)
    # An eigenvalue of A lies within the residual of every Ritz pair.
    residual = result.coupling @ vectors[-result.coupling.shape[1] :, 0]
    return float(values[0] - np.linalg.norm(residual)), float(values[-1])
