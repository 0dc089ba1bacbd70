"""Triangular solves with a stored factor.

The factor is streamed: a solve with k columns reads it once (`L^-1 b`) or twice (`A^-1 b`), 8 n^2 bytes for 4 n^2 k flops. With the
few columns of labels, reading dominates. Other processes would not help, because each row of tiles waits for the one above. So
the calling process solves, and a thread reads ahead. The n columns of an inverse are divided into batches with one task each
(`ntkpipe.linalg.factor.posterior`). Batches are independent, and from about 64 columns on the arithmetic dominates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.factor.blas import subtract_product
from ntkpipe.linalg.factor.task import make_tile
from ntkpipe.linalg.factor.triangle import substitute, substitute_back
from ntkpipe.linalg.factor.workspace import FactorJob, Workspace, workspace
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.tasks.executor import Executor


@dataclass(frozen=True)
class CholeskyFactor:
    """The stored factor of `A + ridge I = L L^T`. A damaged or lost tile is recomputed from `A` when it is read.

    Args:
        job: the tiles and the matrix.
        executor: runs the tasks of computations with n columns.
        memory_bytes: memory for the data of all workers together.
    """

    job: FactorJob
    executor: Executor
    memory_bytes: int

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.job.tiles.identity.n

    @property
    def ridge(self) -> float:
        """The absolute ridge, which the factor includes."""
        return self.job.tiles.identity.ridge

    @property
    def dtype(self) -> str:
        """Precision of the factor, `float32` or `float64`."""
        return self.job.tiles.identity.dtype

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """The diagonal of `L` in float64."""
        rows = self.job.tiles.identity.grid.tile_rows
        with workspace(self.job, make_tile) as space:
            parts = [tile.diagonal().astype(np.float64) for tile in space.stream([(i, i) for i in range(rows)])]
        return np.concatenate(parts)

    def logdet(self) -> float:
        """Logarithm of the determinant of `L L^T`. `posterior.log_determinant` corrects that of a float32 factor."""
        return 2 * float(np.log(self.diagonal()).sum())

    def apply_inverse(self, b: np.ndarray) -> Float64[np.ndarray, "n k"]:
        """`(A + ridge I)^-1 b` for `b` `(n, k)` in the factor's precision, without refinement."""
        with self.opened() as space:
            return solve(space, b)

    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of `A + ridge I`, approximated from above to a few digits by Lanczos on the inverse."""
        return 1.0 / largest_eigenvalue(_Inverse(self), tolerance=1e-4)

    @contextmanager
    def opened(self) -> Iterator[Workspace]:
        """Context manager: the workspace of this process for the factor."""
        with workspace(self.job, make_tile) as space:
            yield space


def solve(space: Workspace, b: np.ndarray) -> Float64[np.ndarray, "n k"]:
    """`(L L^T)^-1 b` with float64 input and output. Columns are scaled, because float32 has a small range of exponents."""
    scale = np.abs(b).max(axis=0, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0)
    return backward(space, forward(space, b / scale)).astype(np.float64) * scale


def forward(space: Workspace, b: np.ndarray) -> np.ndarray:
    """`L^-1 b` in the factor's precision, for `b` `(n, k)`."""
    y = np.array(b.T, dtype=space.dtype, order="C")  # by rows: `linalg.products` says why
    forward_in_place(space, y)
    return np.ascontiguousarray(y.T)


def forward_in_place(space: Workspace, y: np.ndarray, first: int = 0) -> None:
    """Replace right-hand sides by `L^-1` times them.

    Args:
        space: workspace of the factor.
        y: `(k, rows)` in the factor's precision, with a right-hand side in each row. It begins at tile row `first`; the entries above are
            zero.
        first: first row of tiles.
    """
    grid = space.grid
    skipped = first * grid.edge
    order = [(i, k) for i in range(first, grid.tile_rows) for k in range(first, i + 1)]
    tiles = space.stream(order)
    for i, k in order:
        where = grid.tile(i, k)
        here = y[:, where.row_start - skipped : where.row_stop - skipped]
        if i == k:
            substitute(here, next(tiles))
        else:
            subtract_product(here, y[:, where.col_start - skipped : where.col_stop - skipped], next(tiles))


def backward(space: Workspace, y: np.ndarray) -> np.ndarray:
    """`L^-T y` for `y` `(n, k)` in the factor's precision."""
    grid = space.grid
    x = np.array(y.T, dtype=space.dtype, order="C")
    rows = grid.tile_rows
    order = [(i, j) for j in reversed(range(rows)) for i in reversed(range(j, rows))]
    tiles = space.stream(order)
    for i, j in order:
        where = grid.tile(i, j)
        here = x[:, where.col_start : where.col_stop]
        if i == j:
            substitute_back(here, next(tiles))
        else:
            subtract_product(here, x[:, where.row_start : where.row_stop], next(tiles), plain=True)
    return np.ascontiguousarray(x.T)


@dataclass(frozen=True)
class _Inverse:
    """The inverse of a factored matrix as a linear map."""

    factor: CholeskyFactor

    @property
    def n(self) -> int:
        return self.factor.n

    def matmul(self, x: np.ndarray) -> np.ndarray:
        return self.factor.apply_inverse(x)
