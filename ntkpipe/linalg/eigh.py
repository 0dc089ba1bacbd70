"""Dense eigendecomposition, the reference for other solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import NumericalError

_EPS = float(np.finfo(np.float64).eps)
# Least number of rows for an accelerator. LAPACK takes at most a second for smaller matrices.
_DEVICE_ROWS = 1000


def null_cutoff(n: int, largest: float, noise: float = 0.0) -> float:
    """Cutoff below which an eigenvalue cannot be distinguished from zero: `n eps largest`, or the errors of the entries.

    Args:
        n: rows of the matrix.
        largest: largest eigenvalue.
        noise: bound on the norm of the errors of stored entries (`sampling.matrix_noise`), and so on those of eigenvalues.
    """
    return max(n * _EPS * abs(float(largest)), noise)


@dataclass(frozen=True)
class Eigensystem:
    """The eigendecomposition `A = vectors @ diag(values) @ vectors.T` of a kernel without ridge.

    Args:
        values: `(n,)` float64, ascending.
        vectors: `(n, n)` float64, columns are eigenvectors.
        noise: see `null_cutoff`.
    """

    values: np.ndarray
    vectors: np.ndarray
    noise: float = 0.0

    @staticmethod
    def of(kernel: np.ndarray, computed: np.dtype | str = "float64") -> Eigensystem:
        """The eigendecomposition of a dense symmetric (n, n) kernel, by divide and conquer.

        Args:
            kernel: the matrix, in any dtype.
            computed: dtype in which its entries were computed. Errors of float32 entries are taken as independent, and as a few units
                of rounding.
        """
        values, vectors = scipy.linalg.eigh(np.asarray(kernel, dtype=np.float64), driver="evd")
        unit = 0.0 if np.dtype(computed) == np.float64 else 4.0 * float(np.finfo(computed).eps)
        return Eigensystem(values, vectors, unit * math.sqrt(len(values)) * float(np.abs(np.diagonal(kernel)).max()))

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """Eigenvalues plus ridge, and the cutoff below which they are null."""
        values = self.values + ridge
        return values, null_cutoff(len(values), float(values.max()), self.noise)


def eigh(array: np.ndarray, *, overwrite: bool = False) -> Eigensystem:
    """All eigenvalues and eigenvectors of a symmetric matrix, by divide and conquer (`syevd`) in float64.

    It takes about three times the memory of the matrix and 9 n^3 flops. If JAX's default device is a GPU with enough
    memory, it does the work; otherwise LAPACK on the host.

    Args:
        array: `(n, n)`; the lower triangle is used.
        overwrite: whether the array may be overwritten, which saves a copy of a float64 array.

    Raises:
        NumericalError: if an entry is not finite, or the iteration does not converge.
    """
    if len(array) >= _DEVICE_ROWS and (found := _on_device(array)) is not None:
        return found
    # F order, the transpose of a C-ordered symmetric array: LAPACK then works in place.
    a = np.asarray(array, dtype=np.float64)
    mine = overwrite or a is not array
    lower = not a.flags.c_contiguous
    a = a if lower else a.T
    try:
        values, vectors = scipy.linalg.eigh(a, lower=lower, driver="evd", overwrite_a=mine, check_finite=True)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise _failure(str(error)) from error
    return Eigensystem(values, vectors)


def _on_device(array: np.ndarray) -> Eigensystem | None:
    """The decomposition by an accelerator; None if there is none, or if its memory is too small."""
    from ntkpipe.linalg.device_eigh import device_eigh, has_float64_accelerator  # imports JAX

    if not has_float64_accelerator() or (found := device_eigh(array)) is None:
        return None
    if not all(np.isfinite(part).all() for part in found):
        raise _failure("the accelerator returned values that are not finite")
    return Eigensystem(*found)


def _failure(why: str) -> NumericalError:
    return NumericalError(
        f"the eigendecomposition failed ({why}): run `ntkpipe verify` to find non-finite tiles, or use solver=krylov"
    )
