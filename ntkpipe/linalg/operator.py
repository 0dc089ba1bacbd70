"""Operators of the solvers: a dense matrix, or a matrix whose tiles are divided among a pool of workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from ntkpipe.errors import ConfigError
from ntkpipe.linalg.pairs import pair_bound
from ntkpipe.linalg.products import accumulator
from ntkpipe.linalg.tile_worker import Address, TileWorker
from ntkpipe.tasks.executor import Executor, WorkerPool
from ntkpipe.tiles.grid import Tile, TileGrid
from ntkpipe.tiles.matrix import TileMatrix


@runtime_checkable
class LinearMap(Protocol):
    """A symmetric n x n matrix that supports only products."""

    @property
    def n(self) -> int:
        """Number of rows."""
        ...

    def matmul(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`A x` for `x` of shape `(n, k)`; float64 in, float64 out."""
        ...


@runtime_checkable
class Operator(LinearMap, Protocol):
    """A symmetric n x n matrix that also gives access to its stored entries."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> Float64[np.ndarray, "m n"]:
        """`(m, n)` float64, rows of the matrix as it is stored."""
        ...

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """`(n,)` float64."""
        ...

    def pair_bound(self) -> float:
        """An upper bound on the smallest eigenvalue, from pairs of rows (`pairs.pair_bound`). It takes one pass over the entries."""
        ...


class DenseOperator:
    """A symmetric matrix in memory.

    Args:
        array: `(n, n)`, both triangles; float32 or float64.
        products: `float32` or `float64`.

    Raises:
        ValueError: if the array is not square.
    """

    def __init__(self, array: np.ndarray, products: str = "float64") -> None:
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise ValueError(f"an operator needs a square matrix, got shape {array.shape}")
        self._array = array
        self._products = products

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self._array)

    def matmul(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`A x` for `x` of shape `(n, k)`."""
        if self._products == "float64" and self._array.dtype == np.float64:
            return (np.ascontiguousarray(x.T) @ self._array).T  # symmetric; x is stored by rows as in `products`
        total = accumulator(self._products, x, self.n, mirrored=False)
        total.add(self._array, 0, 0, transpose=False)
        return total.result()

    def rows(self, indices: Sequence[int] | np.ndarray) -> Float64[np.ndarray, "m n"]:
        """`(m, n)` float64."""
        return self._array[np.asarray(indices, dtype=np.int64)].astype(np.float64)

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """`(n,)` float64."""
        return self._array.diagonal().astype(np.float64)

    def pair_bound(self) -> float:
        """See `Operator.pair_bound`."""
        diagonal, own = self.diagonal(), np.arange(self.n)
        return pair_bound(self._array, diagonal, diagonal, (own, own))


class RectangularOperator:
    """A stored matrix whose tiles are divided among a pool of `TileWorker`s. Each product takes one pass over the tiles.

    The parts of the workers are summed in float64 in the order of the workers. The last bits of the result depend on the number of
    workers, but not on timing, or on which tiles are in memory.

    Args:
        grid: grid of the matrix.
        pool: `TileWorker`s, which together own every tile exactly once.
    """

    def __init__(self, grid: TileGrid, pool: WorkerPool) -> None:
        self._grid = grid
        self._pool = pool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._grid.rows, self._grid.cols

    def matmul(
        self, x: Float64[np.ndarray, "cols k"], products: str | None = None, splits: Sequence[int] = ()
    ) -> Float64[np.ndarray, "rows k"]:
        """`A x`.

        Args:
            x: `(cols, k)`.
            products: precision of this product, `float32` or `float64`; None is that of the operator. A true residual needs
                float64 products.
            splits: see `TileWorker.multiply`.

        Returns:
            `(rows, k)` float64.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if x.ndim != 2 or x.shape[0] != self._grid.cols:
            raise ValueError(f"cannot multiply a matrix of shape {self.shape} with an array of shape {x.shape}")
        given = np.ascontiguousarray(x, dtype=np.float64)
        return self._pool.total("multiply", given, products, *([tuple(splits)] if len(splits) else []))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Float64[np.ndarray, "m n"]:
        """Rows `(m, cols)` of the stored matrix in float64.

        Raises:
            IndexError: if a row does not exist.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= self._grid.rows):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a matrix with {self._grid.rows} rows")
        return self._pool.total("rows", indices)

    def kept(self) -> tuple[int, int]:
        """Number of tiles held in memory between passes, and number of all tiles."""
        counts = self._pool.broadcast("kept")
        return sum(kept for kept, _ in counts), sum(total for _, total in counts)

    def close(self) -> None:
        """Stop the workers and free their tiles."""
        self._pool.close()

    def __enter__(self) -> RectangularOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TileOperator(RectangularOperator):
    """An `Operator` over the stored lower triangle of a symmetric matrix; see `RectangularOperator`."""

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._grid.rows

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """`(n,)` float64."""
        return self._pool.total("diagonal")

    def pair_bound(self, groups: np.ndarray | None = None) -> float:
        """See `Operator.pair_bound`.

        Args:
            groups: (n,) integers. Pairs within a group are left out. None makes every row its own group.
        """
        return min(self._pool.broadcast("pair_bound", self.diagonal(), np.arange(self.n) if groups is None else groups))

    def __enter__(self) -> TileOperator:
        return self


def tile_operator(
    matrix: TileMatrix,
    executor: Executor,
    *,
    products: str | None = None,
    memory_bytes: int = 0,
    device: str | None = None,
) -> TileOperator:
    """Divide the tiles of a symmetric matrix among a pool of workers. Close the operator after use.

    Args:
        matrix: the symmetric matrix.
        executor: makes the pool, with one worker for each process that computes.
        products: precision of products, `float32` or `float64`; None is the dtype of the tiles.
        memory_bytes: memory of all workers together for tiles held between passes. Other tiles are read on every pass.
        device: see `TileWorker`.

    Raises:
        ConfigError: if the matrix is not symmetric.
    """
    if not matrix.grid.symmetric:
        raise ConfigError("an operator needs a symmetric tile grid; use rectangular_operator for test-train blocks")
    return TileOperator(matrix.grid, _pool(matrix, executor, products, memory_bytes, device))


def rectangular_operator(
    matrix: TileMatrix,
    executor: Executor,
    *,
    products: str | None = None,
    memory_bytes: int = 0,
    device: str | None = None,
) -> RectangularOperator:
    """Divide the tiles of a test-train block among a pool of workers. Arguments are those of `tile_operator`."""
    return RectangularOperator(matrix.grid, _pool(matrix, executor, products, memory_bytes, device))


def rectangular_product(
    matrix: TileMatrix, executor: Executor, w: np.ndarray, products: str | None = None
) -> np.ndarray:
    """The product `(m, k)` of a stored `(m, n)` block with `w` `(n, k)` in float64, in one pass over its tiles."""
    with rectangular_operator(matrix, executor, products=products) as operator:
        return operator.matmul(w)


def balanced_shares(tiles: Iterable[Tile], workers: int, *, symmetric: bool) -> list[list[Address]]:
    """Divide tiles among workers with about equal arithmetic. Each share is in the order of the grid.

    The largest tiles come first, and each tile goes to the worker with the least arithmetic, so loads differ by at most one tile. A tile
    off the diagonal of a symmetric matrix counts twice.
    """
    shares: list[list[Address]] = [[] for _ in range(workers)]
    loads = [0] * workers
    costs = [(t.shape[0] * t.shape[1] * (2 if symmetric and t.i != t.j else 1), (t.i, t.j)) for t in tiles]
    for cost, address in sorted(costs, key=lambda item: (-item[0], item[1])):
        worker = loads.index(min(loads))
        shares[worker].append(address)
        loads[worker] += cost
    return [sorted(share) for share in shares if share]


def _pool(
    matrix: TileMatrix, executor: Executor, products: str | None, memory_bytes: int, device: str | None
) -> WorkerPool:
    if products is None:
        products = "float32" if matrix.dtype == np.float32 else "float64"
    shares = balanced_shares(matrix.grid, max(1, executor.workers), symmetric=matrix.grid.symmetric)
    cache = memory_bytes // len(shares)
    return executor.pool(TileWorker, [(matrix, share, products, cache, device) for share in shares])
