"""A basis that is divided into slices of images over an executor's pool. Vectors that exceed its memory are on disk.

Each worker holds the columns of its slice of all vectors. Projections are sums over slices in the order of the workers. A worker
that died restarts empty, which the driver notices because the worker's number of vectors differs from the expected one. The driver then
sends the worker its slice of all vectors, from the checkpoint and the steps since then, and repeats the call. No step is lost.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ntkpipe.errors import IncompleteError
from ntkpipe.tasks.executor import Executor, in_order

# Number of vectors that are allocated, or written to disk, together.
_SEGMENT = 64
# Attempts to fill a worker that was replaced.
_REFILLS = 5
# Number of columns that are rotated at a time.
_CHUNK = 4096


class BasisSlice:
    """The columns of all vectors that one worker of a pool holds.

    All methods except `empty` and `on_disk` return None if the slice does not hold `expected` vectors.

    Args:
        low: first column.
        high: last column (excluded).
        memory_bytes: memory for vectors. Later vectors go to an unnamed file, which the system removes with the process.
        scratch: folder of that file; None is the system's default.
    """

    def __init__(self, low: int, high: int, memory_bytes: int, scratch: str | None) -> None:
        self._low, self._high = low, high
        self._memory, self._scratch = memory_bytes, scratch
        self._segments: list[np.ndarray] = []
        self._count = 0

    def append(self, expected: int, rows: np.ndarray) -> int | None:
        """Add this slice of `(k, n)` vectors. Returns the number of vectors."""
        if expected != self._count:
            return None
        self._add(rows[:, self._low : self._high])
        return self._count

    def empty(self) -> int:
        """Delete all vectors. Returns their number, 0."""
        self._segments, self._count = [], 0
        return 0

    def project(self, expected: int, w: np.ndarray) -> np.ndarray | None:
        """The contribution (m, k) of this slice to the components of `w` (k, n)."""
        if expected != self._count:
            return None
        part = w[:, self._low : self._high].T
        return np.concatenate([v @ part for v in self._filled()] or [np.zeros((0, len(w)))])

    def subtract(self, expected: int, w: np.ndarray, coefficients: np.ndarray) -> np.ndarray | None:
        """`w` minus the combination of the vectors, in this slice: (k, width)."""
        if expected != self._count:
            return None
        part, low = w[:, self._low : self._high].copy(), 0
        for v in self._filled():
            part -= coefficients[low : low + len(v)].T @ v
            low += len(v)
        return part

    def combine(self, expected: int, coefficients: np.ndarray) -> np.ndarray | None:
        """The combinations `(width, q)` of the first m vectors with coefficients (m, q)."""
        if expected != self._count:
            return None
        out, low = np.zeros((self._high - self._low, coefficients.shape[1])), 0
        for v in self._filled(len(coefficients)):
            out += v.T @ coefficients[low : low + len(v)]
            low += len(v)
        return out

    def picked(self, expected: int, indices: np.ndarray, count: int) -> np.ndarray | None:
        """The entries `(count, k)` of the first vectors at `indices`, with zeros outside this slice."""
        if expected != self._count:
            return None
        out = np.zeros((count, len(indices)))
        inside = np.flatnonzero((indices >= self._low) & (indices < self._high))
        out[:, inside] = self.slice(expected, count)[:, indices[inside] - self._low]
        return out

    def slice(self, expected: int, count: int) -> Any:
        """The first vectors in this slice, `(count, width)`."""
        if expected != self._count:
            return None
        return np.concatenate([np.array(v) for v in self._filled(count)] or [np.zeros((0, self._high - self._low))])

    def rotate(self, expected: int, coefficients: np.ndarray) -> int | None:
        """Replace the vectors by their combinations with `coefficients` (m, p). Returns the number of vectors."""
        if expected != self._count:
            return None
        m, p = coefficients.shape
        old, self._segments, self._count = list(self._filled(m)), [], 0
        starts = np.cumsum([0, *(len(v) for v in old)])
        for first in range(0, p, _SEGMENT):
            new = np.zeros((min(_SEGMENT, p - first), self._high - self._low))
            for low in range(0, new.shape[1], _CHUNK):
                for v, start in zip(old, starts, strict=False):
                    part = coefficients[start : start + len(v), first : first + len(new)]
                    new[:, low : low + _CHUNK] += part.T @ v[:, low : low + _CHUNK]
            self._add(new)
        return self._count

    def on_disk(self) -> int:
        """Number of segments that are on disk."""
        return sum(isinstance(v, np.memmap) for v in self._segments)

    def _add(self, rows: np.ndarray) -> None:
        while len(rows):
            used = self._count % _SEGMENT
            if not used:
                self._segments.append(self._allocate())
            taken = min(len(rows), _SEGMENT - used)
            self._segments[-1][used : used + taken] = rows[:taken]
            rows, self._count = rows[taken:], self._count + taken

    def _allocate(self) -> np.ndarray:
        shape = (_SEGMENT, self._high - self._low)
        size = 8 * shape[0] * shape[1]
        if size * (len(self._segments) + 1) <= self._memory:
            return np.empty(shape)
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            return np.memmap(file, dtype=np.float64, mode="w+", shape=shape)

    def _filled(self, count: int | None = None) -> Iterable[np.ndarray]:
        left = self._count if count is None else count
        for segment in self._segments:
            if left <= 0:
                return
            yield segment[: min(left, _SEGMENT)]
            left -= _SEGMENT


class PoolBasis:
    """A `Basis` over a pool of `BasisSlice`s. Close it after use.

    Args:
        n: length of a vector.
        executor: makes the pool, with one slice for each worker.
        memory_bytes: memory of all workers together for vectors. Further vectors go to disk.
        scratch: folder on every worker for these vectors; None is the system's default.
    """

    def __init__(self, n: int, executor: Executor, *, memory_bytes: int, scratch: str | None = None) -> None:
        self._n, self._count = n, 0
        edges = np.linspace(0, n, min(max(1, executor.workers), max(1, n)) + 1).astype(int).tolist()
        slices = list(itertools.pairwise(edges))
        shares = [memory_bytes * (high - low) // max(1, n) for low, high in slices]
        self._pool = executor.pool(
            BasisSlice, [(low, high, share, scratch) for (low, high), share in zip(slices, shares, strict=True)]
        )
        self._recover: Callable[[], Iterable[np.ndarray]] | None = None

    @property
    def n(self) -> int:
        """Length of a vector."""
        return self._n

    def __len__(self) -> int:
        return self._count

    def recover_from(self, source: Callable[[], Iterable[np.ndarray]]) -> None:
        """See `Basis.recover_from`."""
        self._recover = source

    def append(self, rows: np.ndarray) -> None:
        """See `Basis.append`."""
        if len(rows):
            self._everywhere("append", np.ascontiguousarray(rows))
            self._count += len(rows)

    def remove(self, w: np.ndarray) -> np.ndarray:
        """See `Basis.remove`."""
        coefficients = in_order(self._everywhere("project", w))
        w[:] = np.concatenate(self._everywhere("subtract", w, coefficients), axis=1)
        return coefficients

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """See `Basis.combine`."""
        return np.concatenate(self._everywhere("combine", np.ascontiguousarray(coefficients)))

    def picked(self, indices: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.picked`."""
        return in_order(self._everywhere("picked", np.asarray(indices), self._count if count is None else count))

    def times(self, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """See `Basis.times`."""
        return in_order(self._everywhere("project", np.ascontiguousarray(rows)))[:count].T

    def array(self, count: int | None = None) -> np.ndarray:
        """See `Basis.array`. The result is a copy."""
        return np.concatenate(self._everywhere("slice", self._count if count is None else count), axis=1)

    def rotate(self, coefficients: np.ndarray) -> None:
        """See `Basis.rotate`."""
        self._everywhere("rotate", np.ascontiguousarray(coefficients))
        self._count = coefficients.shape[1]

    def on_disk(self) -> int:
        """Number of segments of 64 vectors that are on disk, over all slices."""
        return sum(self._pool.broadcast("on_disk"))

    def close(self) -> None:
        """Stop the workers."""
        self._pool.close()

    def _everywhere(self, method: str, *args: Any) -> list[Any]:
        """Call every worker. Workers that restarted empty are refilled and called again."""
        results = self._pool.broadcast(method, self._count, *args)
        for worker in range(len(results)):
            while results[worker] is None:
                self._refill(worker)
                results[worker] = self._pool.call(worker, method, self._count, *args)
        return results

    def _refill(self, worker: int) -> None:
        found = 0
        for _ in range(_REFILLS):
            found = self._pool.call(worker, "empty")
            for rows in self._recover() if self._recover else ():
                # The source may have more vectors than the basis held at this point.
                held = self._pool.call(worker, "append", found, rows[: self._count - found])
                if held is None:  # the worker died again
                    break
                found = held
            if found == self._count:
                return
        raise IncompleteError(
            f"a worker with a slice of {self._count} vectors was lost, and only {found} of them could be restored: run "
            "the same command again, which continues from the last checkpoint"
        )
