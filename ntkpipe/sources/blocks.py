"""The kernels of one data set in use: both blocks, every part, and what is known of their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from ntkpipe.dynamics.sampling import TestErrors, matrix_noise, sample_indices
from ntkpipe.errors import ConfigError
from ntkpipe.gram.plan import GramPlan
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator, rectangular_operator, tile_operator
from ntkpipe.planning.sample_rows import FLOAT64_COST, SAMPLE_SHARE, affordable_rows
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.sources.recomputation import ERROR_SAFETY
from ntkpipe.sources.source import KernelSource
from ntkpipe.storage.checksum import digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix

# Pairs whose rounding is measured, rows and columns.
_EVALUATED = (8, 64)


@dataclass(frozen=True)
class KernelBlocks:
    """The kernels among the points in use, the leading ones of a data set.

    Args:
        parts: the kernel that is solved with, and for variances under flips its odd part.
        n: training points.
        p: test points.
        tiles: plan of both blocks.
        copies: which of the training points equal which.
        rows_of_point: of the kernel: 1, or one for each output; n and p are numbers of rows.
        images_per_row: images that training averages over for each row: 2 with flips, else 1.
        workers: processes that share the work of recomputing rows.
        sample: rows that are recomputed, unless a caller says otherwise; None is as many as their time allows.
        executor: where what people ask for (`K @ v`) is computed.
        points: what is known of the test points besides the kernel, for predictions; None if nothing.
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
        """In use, however many rows each has."""
        return self.n // self.rows_of_point

    @property
    def test_points(self) -> int:
        """In use."""
        return self.p // self.rows_of_point

    @property
    def source(self) -> KernelSource:
        """Of the kernel that is solved with."""
        return self.parts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What `train` and `test` may be asked for."""
        kernels = ("gram",) if self.source.is_given else self.source.identity.kernels
        return _NETWORK if len(kernels) > 1 else kernels

    def train(self, name: str) -> BlockTrainKernel:
        """The kernel among the training points.

        Args:
            name: `nngp`, `ntk` or `ntkgp` (the NTK as the covariance of a Gaussian process) of a network; `gram` of a function or a
                matrix.

        Raises:
            ConfigError: for another name.
        """
        return BlockTrainKernel(self, name, self._source_of(name))

    def test(self, name: str) -> BlockTestKernel:
        """The kernel between the test and the training points; see `train`."""
        return BlockTestKernel(self, name, self._source_of(name))

    def leading(self, n: int) -> KernelBlocks:
        """Of the first n training points."""
        return replace(self, n=n, copies=Copies(self.copies.first[:n]), _known={})

    def sample_size(self, rows: int | None) -> int:
        """Rows that are recomputed: as asked for, or as many as their time allows."""
        asked = self.sample if rows is None else rows
        return affordable_rows(self.tiles, self.n) if asked is None else asked

    def exact_rows(
        self, block: Block, executor: Executor, rows: int | None = None, part: int = 0
    ) -> tuple[np.ndarray, dict[Kernel, np.ndarray]]:
        """A sample of rows, and these of every kernel in float64, once in a process: (k,), and (k, n) each."""
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
        """Every kernel between the test points and a sample of training points, (p, k) in float64; None if stored ones are exact."""
        count = self.sample_size(rows)
        key = ("columns", count, part)
        if key not in self._known:
            indices = sample_indices(self.n, count)
            self._known[key] = self.parts[part].exact_columns(self.p, indices, executor, self.workers)
        return self._known[key]

    def relative_error(self, kernel: Kernel, executor: Executor, rows: int | None = None, part: int = 0) -> float:
        """What float64 entries are themselves off by at most, in units of `sqrt(k(x, x) k(x', x'))`.

        Measured on a few pairs, the closest of the sampled rows among them.
        """
        key = ("errors", self.sample_size(rows), part)
        if key not in self._known:
            source = self.parts[part]
            nothing = np.zeros(0, np.int64)
            first, second = (nothing, nothing) if source.is_given else self._close_pairs(executor, rows, part)
            self._known[key] = source.entry_errors(first, second, self.n, executor)
        found = self._known[key]
        return 0.0 if found is None else found[kernel]

    def series_error(self, kernel: Kernel, executor: Executor, rows: int | None = None, part: int = 0) -> float:
        """What the end of expansions leaves of the entries with test points, in the units of `relative_error`."""
        key = ("series", self.sample_size(rows), part)
        if key not in self._known:
            source, exact = self.parts[part], self.exact_columns(executor, rows, part)
            if exact is None:
                self._known[key] = None
            else:
                test, train = self._close_test_pairs(exact, rows, part)
                self._known[key] = source.series_errors(test, train, self.n, self.p, executor)
        found = self._known[key]
        return 0.0 if found is None else found[kernel]

    def _close_test_pairs(
        self, exact: dict[Kernel, np.ndarray], rows: int | None, part: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Test points that are closest to the sampled training points, these, and others drawn at random."""
        source, sampled = self.parts[part], sample_indices(self.n, self.sample_size(rows))
        kernel: Kernel = "nngp" if "nngp" in exact else next(iter(exact))
        diagonals = source.diagonal(kernel, "test", self.p), source.diagonal(kernel, "train", self.n)
        left, right = (np.sqrt(np.maximum(diagonal, np.finfo(np.float64).tiny)) for diagonal in diagonals)
        cosine = exact[kernel] / np.outer(left, right[sampled])
        chosen = np.sort(np.argsort(-cosine.max(axis=1), kind="stable")[: _EVALUATED[0]])
        random = sample_indices(self.n, _EVALUATED[1] - len(chosen), seed=2)
        return chosen, np.unique([*sampled[cosine[chosen].argmax(axis=1)], *random])

    def _close_pairs(self, executor: Executor, rows: int | None, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the sample with the closest other points, and these points with some drawn at random."""
        indices, exact = self.exact_rows("train", executor, rows, part)
        kernel: Kernel = "nngp" if "nngp" in exact else next(iter(exact))
        diagonal = np.sqrt(np.maximum(self.parts[part].diagonal(kernel, "train", self.n), np.finfo(np.float64).tiny))
        cosine = exact[kernel] / np.outer(diagonal[indices], diagonal)
        cosine[np.arange(len(indices)), indices] = -1.0
        closest = cosine.max(axis=1)
        chosen = np.sort(np.argsort(-closest, kind="stable")[: _EVALUATED[0]])
        count = _EVALUATED[1]
        if self.tiles.cost.input_entries > 1:  # pairs take long: twice or three times so many are evaluated
            affordable = SAMPLE_SHARE * self.tiles.pairs / (len(chosen) * FLOAT64_COST)
            count = int(np.clip(affordable, 2 * len(chosen), count))
        random = sample_indices(self.n, count - len(chosen), seed=2)
        return indices[chosen], np.unique([*cosine[chosen].argmax(axis=1), *random])

    def _source_of(self, name: str) -> Kernel:
        if name not in self.names:
            raise ConfigError(f"kernel {name!r} is not one of {', '.join(self.names)}")
        return "ntk" if name == "ntkgp" else cast("Kernel", name)


_NETWORK = ("ntk", "nngp", "ntkgp")


@dataclass(frozen=True)
class _BlockKernel:
    """What both blocks share; see `TrainKernel`.

    Args:
        blocks: that it is one of.
        name: as it was asked for.
        source: whose tiles are read.
        part: of `blocks.parts`.
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
        """Of the entries."""
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
        """The kernel times a vector or a few, float64: one pass over the tiles."""
        v = np.asarray(v, dtype=np.float64)
        with self._operator() as operator:
            made = operator.matmul(v[:, None] if v.ndim == 1 else v)
        return made[:, 0] if v.ndim == 1 else made

    def rows(self, indices: Any) -> np.ndarray:
        """Rows as they are stored, (k, n) float64; one row (n,) for one number."""
        with self._operator() as operator:
            made = operator.rows(np.atleast_1d(np.asarray(indices, dtype=np.int64)))
        return made[0] if np.ndim(indices) == 0 else made

    def to_numpy(self) -> np.ndarray:
        """The whole block in memory, in its own dtype."""
        matrix = self._matrix()
        out = np.empty((matrix.grid.rows, matrix.grid.cols), matrix.dtype)
        for tile in matrix.grid:
            part = matrix.read(tile.i, tile.j)
            out[tile.row_start : tile.row_stop, tile.col_start : tile.col_stop] = part
            if matrix.grid.symmetric and tile.i != tile.j:
                out[tile.col_start : tile.col_stop, tile.row_start : tile.row_stop] = part.T
        return out

    def to_xarray(self) -> Any:
        """The whole block as an `xarray.DataArray` with the dimensions of the stored arrays."""
        import xarray

        rows = "train_row" if self._matrix().grid.symmetric else "test_image"
        return xarray.DataArray(self.to_numpy(), dims=(rows, "train_image"), name=self.name)

    def _operator(self) -> Any:
        matrix = self._matrix()
        make = tile_operator if matrix.grid.symmetric else rectangular_operator
        return make(matrix, self.blocks.executor, products="float64")


@dataclass(frozen=True)
class BlockTrainKernel(_BlockKernel):
    """The symmetric kernel among the training points, a `TrainKernel`: `K @ v`, `K.rows(i)`, `K.diagonal()`, `K.to_numpy()`."""

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
        # The largest of a few pairs, with the safety that bounds have; an estimate takes it for the usual size.
        rounding = 0.0 if self._from.has_series else error / ERROR_SAFETY
        return KernelSample(indices, stored, exact[self.source], noise + systematic, systematic, rounding)

    def leading(self, n: int) -> BlockTrainKernel:
        """See `TrainKernel`."""
        return replace(self, blocks=self.blocks.leading(n))


@dataclass(frozen=True)
class BlockTestKernel(_BlockKernel):
    """The kernel between the test and the training points, a `TestKernel`; one row per test point, in stored order."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

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

    def measure(self, stored: np.ndarray, systematic: float, executor: Executor, rows: int | None) -> TestErrors:
        """See `TestKernel`."""
        exact = self.blocks.exact_columns(executor, rows, self.part)
        difference = stored - (stored if exact is None else exact[self.source])
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
