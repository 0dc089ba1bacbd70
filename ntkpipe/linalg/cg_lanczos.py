"""The Lanczos matrix of conjugate gradients, and the estimate of the smallest eigenvalue from it.

It is the preconditioned matrix in the basis of the residuals, and block tridiagonal. `Z_i T_i` are orthonormal in the inner
product of M, and `Z_i = P_i S_i - P_{i-1} beta_{i-1}` with conjugate directions P. So its blocks depend only on `S`, `beta`
and `theta`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

# Largest number of rows of the Lanczos matrix, whose eigenvalues then take seconds.
_RITZ_ROWS = 2000


class LanczosMatrix:
    """The block tridiagonal Lanczos matrix, which grows step by step."""

    def __init__(self) -> None:
        self.diagonals: list[np.ndarray] = []
        self.couplings: list[np.ndarray] = []

    def add(self, diagonal: np.ndarray) -> None:
        """Add the diagonal block (k, k) of a step."""
        self.diagonals.append(diagonal)

    def couple(self, coupling: np.ndarray) -> None:
        """Add the block (k_next, k) below the last diagonal block."""
        self.couplings.append(coupling)

    def cut(self, size: int) -> None:
        """Start a new part with a diagonal block (size, size), which is not coupled to the last block.

        The smallest Ritz value of each part is still above the smallest eigenvalue.
        """
        if self.diagonals:
            self.couplings[len(self.diagonals) - 1 :] = [np.zeros((size, len(self.diagonals[-1])))]

    def smallest(self) -> float:
        """Estimate of the smallest eigenvalue: the smallest Ritz value minus the correction that its residual allows.

        The correction is that of `KrylovSolution.smallest`. A Ritz value is above the eigenvalue, and early ones are far
        above it.
        """
        sizes = [len(d) for d in self.diagonals]
        first = len(sizes) - int(np.searchsorted(np.cumsum(sizes[::-1]), _RITZ_ROWS, side="right"))
        m = sum(sizes[first:])
        if m == 0:
            return 0.0
        dense, low = np.zeros((m, m)), 0
        for i in range(first, len(sizes)):
            high = low + sizes[i]
            dense[low:high, low:high] = self.diagonals[i]
            if i + 1 < len(sizes):
                dense[high : high + sizes[i + 1], low:high] = self.couplings[i]
            low = high
        values, vectors = scipy.linalg.eigh(dense, lower=True, subset_by_index=[0, 0])
        value, vector = float(values[0]), vectors[:, 0]
        if not value > 0:
            return 0.0
        residual = 0.0
        if len(self.couplings) == len(sizes):
            residual = float(np.linalg.norm(self.couplings[-1] @ vector[m - sizes[-1] :]))
        return value / (1.0 + min(4.0 * residual / value, 16.0))

    def state(self) -> dict[str, np.ndarray]:
        """All blocks, as plain arrays."""
        sizes = [len(d) for d in self.diagonals]
        after = [len(c) for c in self.couplings]
        return {
            "sizes": np.array([sizes, after[: len(sizes)]], dtype=np.int64).reshape(2, -1),
            "diagonals": _flat(self.diagonals),
            "couplings": _flat(self.couplings),
        }

    @classmethod
    def of(cls, state: dict[str, np.ndarray]) -> LanczosMatrix:
        """The Lanczos matrix of a `state`."""
        made = cls()
        diagonals = couplings = 0
        for size, after in state["sizes"].T.tolist():
            made.add(state["diagonals"][diagonals : diagonals + size * size].reshape(size, size))
            made.couple(state["couplings"][couplings : couplings + after * size].reshape(after, size))
            diagonals, couplings = diagonals + size * size, couplings + after * size
        return made


def _flat(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([block.ravel() for block in blocks]) if blocks else np.zeros(0)
