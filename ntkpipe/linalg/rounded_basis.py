"""A Krylov basis whose vectors are rounded to float32. It takes half of the memory, and the matrix is projected on the rounded vectors.

Rounded vectors Q satisfy a short recurrence only to 6e-8. To float64 accuracy, a product with a stored block is

    A Q_j = Q C_j + q_j+1 B_j,

where the orthogonalisation computes C_j, and the next vectors q_j+1 are orthogonal to Q before they are rounded. `G = Q^T Q` takes one
more product with each new block. Then `Q^T A Q = G C` on and above the diagonal, to float64 accuracy. The pencil (G C, G) gives the exact
Galerkin solution in the span of Q. The only loss is the part of the Krylov space that rounding moved out of this span.
"""

from __future__ import annotations

import numpy as np

from ntkpipe.linalg.basis import MemoryBasis, parts
from ntkpipe.linalg.lanes import Lanes

UNIT = float(np.finfo(np.float32).eps) / 2
"""Largest relative change of an entry by rounding."""
# Number of columns and of vectors that are converted to float64 at a time: 128 x 4,096 are 4 MB.
_COLUMNS, _VECTORS = 4096, 128


class RoundedBasis(MemoryBasis):
    """A `Basis` of float32 vectors in this process. Sums are in float64, in a fixed order.

    Args:
        n: length of a vector.
        limit: number of vectors to reserve memory for.
    """

    _dtype = np.dtype(np.float32)

    def remove(self, w: np.ndarray) -> np.ndarray:
        """See `Basis.remove`."""
        coefficients = self.times(w).T
        with self._lanes.open():
            self._lanes.each(lambda part: _subtract(w, self.array(), coefficients, part), parts(self.n, _COLUMNS))
        return coefficients

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.picked`."""
        return self.array(count)[:, indices].astype(np.float64)

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.times`."""
        return along(rows, self.array(count), self._lanes)

    def rotate(self, coefficients: np.ndarray) -> None:
        """Drop all vectors. Other combinations are not supported, because they would be rounded again.

        Raises:
            ValueError: if `coefficients` has a column.
        """
        if coefficients.shape[1]:
            raise ValueError("vectors in float32 cannot be combined: use a basis in float64 for restarts")
        super().rotate(coefficients)


def rounded(rows: np.ndarray) -> np.ndarray:
    """The vectors rounded to float32, as float64."""
    return rows.astype(np.float32).astype(np.float64)


def along(rows: np.ndarray, basis: np.ndarray, lanes: Lanes | None = None) -> np.ndarray:
    """`rows @ basis.T` (k, m) in float64, for rows (k, n) and a float32 or float64 basis (m, n), which is not copied."""
    if basis.dtype == np.float64:
        return rows @ basis.T
    out = np.zeros((len(rows), len(basis)))

    def project(part: slice) -> None:
        for columns in parts(basis.shape[1], _COLUMNS):
            out[:, part] += rows[:, columns] @ basis[part, columns].astype(np.float64).T

    own = lanes or Lanes()
    try:
        with own.open():
            own.each(project, parts(len(basis), _VECTORS))
    finally:
        if lanes is None:
            own.close()
    return out


def _subtract(w: np.ndarray, basis: np.ndarray, coefficients: np.ndarray, columns: slice) -> None:
    for part in parts(len(basis), _VECTORS):
        w[:, columns] -= coefficients[part].T @ basis[part, columns].astype(np.float64)


class Projection:
    """`Q^T A Q` and `Q^T Q` of a basis that grows block by block, on and above the diagonal.

    Attributes:
        sizes: sizes of the blocks of Q.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._gram = np.zeros((0, 0))
        self._kernel = np.zeros((0, 0))
        self._known = 0  # number of known columns of `_kernel`

    def append(self, overlaps: np.ndarray) -> None:
        """Add a block, given its products (m, k) with all vectors, itself included."""
        m, k = overlaps.shape
        self._gram = _grown(self._gram, m)
        self._gram[m - k : m, :m] = overlaps.T
        self._gram[:m, m - k : m] = overlaps  # written last, so that `since` returns exactly these products
        self.sizes.append(k)

    def couple(self, coefficients: np.ndarray) -> None:
        """Add the product of A with the last block, given its coefficients (m, k) in the basis. Its remainder is orthogonal to them."""
        m = len(coefficients)
        self.project(self._gram[:m, :m] @ coefficients)

    def project(self, columns: np.ndarray) -> None:
        """Add the product of A with the last block, given its products (m, k) with all vectors so far."""
        m, k = columns.shape
        self._kernel = _grown(self._kernel, m)
        self._kernel[:m, m - k : m] = columns
        self._known = m

    def gram(self, m: int) -> np.ndarray:
        """`Q^T Q` (m, m) of the first m vectors."""
        return self._gram[:m, :m].copy()

    def kernel(self, m: int) -> np.ndarray:
        """`Q^T A Q` (m, m) of the first m vectors."""
        upper = np.triu(self._kernel[:m, :m])
        return upper + np.triu(upper, 1).T

    def since(self, blocks: int, steps: int) -> dict[str, np.ndarray]:
        """The new parts of `Q^T Q` after `blocks` blocks, and of `Q^T A Q` after `steps` blocks, as flat arrays."""
        return {
            "gram": self._flat(self._gram, blocks, len(self.sizes)),
            "kernel": self._flat(self._kernel, steps, self._finished()),
        }

    def restore(self, sizes: list[int], record: dict[str, np.ndarray]) -> None:
        """Add the arrays of `since` for blocks of these sizes. The last block has no product with A yet."""
        at = 0
        for size in sizes:
            m = sum(self.sizes) + size
            self.append(record["gram"][at : at + m * size].reshape(m, size))
            at += m * size
        at, done = 0, self._finished()
        while at < len(record["kernel"]):
            m, size = sum(self.sizes[: done + 1]), self.sizes[done]
            self.project(record["kernel"][at : at + m * size].reshape(m, size))
            at, done = at + m * size, done + 1

    def _finished(self) -> int:
        """Number of blocks whose products with A are known."""
        return int(np.searchsorted(np.cumsum(self.sizes), self._known, side="right")) if self._known else 0

    def _flat(self, matrix: np.ndarray, first: int, last: int) -> np.ndarray:
        parts, low = [], sum(self.sizes[:first])
        for size in self.sizes[first:last]:
            parts.append(matrix[: low + size, low : low + size].ravel())
            low += size
        return np.concatenate(parts) if parts else np.zeros(0)


def _grown(matrix: np.ndarray, m: int) -> np.ndarray:
    """The matrix, enlarged if it has fewer than m rows and columns."""
    if m <= len(matrix):
        return matrix
    grown = np.zeros((max(m, 2 * len(matrix)),) * 2)
    grown[: len(matrix), : len(matrix)] = matrix
    return grown
