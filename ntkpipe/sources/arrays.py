"""A kernel matrix in memory, for a solver."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.errors import DataError
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator
from ntkpipe.planning.sample_rows import SAMPLE_ROWS
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.storage.checksum import digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.matrix import InMemoryTiles

_EDGE = 2048
_HALF_UNIT = 2.0**-25


@dataclass(frozen=True, eq=False)
class ArrayKernel:
    """A `TrainKernel` over an (n, n) array, float32 or float64.

    Args:
        array: (n, n), symmetric; the lower triangle is used.
        edge: rows of a tile.
        test_diagonal: the largest `k(x, x)` of the test points, for error bounds; None takes the largest of the array.

    Raises:
        DataError: if the array is not square, not float32 or float64, or not finite.
    """

    array: np.ndarray = field(repr=False)
    edge: int = _EDGE
    test_diagonal: float | None = None

    name = "gram"
    source: Kernel = "gram"
    images_per_row = 1
    is_given = True

    def __post_init__(self) -> None:
        shape = np.shape(self.array)
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
            raise DataError(f"the kernel has shape {shape}: give a square array")
        if self.array.dtype not in (np.float32, np.float64):
            raise DataError(f"the kernel holds {self.array.dtype}: give float32 or float64")
        if not np.isfinite(self.array).all():
            raise DataError("the kernel holds NaN or infinite values: clean them first")

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.array).tobytes()).hexdigest()

    @property
    def identity(self) -> str:
        """See `TrainKernel`."""
        return self._hash

    @property
    def key(self) -> str:
        """See `TrainKernel`."""
        return digest({"gram": self.identity, "kernel": self.source, "rows": self.n})

    @property
    def n(self) -> int:
        """See `TrainKernel`."""
        return len(self.array)

    @property
    def copies(self) -> Copies:
        """See `TrainKernel`; equal points of a given matrix are unknown."""
        return Copies.of((), self.n)

    @property
    def matrix(self) -> InMemoryTiles:
        """See `TrainKernel`."""
        return InMemoryTiles(self.array, TileGrid(self.n, self.n, min(self.edge, self.n), symmetric=True))

    @property
    def precision(self) -> str:
        """See `TrainKernel`."""
        return str(self.array.dtype)

    @property
    def largest_test_diagonal(self) -> float:
        """See `TrainKernel`."""
        return float(self.diagonal().max()) if self.test_diagonal is None else self.test_diagonal

    def diagonal(self, *, plain: bool = False) -> np.ndarray:
        """See `TrainKernel`."""
        del plain
        return self.array.diagonal().astype(np.float64)

    def test_rows(self, most: int, executor: Executor) -> None:
        """None, because the test points are unknown."""
        del most, executor

    def sample_size(self, rows: int | None) -> int:
        """See `TrainKernel`."""
        return SAMPLE_ROWS if rows is None else rows

    def measure(self, operator: Operator, executor: Executor, rows: int | None) -> KernelSample:
        """See `TrainKernel`; the values of float32 entries before rounding are unknown."""
        del executor
        indices = sample_indices(self.n, self.sample_size(rows))
        stored = operator.rows(indices)
        rounded = self.array.dtype == np.float32
        noise = 3.0 * math.sqrt(self.n * np.mean(stored**2)) * _HALF_UNIT if rounded else 0.0
        return KernelSample(indices, stored, stored, noise, 0.0)

    def parts(self) -> tuple[ArrayKernel, ...]:
        """See `TrainKernel`."""
        return (self,)

    def companion(self, source: Kernel) -> ArrayKernel:
        """See `TrainKernel`."""
        raise DataError(f"a given matrix is called gram, and there is no {source}: leave the name out")

    def leading(self, n: int) -> ArrayKernel:
        """See `TrainKernel`."""
        return ArrayKernel(self.array[:n, :n], self.edge, self.test_diagonal)
