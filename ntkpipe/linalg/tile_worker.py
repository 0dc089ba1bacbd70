"""The part of a stored matrix that one worker of a pool owns."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import numpy as np

from ntkpipe.linalg.assemble import read_tile
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.pairs import pair_bound
from ntkpipe.linalg.products import accumulator
from ntkpipe.tiles.matrix import TileMatrix

Address = tuple[int, int]

# Number of tiles that are read ahead. With two, one slow read does not stop the arithmetic.
_LOOKAHEAD = 2


class TileWorker:
    """Multiplies with its tiles. It keeps as many tiles in memory as fit, and reads the others again on every pass.

    Tiles are used in the order of `addresses`, whether they are kept or not, so results do not depend on `cache_bytes` in any
    bit. The kept tiles are spread evenly over that order, so that reading the others overlaps with arithmetic all the time.

    Args:
        matrix: the source of the tiles. If its grid is symmetric, every stored tile off the diagonal is used twice.
        addresses: addresses of the tiles of this worker.
        products: precision of products, `float32` or `float64`.
        cache_bytes: memory for kept tiles. Reading ahead takes the memory of three more tiles.
        device: device of the products: `cpu` (NumPy) or `accelerator` (JAX's default device, which also keeps the tiles);
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
            device = "accelerator" if _on_accelerator() else "cpu"
        self._matrix = matrix
        self._grid = matrix.grid
        self._addresses = [(int(i), int(j)) for i, j in addresses]
        self._products = products
        self._device = device == "accelerator"
        # Tiles are kept in the precision of the products if it is lower than that of the tiles.
        self._kept_dtype = np.dtype(np.float32) if products == "float32" else matrix.dtype
        self._keep = self._choose(cache_bytes)
        self._cache: dict[Address, Any] = {}
        self._lanes = Lanes()

    def multiply(self, x: np.ndarray, products: str | None = None, splits: Sequence[int] = ()) -> np.ndarray:
        """The part of `A x` that comes from these tiles.

        Args:
            x: `(cols, k)` float64.
            products: precision of this product; None is that of the worker. Tiles that are kept in a lower precision than
                they are stored in (float64 tiles, float32 products) are read again for float64 products.
            splits: columns at which another product begins. Each product equals that of a separate pass in every bit.

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
            for (i, j), tile in (
                self._whole_tiles(self._addresses) if products != self._products else self._tiles(self._addresses)
            ):
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
        touched = [(i, j) for i, j in self._addresses if i in blocks or j in mirrored]
        for (i, j), tile in self._whole_tiles(touched):
            where = self._grid.tile(i, j)
            inside = np.flatnonzero((indices >= where.row_start) & (indices < where.row_stop))
            out[inside, where.col_start : where.col_stop] = np.asarray(tile[indices[inside] - where.row_start])
            if self._grid.symmetric and i != j:
                inside = np.flatnonzero((indices >= where.col_start) & (indices < where.col_stop))
                out[inside, where.row_start : where.row_stop] = np.asarray(tile[:, indices[inside] - where.col_start]).T
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
            diagonal: (n,) diagonal of the matrix in float64.
            groups: (n,) integers. Pairs within a group are left out.
        """
        least = math.inf
        for (i, j), tile in self._whole_tiles(self._addresses):
            where = self._grid.tile(i, j)
            rows, cols = slice(where.row_start, where.row_stop), slice(where.col_start, where.col_stop)
            found = pair_bound(np.asarray(tile), diagonal[rows], diagonal[cols], (groups[rows], groups[cols]))
            least = min(least, found)
        return least

    def kept(self) -> tuple[int, int]:
        """Number of tiles that are kept between passes, and number of all tiles of this worker."""
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

    def _whole_tiles(self, addresses: Sequence[Address]) -> Iterator[tuple[Address, Any]]:
        """Tiles in their stored precision, in order. Tiles that are kept in a lower precision are read again."""
        if self._kept_dtype == self._matrix.dtype:
            return self._tiles(addresses)
        return ((address, self._stored(address)) for address in addresses)

    def _tiles(self, addresses: Sequence[Address]) -> Iterator[tuple[Address, Any]]:
        """Tiles in order. A thread reads tiles ahead that are not in memory."""
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


def _on_accelerator() -> bool:
    """Whether JAX's default device is an accelerator. JAX is imported only if it can have one: that takes each worker a second."""
    named = os.environ.get("JAX_PLATFORMS", "")
    if "jax" not in sys.modules and (named == "cpu" or not (named or _plugins())):
        return False
    from ntkpipe.linalg.device_products import on_accelerator

    return on_accelerator()


def _plugins() -> bool:
    """Whether JAX finds a plugin for a device other than the CPU (https://docs.jax.dev/en/latest/installation.html)."""
    if os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS") or entry_points(group="jax_plugins"):
        return True
    return any(find_spec(name) is not None for name in ("jax_plugins", "libtpu"))
