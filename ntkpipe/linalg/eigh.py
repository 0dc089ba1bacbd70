"""Dense eigendecomposition: the reference that other solvers are measured against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import NumericalError

_EPS = float(np.finfo(np.float64).eps)


def null_cutoff(n: int, largest: float, noise: float = 0.0) -> float:
    """At or below it nothing tells an eigenvalue from zero: `n eps largest` of any float64 matrix, or its entries' errors.

    Args:
        n: rows of the matrix.
        largest: eigenvalue.
        noise: the norm that errors of the stored entries can have (`sampling.matrix_noise`): they move an eigenvalue by as much.
    """
    return max(n * _EPS * abs(float(largest)), noise)


@dataclass(frozen=True)
class Eigensystem:
    """`A = vectors @ diag(values) @ vectors.T`, of a kernel without ridge.

    Args:
        values: `(n,)` float64, ascending.
        vectors: `(n, n)` float64, columns are eigenvectors.
    """

    values: np.ndarray
    vectors: np.ndarray

    @staticmethod
    def of(kernel: np.ndarray) -> Eigensystem:
        """Of a dense symmetric (n, n) kernel, by divide and conquer."""
        values, vectors = scipy.linalg.eigh(np.asarray(kernel, dtype=np.float64), driver="evd")
        return Eigensystem(values, vectors)

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """Eigenvalues plus ridge, and the cutoff below which they are null."""
        values = self.values + ridge
        return values, null_cutoff(len(values), float(values.max()))


def eigh(array: np.ndarray, *, overwrite: bool = False) -> Eigensystem:
    """All eigenvalues and eigenvectors of a symmetric matrix, by divide and conquer (LAPACK `syevd`) in float64.

    Takes about three times the memory of the matrix and 9 n^3 flops.

    Args:
        array: `(n, n)`, the lower triangle is used.
        overwrite: the array may be destroyed, which saves a copy (of a float64 one).

    Raises:
        NumericalError: if an entry is not finite, or LAPACK does not converge.
    """
    # F order, the transpose of a C-ordered symmetric array: LAPACK then works in place.
    a = np.asarray(array, dtype=np.float64)
    mine = overwrite or a is not array
    lower = not a.flags.c_contiguous
    a = a if lower else a.T
    try:
        values, vectors = scipy.linalg.eigh(a, lower=lower, driver="evd", overwrite_a=mine, check_finite=True)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise NumericalError(
            f"the eigendecomposition failed ({error}): run `ntkpipe verify` to find non-finite tiles, "
            "or use solver=krylov"
        ) from error
    return Eigensystem(values, vectors)
