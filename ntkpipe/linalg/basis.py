"""Storage of the orthonormal vectors of block Lanczos: the protocol, and a basis in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from ntkpipe.linalg.lanes import Lanes

# Columns (images) and vectors that are processed at a time.
_CHUNK, _VECTORS = 4096, 128


@runtime_checkable
class Basis(Protocol):
    """Vectors of length n, as rows. Vectors are appended, or all of them are replaced by their combinations.

    Sums have a fixed order. Results may depend on how the vectors are divided among workers, but never on timing.
    """

    @property
    def n(self) -> int:
        """Length of a vector."""
        ...

    def __len__(self) -> int:
        """Number of vectors."""
        ...

    def recover_from(self, source: Callable[[], Iterable[np.ndarray]]) -> None:
        """Set the source that yields all vectors again, in blocks `(k, n)`. It is used if a worker loses its vectors."""
        ...

    def append(self, rows: np.ndarray) -> None:
        """Add `(k, n)` vectors at the end."""
        ...

    def remove(self, w: np.ndarray) -> np.ndarray:
        """Subtract from `w` (k, n), in place, its components along all vectors. Returns the components `(m, k)`."""
        ...

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """Combinations `(n, q)` of the first m vectors with `coefficients` (m, q)."""
        ...

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """Entries `(m, k)` at `indices` (k,) of the first `count` vectors; None is all vectors."""
        ...

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """Products `(k, m)` of other vectors `rows` (k, n) with the first `count` vectors; None is all vectors."""
        ...

    def array(self, count: int | None = None) -> np.ndarray:
        """The first `count` vectors `(m, n)` in this process; None is all vectors. It is a view if they are already in memory here."""
        ...

    def rotate(self, coefficients: np.ndarray) -> None:
        """Replace all vectors by their combinations with `coefficients` (m, p), `p <= m`."""
        ...

    def close(self) -> None:
        """Free resources of other processes. Safe to call twice."""
        ...


class MemoryBasis:
    """A `Basis` in one array of this process.

    Args:
        n: length of a vector.
        limit: number of vectors to reserve memory for. More vectors are possible, but need copies.
    """

    _dtype = np.dtype(np.float64)

    def __init__(self, n: int, limit: int = 0) -> None:
        self._count = 0
        self._lanes = Lanes()
        self._limit = limit
        self._storage = _reserve(limit, n, dtype=self._dtype)

    @classmethod
    def of(cls, rows: np.ndarray) -> MemoryBasis:
        """A basis of existing vectors (m, n), which are not copied."""
        basis = cls(rows.shape[1])
        basis._storage, basis._count, basis._limit = np.asarray(rows), len(rows), len(rows)
        return basis

    @property
    def n(self) -> int:
        """Length of a vector."""
        return self._storage.shape[1]

    def __len__(self) -> int:
        return self._count

    def recover_from(self, source: Callable[[], Iterable[np.ndarray]]) -> None:
        """Does nothing, because vectors are lost only with this process."""

    def append(self, rows: np.ndarray) -> None:
        """See `Basis.append`."""
        end = self._count + len(rows)
        self._limit = max(self._limit, end)
        if end > len(self._storage):
            least = max(end, min(self._limit, 2 * len(self._storage)))
            grown = _reserve(self._limit, self.n, at_least=least, dtype=self._dtype)
            grown[: self._count] = self._storage[: self._count]
            self._storage = grown
        self._storage[self._count : end] = rows
        self._count = end

    def remove(self, w: np.ndarray) -> np.ndarray:
        """See `Basis.remove`."""
        vectors = self.array()
        # A row for each vector of w: with few of them BLAS multiplies wide blocks from the left half as fast again as from the right.
        coefficients = np.empty((len(w), len(vectors)))

        def project(part: slice) -> None:
            coefficients[:, part] = w @ vectors[part].T

        def subtract(part: slice) -> None:
            w[:, part] -= coefficients @ vectors[:, part]

        # Two passes over the vectors in parts of a fixed size, so rounding does not depend on the number of threads.
        with self._lanes.open():
            self._lanes.each(project, parts(len(vectors), _VECTORS))
            self._lanes.each(subtract, parts(self.n, _CHUNK))
        return coefficients.T

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """See `Basis.combine`."""
        return spanned(self.array(len(coefficients)), coefficients)

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.picked`."""
        return self.array(count)[:, indices]

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.times`."""
        return rows @ self.array(count).T

    def array(self, count: int | None = None) -> np.ndarray:
        """See `Basis.array`. Appending vectors does not change the view, but `rotate` does."""
        return self._storage[: self._count if count is None else count]

    def rotate(self, coefficients: np.ndarray) -> None:
        """See `Basis.rotate`."""
        m, p = coefficients.shape
        for low in range(0, self.n, _CHUNK):
            self._storage[:p, low : low + _CHUNK] = coefficients.T @ self._storage[:m, low : low + _CHUNK]
        self._count = p

    def close(self) -> None:
        """Does nothing, because all vectors are in this process."""


def spanned(vectors: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """`vectors.T @ coefficients` (n, q) in float64, for vectors (m, n) in either precision, without a copy of them."""
    out = np.empty((vectors.shape[1], coefficients.shape[1]))
    for part in parts(len(out), _CHUNK):  # with few columns from the left, see `MemoryBasis.remove`
        out[part] = (coefficients.T @ vectors[:, part].astype(np.float64, copy=False)).T
    return out


def parts(count: int, step: int) -> list[slice]:
    """Return slices of at most `step` entries that cover `count` entries in order."""
    return [slice(low, min(low + step, count)) for low in range(0, count, step)]


def _reserve(rows: int, n: int, at_least: int = 0, *, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array of `rows` or, if memory is short, fewer rows of length n.

    The system allocates pages when they are first written. So reserving the whole basis costs nothing, and avoids the copies of
    a growing array.
    """
    while True:
        try:
            return np.empty((rows, n), dtype)
        except MemoryError:
            if rows // 2 < max(at_least, 1):
                raise
            rows //= 2
