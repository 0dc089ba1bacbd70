"""The kernels of one data set: both blocks, every part under flips, and the errors of their entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from ntkpipe.dynamics.sampling import TestErrors, matrix_noise, sample_indices
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.extras import require
from ntkpipe.gram.plan import GramPlan
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator, rectangular_operator, tile_operator
from ntkpipe.planning.sample_rows import affordable_rows
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.close_pairs import close_pairs, close_test_pairs
from ntkpipe.sources.kernels import KernelSample, TestRows
from ntkpipe.sources.recomputation import ERROR_SAFETY
from ntkpipe.sources.source import KernelSource
from ntkpipe.storage.checksum import digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix


@dataclass(frozen=True)
class KernelBlocks:
    """The kernels of the points in use, which are the leading points of a data set.

    Args:
        parts: the kernel of the solve, and for variances under flips its odd part.
        n: number of rows of the training points.
        p: number of rows of the test points.
        tiles: plan of both blocks.
        copies: equal training points.
        rows_of_point: rows of the kernel per point: 1, or the number of outputs.
        images_per_row: number of images that training averages over per row: 2 with flips, otherwise 1.
        workers: number of processes that recompute rows.
        sample: default number of recomputed rows; None takes as many as their time allows.
        executor: computes products that a user asks for, such as `K @ v`.
        points: indices and targets of the test points, for predictions; None if they are unknown.
    """

    parts: tuple[KernelSource, ...]
    n: int
    p: int
    tiles: GramPlan
    copies: Copies
    images_per_row: int = 1
    rows_of_point: int = 1
    workers: int = 1
    sample: int | None = None
    executor: Executor = field(default_factory=SerialExecutor, compare=False)
    points: TestPoints | None = field(default=None, compare=False, repr=False)
    _known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def training_points(self) -> int:
        """Number of training points in use."""
        return self.n // self.rows_of_point

    @property
    def test_points(self) -> int:
        """Number of test points in use."""
        return self.p // self.rows_of_point

    @property
    def source(self) -> KernelSource:
        """The source of the kernel of the solve."""
        return self.parts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `train` and `test` accept."""
        kernels = ("gram",) if self.source.is_given else self.source.identity.kernels
        return _NETWORK if len(kernels) > 1 else kernels

    def train(self, name: str) -> BlockTrainKernel:
        """The train-train kernel.

        Args:
            name: `nngp`, `ntk` or `ntkgp` (the NTK as the covariance of a Gaussian process) for a network; `gram` for a
                function or a matrix.

        Raises:
            ConfigError: if there is no kernel of this name.
        """
        return BlockTrainKernel(self, name, self._source_of(name))

    def test(self, name: str) -> BlockTestKernel:
        """The test-train kernel; see `train`."""
        return BlockTestKernel(self, name, self._source_of(name))

    def leading(self, n: int) -> KernelBlocks:
        """The same kernels with the first n training points only."""
        return replace(self, n=n, copies=Copies(self.copies.first[:n]), _known={})

    def sample_size(self, rows: int | None) -> int:
        """Number of recomputed rows: as configured, or as many as their time allows."""
        asked = self.sample if rows is None else rows
        return affordable_rows(self.tiles, self.n) if asked is None else asked

    def exact_rows(
        self, block: Block, executor: Executor, rows: int | None = None, part: int = 0
    ) -> tuple[np.ndarray, dict[Kernel, np.ndarray]]:
        """A sample of row numbers (k,), and these rows (k, n) of every kernel in float64. They are computed once."""
        count = self.sample_size(rows)
        key = ("rows", block, count, part)
        if key not in self._known:
            indices = sample_indices(self.n if block == "train" else self.p, count)
            made = self.parts[part].exact_rows(block, indices, self.n, executor, self.workers)
            self._known[key] = indices, made
        return self._known[key]

    def exact_columns(
        self, executor: Executor, rows: int | None = None, part: int = 0
    ) -> dict[Kernel, np.ndarray] | None:
        """A sample of columns (p, k) of every test-train kernel in float64; None if the stored ones are exact."""
        count = self.sample_size(rows)
        key = ("columns", count, part)
        if key not in self._known:
            indices = sample_indices(self.n, count)
            self._known[key] = self.parts[part].exact_columns(self.p, indices, executor, self.workers)
        return self._known[key]

    def relative_error(self, kernel: Kernel, executor: Executor, rows: int | None = None, part: int = 0) -> float:
        """Largest error of float64 entries in units of `sqrt(k(x, x) k(x', x'))`.

        It is measured on a few pairs, which include the closest pairs of the sampled rows.
        """
        key = ("errors", self.sample_size(rows), part)
        if key not in self._known:
            source = self.parts[part]
            first = second = np.zeros(0, np.int64)
            if not source.is_given:
                indices, exact = self.exact_rows("train", executor, rows, part)
                first, second = close_pairs(source, indices, exact, self.n, self.tiles)
            self._known[key] = source.entry_errors(first, second, self.n, executor)
        found = self._known[key]
        return 0.0 if found is None else found[kernel]

    def series_error(self, kernel: Kernel, executor: Executor, rows: int | None = None, part: int = 0) -> float:
        """Truncation error of series in the test-train entries, in the units of `relative_error`."""
        key = ("series", self.sample_size(rows), part)
        if key not in self._known:
            source, exact = self.parts[part], self.exact_columns(executor, rows, part)
            if exact is None:
                self._known[key] = None
            else:
                sampled = sample_indices(self.n, self.sample_size(rows))
                test, train = close_test_pairs(source, exact, sampled, self.n, self.p)
                self._known[key] = source.series_errors(test, train, self.n, self.p, executor)
        found = self._known[key]
        return 0.0 if found is None else found[kernel]

    def _source_of(self, name: str) -> Kernel:
        """The kernel whose tiles are read for a name."""
        if name not in self.names:
            raise ConfigError(f"kernel {name!r} is not one of {', '.join(self.names)}")
        return "ntk" if name == "ntkgp" else cast("Kernel", name)


_NETWORK = ("ntk", "nngp", "ntkgp")


@dataclass(frozen=True)
class _BlockKernel:
    """Common part of both blocks; see `TrainKernel`.

    Args:
        blocks: that contain this block.
        name: as the user gave it.
        source: the kernel whose tiles are read.
        part: index into `blocks.parts`.
    """

    blocks: KernelBlocks
    name: str
    source: Kernel
    part: int = 0

    @property
    def _from(self) -> KernelSource:
        return self.blocks.parts[self.part]

    @property
    def identity(self) -> str:
        """See `TrainKernel`."""
        return self._from.identity.key

    @property
    def is_given(self) -> bool:
        """See `TrainKernel`."""
        return self._from.is_given

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the stored entries."""
        return self._matrix().dtype

    def companion(self, source: Kernel) -> Any:
        """See `TrainKernel`."""
        return replace(self, name=source, source=source)

    def parts(self) -> Any:
        """See `TrainKernel`."""
        return tuple(replace(self, part=k) for k in range(len(self.blocks.parts)))

    def _matrix(self) -> TileMatrix:
        raise NotImplementedError

    def __matmul__(self, v: np.ndarray) -> np.ndarray:
        """The kernel times one or a few vectors in float64; one pass over the tiles."""
        v = np.asarray(v, dtype=np.float64)
        with self._operator() as operator:
            made = operator.matmul(v[:, None] if v.ndim == 1 else v)
        return made[:, 0] if v.ndim == 1 else made

    def rows(self, indices: Any) -> np.ndarray:
        """Stored rows, (k, n) float64; one row (n,) for a single number."""
        with self._operator() as operator:
            made = operator.rows(np.atleast_1d(np.asarray(indices, dtype=np.int64)))
        return made[0] if np.ndim(indices) == 0 else made

    def to_numpy(self) -> np.ndarray:
        """The whole block as one array, in the dtype of its tiles."""
        matrix = self._matrix()
        out = np.empty((matrix.grid.rows, matrix.grid.cols), matrix.dtype)
        for tile in matrix.grid:
            part = matrix.read(tile.i, tile.j)
            out[tile.row_start : tile.row_stop, tile.col_start : tile.col_stop] = part
            if matrix.grid.symmetric and tile.i != tile.j:
                out[tile.col_start : tile.col_stop, tile.row_start : tile.row_stop] = part.T
        return out

    def to_xarray(self) -> Any:
        """The whole block as an `xarray.DataArray` with the dimension names of the stored arrays."""
        require("xarray", "to_xarray", "to_numpy needs nothing more")
        import xarray

        rows = "train_row" if self._matrix().grid.symmetric else "test_image"
        return xarray.DataArray(self.to_numpy(), dims=(rows, "train_image"), name=self.name)

    def _operator(self) -> Any:
        matrix = self._matrix()
        make = tile_operator if matrix.grid.symmetric else rectangular_operator
        return make(matrix, self.blocks.executor, products="float64")


@dataclass(frozen=True)
class BlockTrainKernel(_BlockKernel):
    """The symmetric train-train kernel (n, n), a `TrainKernel`: `K @ v`, `K.rows(i)`, `K.diagonal()`, `K.to_numpy()`."""

    @property
    def n(self) -> int:
        """See `TrainKernel`."""
        return self.blocks.n

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    @property
    def key(self) -> str:
        """See `TrainKernel`."""
        return digest({"gram": self.identity, "kernel": self.source, "rows": self.n})

    @property
    def images_per_row(self) -> int:
        """See `TrainKernel`."""
        return self.blocks.images_per_row

    @property
    def copies(self) -> Copies:
        """See `TrainKernel`."""
        return self.blocks.copies

    @property
    def precision(self) -> str:
        """See `TrainKernel`."""
        return self._from.identity.dtype

    @property
    def matrix(self) -> TileMatrix:
        """See `TrainKernel`."""
        return self._matrix()

    def _matrix(self) -> TileMatrix:
        return self._from.matrix(self.source, "train", self.n, self.n)

    @property
    def largest_test_diagonal(self) -> float:
        """See `TrainKernel`."""
        block, rows = ("test", self.blocks.p) if self.blocks.p else ("train", self.n)
        return float(self._from.diagonal(self.source, block, rows).max())

    def diagonal(self, *, plain: bool = False) -> np.ndarray:
        """See `TrainKernel`."""
        return self._from.diagonal(self.source, "train", self.n, plain=plain)

    def test_rows(self, most: int, executor: Executor) -> TestRows | None:
        """See `TrainKernel`. If tiles are not stored, rows are computed, as many as their time allows."""
        p, test = self.blocks.p, BlockTestKernel(self.blocks, self.name, self.source, self.part)
        if not p:
            return None
        if self.blocks.tiles.stored:
            indices = np.unique(np.linspace(0, p - 1, min(p, most)).round().astype(np.int64))
            try:
                with rectangular_operator(test.matrix, executor, products="float64") as operator:
                    rows = operator.rows(indices)
            except IncompleteError:  # the test tiles are not computed yet
                return None
        else:
            indices, made = self.blocks.exact_rows(
                "test", executor, min(most, self.blocks.sample_size(None)), self.part
            )
            rows = made[self.source]
        return TestRows(rows, test.diagonal()[indices])

    def sample_size(self, rows: int | None) -> int:
        """See `TrainKernel`."""
        return self.blocks.sample_size(rows)

    def measure(self, operator: Operator, executor: Executor, rows: int | None) -> KernelSample:
        """See `TrainKernel`."""
        indices, exact = self.blocks.exact_rows("train", executor, rows, self.part)
        stored = operator.rows(indices)
        error = self.blocks.relative_error(self.source, executor, rows, self.part)
        systematic = error * float(self.diagonal().sum())
        noise = matrix_noise(stored - exact[self.source], self.n)
        noise = self._from.rounding_of_given(stored, self.n) or noise
        # `error` is the largest error of a few pairs times a safety factor. Estimates need the typical size.
        rounding = 0.0 if self._from.has_series else error / ERROR_SAFETY
        return KernelSample(indices, stored, exact[self.source], noise + systematic, systematic, rounding)

    def leading(self, n: int) -> BlockTrainKernel:
        """See `TrainKernel`."""
        return replace(self, blocks=self.blocks.leading(n))


@dataclass(frozen=True)
class BlockTestKernel(_BlockKernel):
    """The test-train kernel (p, n), a `TestKernel`, with test points in stored order."""

    __test__ = False  # not a test class, despite its name

    @property
    def shape(self) -> tuple[int, int]:
        """(p, n)."""
        return self.blocks.p, self.blocks.n

    @property
    def points(self) -> TestPoints | None:
        """See `TestKernel`."""
        return self.blocks.points

    @property
    def matrix(self) -> TileMatrix:
        """See `TestKernel`."""
        return self._matrix()

    def _matrix(self) -> TileMatrix:
        return self._from.matrix(self.source, "test", self.blocks.p, self.blocks.n)

    @property
    def estimates_diagonal(self) -> bool:
        """See `TestKernel`."""
        return self._from.estimates_test_diagonal

    def diagonal(self) -> np.ndarray:
        """See `TestKernel`."""
        return self._from.diagonal(self.source, "test", self.blocks.p)

    def sampled(self, rows: int | None) -> np.ndarray:
        """See `TestKernel`."""
        return sample_indices(self.blocks.n, self.blocks.sample_size(rows))

    def measure(self, stored: np.ndarray | None, systematic: float, executor: Executor, rows: int | None) -> TestErrors:
        """See `TestKernel`."""
        exact = None if stored is None else self.blocks.exact_columns(executor, rows, self.part)
        shown = np.zeros((self.blocks.p, 1)) if stored is None else stored
        difference = shown - (shown if exact is None else exact[self.source])
        trace = float(self._from.diagonal(self.source, "train", self.blocks.n).sum())
        left = self.blocks.series_error(self.source, executor, rows, self.part)
        of_row = max(systematic / trace, left) * math.sqrt(trace) if trace > 0 else 0.0
        return TestErrors.of_columns(difference, self.diagonal(), self.blocks.n, of_row)

    def own(self, executor: Executor) -> np.ndarray:
        """See `TestKernel`."""
        return self._from.test_gram(self.source, self.blocks.p, executor)

    def dominance(self, trace: float, smallest: float) -> float:
        """See `TestKernel`."""
        return self._from.dominance(trace, smallest)
