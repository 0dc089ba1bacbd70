"""A cache of kernels and eigensystems, with the content of rows as keys, for searches that need the same kernels repeatedly.

A search over ridges and times on k folds needs the same kernels many times, and its folds share most of their rows. Every
pair of rows is evaluated once and kept in memory of a limited size. Kernels that do not fit are evaluated on every request.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import inner_lists
from ntkpipe.kernels.state import Kernels

# Largest memory of all pools and eigensystems of one process together.
LIMIT_BYTES = 512 << 20
# Largest number of rectangles in which missing entries are evaluated. More rectangles take longer than they save.
_MOST_RECTANGLES = 16
# Bytes of a pair in a pool: both kernels in float64, and whether they are known.
_PAIR_BYTES = 17


class SharedKernels:
    """Computes both kernels of rows, and evaluates each pair of rows once.

    Entries are those of `Architecture.__call__` on some block that contains the pair, in float64. Threads may share an instance.

    Args:
        limit_bytes: largest memory of the cache. The least recently used pool is dropped first.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._pools: OrderedDict[int, _Pool] = OrderedDict()
        self._systems: OrderedDict[tuple[Any, ...], Eigensystem] = OrderedDict()
        self._lock = threading.RLock()
        self._made = 0
        self.evaluated = 0
        """Number of pairs that were evaluated so far."""

    def clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._pools.clear()
            self._systems.clear()

    def kernels(self, architecture: Architecture, x1: np.ndarray, x2: np.ndarray | None = None) -> Kernels:
        """Both kernels `(n1, n2)` in float64.

        Args:
            architecture: the network.
            x1: `(n1, ...)`, whose dtype is that of the computation.
            x2: `(n2, ...)` with the same dtype; None is `x1`.
        """
        with self._lock:
            pool, rows = self._entered(architecture, (x1,) if x2 is None else (x2, x1))
            if pool is None:
                made = architecture(x1, x2, layout="NHWC")
                self.evaluated += made.ntk.size
                return Kernels(*(np.asarray(k, np.float64) for k in made))
            made, count = pool.block(rows[-1], rows[0])
            self.evaluated += count
            self._settle()
            return made

    def eigensystem(self, architecture: Architecture, x: np.ndarray, name: str) -> Eigensystem:
        """The eigendecomposition of the kernel `nngp` or `ntk` of rows with themselves."""
        key = (architecture.fingerprint, name, x.shape, x.dtype.str, rows_digest(x))
        with self._lock:
            system = self._systems.pop(key, None)
            if system is None:
                system = Eigensystem.of(getattr(self.kernels(architecture, x), name), x.dtype)
            self._systems[key] = system
            self._settle()
            return system

    def _entered(self, architecture: Architecture, blocks: tuple[np.ndarray, ...]) -> tuple[_Pool | None, list[Any]]:
        """The pool with most rows of the first block, after adding the rows of all blocks, and the positions of all rows.

        A pool that has less than half of the first block's rows is not used. The pool is None if the rows do not fit into memory.
        """
        count, width = sum(map(len, blocks)), blocks[0].nbytes // max(len(blocks[0]), 1)
        if count * (_PAIR_BYTES * count + width) > self._limit or is_random(architecture):
            return None, []
        digests = [[rows_digest(row) for row in block] for block in blocks]
        kind = (architecture.fingerprint, blocks[0].shape[1:], blocks[0].dtype)
        fitting = [(key, pool) for key, pool in self._pools.items() if pool.kind == kind]
        key, pool = max(fitting, key=lambda item: item[1].known_of(digests[0]), default=(-1, None))
        grown = 0 if pool is None else pool.size + sum(len(set(d) - pool.index.keys()) for d in digests)
        if pool is None or 2 * pool.known_of(digests[0]) < len(blocks[0]) or grown**2 * _PAIR_BYTES > self._limit:
            if pool is not None and 2 * pool.known_of(digests[0]) >= len(blocks[0]):
                del self._pools[key]  # the pool would exceed the limit
            self._made += 1
            key, pool = self._made, _Pool(architecture, kind)
            self._pools[key] = pool
        self._pools.move_to_end(key)
        return pool, [pool.enter(block, names) for block, names in zip(blocks, digests, strict=True)]

    def _settle(self) -> None:
        """Drop the least recently used data until the rest fits. The newest pool and the newest eigensystem are kept."""
        while self._bytes() > self._limit and len(self._systems) > 1:
            self._systems.popitem(last=False)
        while self._bytes() > self._limit and len(self._pools) > 1:
            self._pools.popitem(last=False)

    def _bytes(self) -> int:
        systems = sum(s.values.nbytes + s.vectors.nbytes for s in self._systems.values())
        return systems + sum(pool.bytes for pool in self._pools.values())


class _Pool:
    """Rows, and the kernels of their pairs that were requested."""

    def __init__(self, architecture: Architecture, kind: tuple[Any, ...]) -> None:
        self.kind = kind
        self.index: dict[bytes, int] = {}
        self._architecture = architecture
        self._rows = np.empty((0, *kind[1]), kind[2])
        self._kernels = [np.empty((0, 0)) for _ in Kernels._fields]
        self._known = np.empty((0, 0), bool)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def bytes(self) -> int:
        """Memory of all arrays."""
        return self._rows.nbytes + self._known.nbytes + sum(k.nbytes for k in self._kernels)

    def known_of(self, digests: list[bytes]) -> int:
        """Number of these rows that are in the pool."""
        return sum(digest in self.index for digest in digests)

    def enter(self, block: np.ndarray, digests: list[bytes]) -> np.ndarray:
        """Add missing rows, and return the positions of all rows."""
        before = self.size
        for digest in digests:
            self.index.setdefault(digest, len(self.index))
        positions = np.array([self.index[digest] for digest in digests])
        if self.size > before:
            self._grow(self.size)
            self._rows[positions] = block
        return positions

    def _grow(self, size: int) -> None:
        old = len(self._known)
        if size <= old:
            return
        rows, known = np.zeros((size, *self._rows.shape[1:]), self._rows.dtype), np.zeros((size, size), bool)
        rows[:old], known[:old, :old] = self._rows, self._known
        kernels = [np.zeros((size, size)) for _ in self._kernels]
        for new, kernel in zip(kernels, self._kernels, strict=True):
            new[:old, :old] = kernel
        self._rows, self._known, self._kernels = rows, known, kernels

    def block(self, rows: np.ndarray, columns: np.ndarray) -> tuple[Kernels, int]:
        """Kernels of rows with columns, and the number of pairs that were evaluated for them."""
        count = 0
        for some_rows, some_columns in _rectangles(~self._known, np.unique(rows), np.unique(columns)):
            at = np.ix_(some_rows, some_columns)
            if self._known[at].all():  # an earlier rectangle contained the mirrored entries
                continue
            same = len(some_rows) == len(some_columns) and bool((some_rows == some_columns).all())
            x2 = None if same else self._rows[some_columns]
            made = self._architecture(self._rows[some_rows], x2, layout="NHWC")
            for kernel, values in zip(self._kernels, made, strict=True):
                kernel[at] = values
                kernel[at[1].T, at[0].T] = np.asarray(values).T
            self._known[at] = self._known[at[1].T, at[0].T] = True
            count += len(some_rows) * len(some_columns)
        whole = np.ix_(rows, columns)
        return Kernels(*(kernel[whole] for kernel in self._kernels)), count


def _rectangles(missing: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of blocks that cover the missing entries. Rows that miss the same columns are in one block."""
    asked = missing[np.ix_(rows, columns)]
    rows, asked = rows[asked.any(axis=1)], asked[asked.any(axis=1)]
    if not len(rows):
        return
    patterns, group = np.unique(np.packbits(asked, axis=1), axis=0, return_inverse=True)
    if len(patterns) > _MOST_RECTANGLES:
        yield rows, columns[asked.any(axis=0)]
        return
    for k in range(len(patterns)):
        members = np.flatnonzero(group.ravel() == k)
        yield rows[members], columns[asked[members[0]]]


def rows_digest(rows: np.ndarray) -> bytes:
    """A digest of the content of rows."""
    return hashlib.blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=16).digest()


def is_random(architecture: Architecture) -> bool:
    """Whether the network has dropout. The kernel of a point with itself then differs from that with an equal point, so the content
    of rows does not determine it.
    """
    return _has_dropout(architecture.to_spec())


def _has_dropout(layers: list[dict[str, Any]]) -> bool:
    return any(layer["op"] == "dropout" or any(_has_dropout(inner) for inner in inner_lists(layer)) for layer in layers)


shared_kernels = SharedKernels()
"""The cache that the estimators of `ntkpipe.sklearn` share in one process."""
