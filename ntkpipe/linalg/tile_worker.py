"""One worker's share of a stored matrix: the state object of a pool."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np

from ntkpipe.linalg.assemble import read_tile
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.pairs import pair_bound
from ntkpipe.linalg.products import accumulator
from ntkpipe.tiles.matrix import TileMatrix

Address = tuple[int, int]

# Tiles read ahead of the arithmetic. Two, so that one slow read does not stop it.
_LOOKAHEAD = 2


class TileWorker:
    """Multiplies with its tiles; keeps as many in memory as fit and reads the others again on every pass.

    Tiles are taken in the order of `addresses`, kept or not, so that results do not depend on `cache_bytes` in a single
    bit. Which tiles are kept is spread evenly over that order: reading the others overlaps with arithmetic throughout.

    Args:
        matrix: where tiles are read from; if its grid is symmetric every stored tile off the diagonal is used twice.
        addresses: tiles of this worker.
        products: `float32` or `float64`.
        cache_bytes: for kept tiles; reading ahead takes three tiles more.
        device: where products are made: `cpu` (NumPy) or `accelerator` (JAX's default device, tiles are kept there);
            None is the accelerator if there is one.
    """

    def __init__(
        self,
        matrix: TileMatrix,
        addresses: Sequence[Address],
        products: str,
        cache_bytes: int,
        device: str | None = None,
    ) -> None:
        if device is None:
            from ntkpipe.linalg.device_products import on_accelerator

            device = "accelerator" if on_accelerator() else "cpu"
        self._matrix = matrix
        self._grid = matrix.grid
        self._addresses = [(int(i), int(j)) for i, j in addresses]
        self._products = products
        self._device = device == "accelerator"
        # Tiles are kept in the precision of the products if that is the smaller one.
        self._kept_dtype = np.dtype(np.float32) if products == "float32" else matrix.dtype
        self._keep = self._choose(cache_bytes)
        self._cache: dict[Address, Any] = {}
        self._lanes = Lanes()

    def multiply(self, x: np.ndarray, products: str | None = None, splits: Sequence[int] = ()) -> np.ndarray:
        """The part of `A x` that comes from these tiles.

        Args:
            x: `(cols, k)` float64.
            products: for this product alone; None is the worker's own. Tiles that are kept in a lower precision than
                they are stored in (float64 tiles, float32 products) are read again for float64 products.
            splits: columns before which another product begins: each is made as in a pass of its own, to the last bit.

        Returns:
            `(rows, k)` float64; the parts of all workers sum to `A x`.
        """
        products = products or self._products
        symmetric = self._grid.symmetric
        totals = [
            accumulator(products, part, self._grid.rows, mirrored=symmetric, device=self._device, lanes=self._lanes)
            for part in np.split(x, splits, axis=1)
        ]
        with nullcontext() if self._device else self._lanes.open():
            for (i, j), tile in self._whole_tiles() if products != self._products else self._tiles(self._addresses):
                where = self._grid.tile(i, j)
                for total in totals:
                    total.add(tile, where.row_start, where.col_start, transpose=self._grid.symmetric and i != j)
        return totals[0].result() if len(totals) == 1 else np.concatenate([one.result() for one in totals], axis=1)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The part of `A[indices]` as stored: `(m, cols)` float64, zero outside these tiles."""
        indices = np.asarray(indices, dtype=np.int64)
        out = np.zeros((len(indices), self._grid.cols))
        blocks = set((indices // self._grid.edge).tolist())
        mirrored = blocks if self._grid.symmetric else set()
        for i, j in self._addresses:
            if i not in blocks and j not in mirrored:
                continue
            where = self._grid.tile(i, j)
            tile = read_tile(self._matrix, i, j)
            inside = np.flatnonzero((indices >= where.row_start) & (indices < where.row_stop))
            out[inside, where.col_start : where.col_stop] = tile[indices[inside] - where.row_start]
            if self._grid.symmetric and i != j:
                inside = np.flatnonzero((indices >= where.col_start) & (indices < where.col_stop))
                out[inside, where.row_start : where.row_stop] = tile[:, indices[inside] - where.col_start].T
        return out

    def diagonal(self) -> np.ndarray:
        """The part of the diagonal: `(n,)` float64, zero outside these tiles."""
        out = np.zeros(self._grid.rows)
        for i, j in self._addresses:
            if i == j:
                where = self._grid.tile(i, j)
                out[where.row_start : where.row_stop] = self._matrix.read(i, j).diagonal()
        return out

    def pair_bound(self, diagonal: np.ndarray, groups: np.ndarray) -> float:
        """The least upper bound on the smallest eigenvalue from pairs of rows in these tiles; see `pairs.pair_bound`.

        Args:
            diagonal: (n,) float64, of the matrix.
            groups: (n,) integers; pairs of one group are left out.
        """
        least = math.inf
        for (i, j), tile in self._whole_tiles():
            where = self._grid.tile(i, j)
            rows, cols = slice(where.row_start, where.row_stop), slice(where.col_start, where.col_stop)
            found = pair_bound(np.asarray(tile), diagonal[rows], diagonal[cols], (groups[rows], groups[cols]))
            least = min(least, found)
        return least

    def kept(self) -> tuple[int, int]:
        """Number of tiles that are kept between passes, and of all tiles of this worker."""
        return len(self._keep), len(self._addresses)

    def _choose(self, cache_bytes: int) -> frozenset[Address]:
        sizes = [int(np.prod(self._grid.tile(i, j).shape)) * self._kept_dtype.itemsize for i, j in self._addresses]
        share = min(1.0, max(0, cache_bytes) / max(1, sum(sizes)))
        keep, used, position = set(), 0, 0.0
        for address, size in zip(self._addresses, sizes, strict=True):
            position += share
            if position >= 1 - 1e-9 and used + size <= cache_bytes:
                keep.add(address)
                used += size
                position -= 1
        return frozenset(keep)

    def _whole_tiles(self) -> Iterator[tuple[Address, Any]]:
        """Tiles as they are stored, in order: those that are kept in a lower precision are read again."""
        if self._kept_dtype == self._matrix.dtype:
            return self._tiles(self._addresses)
        return (((i, j), self._stored((i, j))) for i, j in self._addresses)

    def _tiles(self, addresses: Sequence[Address]) -> Iterator[tuple[Address, Any]]:
        """Tiles in order; those that are not at hand are read ahead by a thread."""
        absent = iter([address for address in addresses if address not in self._cache])
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tile-reader") as reader:
            pending: deque[Future[Any]] = deque(
                reader.submit(self._load, a) for a in itertools.islice(absent, _LOOKAHEAD)
            )
            try:
                for address in addresses:
                    tile = self._cache.get(address)
                    if tile is None:
                        tile = pending.popleft().result()
                        pending.extend(reader.submit(self._load, a) for a in itertools.islice(absent, 1))
                        if address in self._keep:
                            self._cache[address] = tile
                    yield address, tile
            finally:
                for future in pending:
                    future.cancel()

    def _load(self, address: Address) -> Any:
        return self._stored(address, self._kept_dtype)

    def _stored(self, address: Address, dtype: np.dtype | None = None) -> Any:
        tile = read_tile(self._matrix, *address)
        if dtype is not None and tile.dtype.itemsize > dtype.itemsize:
            tile = tile.astype(dtype)
        if self._device:
            from ntkpipe.linalg.device_products import to_device

            return to_device(tile)
        return tile
