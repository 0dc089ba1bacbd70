"""Where the orthonormal vectors of block Lanczos live: what the recurrence and its users ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from ntkpipe.linalg.lanes import Lanes

# Columns (images), and vectors, that are worked on at a time.
_CHUNK, _VECTORS = 4096, 128


@runtime_checkable
class Basis(Protocol):
    """Vectors of length n, as rows, that are only ever added to, or replaced as a whole by combinations of themselves.

    Sums run in a fixed order: results depend on how the vectors are divided among workers, never on timing.
    """

    @property
    def n(self) -> int:
        """Length of a vector."""
        ...

    def __len__(self) -> int:
        """Number of vectors."""
        ...

    def recover_from(self, source: Callable[[], Iterable[np.ndarray]]) -> None:
        """Say what gives all vectors again, in blocks `(k, n)`, should some be lost with a worker."""
        ...

    def append(self, rows: np.ndarray) -> None:
        """Add `(k, n)` vectors at the end."""
        ...

    def remove(self, w: np.ndarray) -> np.ndarray:
        """Subtract from `w` (k, n), in place, its components along all vectors; return them, `(m, k)`."""
        ...

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """`(n, q)`, the combinations of the first m vectors with `coefficients` (m, q)."""
        ...

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """`(m, k)`, the entries at `indices` (k,) of the first `count` vectors (all)."""
        ...

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """`(k, m)`, the products of other vectors `rows` (k, n) with the first `count` vectors (all)."""
        ...

    def array(self, count: int | None = None) -> np.ndarray:
        """`(m, n)`, the first `count` vectors (all) in this process; a view where they are here anyway."""
        ...

    def rotate(self, coefficients: np.ndarray) -> None:
        """Replace all vectors by their combinations with `coefficients` (m, p), `p <= m`."""
        ...

    def close(self) -> None:
        """Free what is held elsewhere. Safe to call twice."""
        ...


class MemoryBasis:
    """A `Basis` in one array of this process.

    Args:
        n: length of a vector.
        limit: vectors that room is asked for at once; more are taken, at the price of copies.
    """

    def __init__(self, n: int, limit: int = 0) -> None:
        self._count = 0
        self._lanes = Lanes()
        self._limit = limit
        self._storage = _reserve(limit, n)

    @classmethod
    def of(cls, rows: np.ndarray) -> MemoryBasis:
        """Vectors that exist already, (m, n), not copied."""
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
        """Nothing is lost but with this process."""

    def append(self, rows: np.ndarray) -> None:
        """See `Basis.append`."""
        end = self._count + len(rows)
        self._limit = max(self._limit, end)
        if end > len(self._storage):
            grown = _reserve(self._limit, self.n, at_least=max(end, min(self._limit, 2 * len(self._storage))))
            grown[: self._count] = self._storage[: self._count]
            self._storage = grown
        self._storage[self._count : end] = rows
        self._count = end

    def remove(self, w: np.ndarray) -> np.ndarray:
        """See `Basis.remove`."""
        vectors = self.array()
        coefficients = np.empty((len(vectors), len(w)))

        def project(part: slice) -> None:
            coefficients[part] = vectors[part] @ w.T

        def subtract(part: slice) -> None:
            w[:, part] -= coefficients.T @ vectors[:, part]

        # Two trips to memory, each in parts of a fixed size: rounding does not depend on the number of threads.
        with self._lanes.open():
            self._lanes.each(project, _parts(len(vectors), _VECTORS))
            self._lanes.each(subtract, _parts(self.n, _CHUNK))
        return coefficients

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """See `Basis.combine`."""
        return self.array(len(coefficients)).T @ coefficients

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.picked`."""
        return self.array(count)[:, indices]

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.times`."""
        return rows @ self.array(count).T

    def array(self, count: int | None = None) -> np.ndarray:
        """See `Basis.array`; later vectors do not change it, `rotate` does."""
        return self._storage[: self._count if count is None else count]

    def rotate(self, coefficients: np.ndarray) -> None:
        """See `Basis.rotate`."""
        m, p = coefficients.shape
        for low in range(0, self.n, _CHUNK):
            self._storage[:p, low : low + _CHUNK] = coefficients.T @ self._storage[:m, low : low + _CHUNK]
        self._count = p

    def close(self) -> None:
        """Nothing is held elsewhere."""


def _parts(count: int, step: int) -> list[slice]:
    return [slice(low, min(low + step, count)) for low in range(0, count, step)]


def _reserve(rows: int, n: int, at_least: int = 0) -> np.ndarray:
    """An uninitialised `(rows, n)` array, or the largest that the system grants.

    The system hands out pages when they are first written, so that reserving the whole basis costs nothing and spares
    the copies of a growing array.
    """
    while True:
        try:
            return np.empty((rows, n))
        except MemoryError:
            if rows // 2 < max(at_least, 1):
                raise
            rows //= 2
