"""The projected matrix of block Lanczos. It is symmetric block tridiagonal; a thick restart adds a diagonal head.

    ( theta  G^T              )
    ( G      D_1   B_1^T      )        theta and G (kept Ritz values and their coupling) are empty before a restart
    (        B_1   D_2   ...  )

The stopping rule needs the last block row of a solution and the smallest eigenvalue. Computing them from the blocks costs O(m k^2), but
all eigenvectors cost O(m^3). With 2,223 vectors they took 14 ms and 1.7 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

# Elimination of blocks with at most this number of vectors costs a negligible time.
_NARROW = 32
# Largest memory of the last blocks of all shifts, with copies.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class BlockTridiagonal:
    """A symmetric matrix by its blocks.

    Args:
        diagonals: s symmetric blocks `(k_j, k_j)`.
        couplings: s - 1 blocks `(k_j+1, k_j)` below the diagonal blocks.
        theta: `(p,)` diagonal of the head.
        arrow: `(k_1, p)` coupling of the head to the first block.
    """

    diagonals: Sequence[np.ndarray]
    couplings: Sequence[np.ndarray]
    theta: np.ndarray = field(default_factory=lambda: np.zeros(0))
    arrow: np.ndarray | None = None

    @cached_property
    def size(self) -> int:
        """Number of rows, m."""
        return len(self.theta) + sum(len(d) for d in self.diagonals)

    def dense(self) -> np.ndarray:
        """The matrix as an array `(m, m)`."""
        out = np.zeros((self.size, self.size))
        low = len(self.theta)
        out[range(low), range(low)] = self.theta
        if low and self.diagonals and self.arrow is not None:
            out[low : low + len(self.arrow), :low] = self.arrow
            out[:low, low : low + len(self.arrow)] = self.arrow.T
        for j, diagonal in enumerate(self.diagonals):
            high = low + len(diagonal)
            out[low:high, low:high] = diagonal
            if j < len(self.couplings):
                below = high + len(self.couplings[j])
                out[high:below, low:high] = self.couplings[j]
                out[low:high, high:below] = self.couplings[j].T
            low = high
        return out

    def smallest(self) -> tuple[float, np.ndarray] | None:
        """The smallest eigenvalue and the last block row of its unit eigenvector.

        The eigenvalue is approximated from above, with a relative error of about 1e-6, by Lanczos on the inverse with a banded
        Cholesky factor.

        Returns:
            None if the matrix is not positive definite to rounding, has a head, or the iteration does not converge.
        """
        if len(self.theta) or not self.size:
            return None
        last = len(self.diagonals[-1])
        if self.size <= 2 * last + 8:
            values, vectors = np.linalg.eigh(self.dense())
            return (float(values[0]), vectors[-last:, 0]) if values[0] > 0 else None
        try:
            factor = scipy.linalg.cholesky_banded(self._lower_bands(), lower=True, overwrite_ab=True)
            inverse = _Inverse(factor)
            # The start is fixed, because a resumed run must stop at the same step as an uninterrupted one.
            v0 = np.random.default_rng(0).standard_normal(self.size)
            values, vectors = scipy.sparse.linalg.eigsh(inverse, k=1, v0=v0, tol=1e-6)  # pyright: ignore[reportArgumentType]
        except (np.linalg.LinAlgError, scipy.sparse.linalg.ArpackError):
            return None
        return (float(1.0 / values[0]), vectors[-last:, 0]) if values[0] > 0 else None

    def _lower_bands(self) -> np.ndarray:
        """The matrix in LAPACK's lower band storage. Consecutive blocks of k and k' rows need k + k' diagonals."""
        sizes = [len(d) for d in self.diagonals]
        width = max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))
        bands = np.zeros((width, self.size))
        low = 0
        for j, diagonal in enumerate(self.diagonals):
            k = sizes[j]
            column = np.concatenate([diagonal, self.couplings[j]]) if j < len(self.couplings) else diagonal
            for i in range(k):
                bands[: len(column) - i, low + i] = column[i:, i]
            low += k
        return bands


@dataclass
class LastRows:
    """Last block rows of `(H + shift)^-1 E_1 R` for several shifts, updated as H grows. A step takes one small solve for each shift.

    The method is block elimination from the first block down: `S_1 = D_1 + shift`, `S_j+1 = D_j+1 + shift - B_j S_j^-1 B_j^T`.
    The last block row of the solution is `X_1 = S_1^-1 R`, `X_j+1 = -S_j+1^-1 B_j X_j`. There is no pivoting. The elimination is stable if
    `H + shift` is positive definite, or the shift is complex and not on the negative axis: zero is then outside the field of
    values of every `S_j`.

    Args:
        shifts: `(q,)` real or complex.
        start: `(k_1, c)`, R.

    Attributes:
        rows: `(q, k, c)`, X of the last block.
        inverse: `(q, k, k)`, the last diagonal block of `(H + shift)^-1`.
    """

    shifts: np.ndarray
    start: np.ndarray
    rows: np.ndarray = field(init=False)
    inverse: np.ndarray = field(init=False)
    steps: int = 0

    def extend(self, matrix: BlockTridiagonal) -> None:
        """Add the new blocks of a matrix that has grown since the last call. The matrix must have no head.

        Raises:
            LinAlgError: if a block is singular, because H + shift is not positive definite.
        """
        for j in range(self.steps, len(matrix.diagonals)):
            self.step(matrix.diagonals[j], matrix.couplings[j - 1] if j else None)

    def step(self, diagonal: np.ndarray, coupling: np.ndarray | None) -> None:
        """Add one block.

        Args:
            diagonal: `(k, k)` diagonal block.
            coupling: `(k, k_before)` coupling to the block before; None for the first block.

        Raises:
            LinAlgError: if the block is singular.
        """
        block = diagonal + self.shifts[:, None, None] * np.eye(len(diagonal))
        right = np.broadcast_to(self.start, (len(self.shifts), *self.start.shape))
        if coupling is not None:
            block = block - coupling @ self.inverse @ coupling.T
            right = -coupling @ self.rows
        self.inverse = np.linalg.inv(block)
        self.rows = self.inverse @ right
        self.steps += 1


def eliminates(n: int, width: int, shifts: int) -> bool:
    """Whether `LastRows` costs less than repeated eigendecompositions, and fits into memory.

    `LastRows` takes `16 q k^3` flops for each step, and the eigendecompositions take `70 m^3` in total.

    Args:
        n: number of rows of the matrix. A space has at most `n / width` blocks.
        width: size k of the first block.
        shifts: number q of shifts.
    """
    return width <= _NARROW or (n**2 > 0.25 * shifts * width**2 and 64 * shifts * width**2 <= _MOST_BYTES)


class _Inverse(scipy.sparse.linalg.LinearOperator):
    """The inverse of a matrix as a linear operator, from a banded Cholesky factor."""

    def __init__(self, factor: np.ndarray) -> None:
        super().__init__(np.float64, (factor.shape[1],) * 2)
        self._factor = factor

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve_banded((self._factor, True), x, check_finite=False)
