"""What a solver sees of a kernel, and what a prediction multiplies with: nothing of where the entries come from.

Of a network trained on images and their flips the tiles hold the even part of the kernel; variances need the odd part besides,
which is another kernel of the same shape (`parts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ntkpipe.dynamics.sampling import RowSample, TestErrors
from ntkpipe.dynamics.variance import KernelRows
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator
from ntkpipe.predictions.points import TestPoints
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.matrix import TileMatrix


@dataclass(frozen=True)
class KernelSample:
    """Some rows of a train-train kernel, as they are stored and recomputed in float64, and what they say of all entries.

    Args:
        indices: (k,) row numbers, distinct.
        stored: (k, n) float64.
        exact: (k, n) float64; of a given matrix as given.
        noise: bound on the spectral norm of all errors of the stored kernel: an eigenvalue is known no better.
        systematic: bound on the part of it that does not average out; see `RowSample`.
        rounding: see `RowSample`.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray
    noise: float
    systematic: float
    rounding: float = 0.0

    def plain(self) -> RowSample:
        """The rows themselves, for weights on the training points."""
        return RowSample(self.indices, self.stored, self.exact, self.systematic, self.rounding)

    def in_basis(self, basis: np.ndarray) -> RowSample:
        """The rows times an orthonormal basis (m, n)."""
        stored, exact = self.stored @ basis.T, self.exact @ basis.T
        return RowSample(self.indices, stored, exact, self.systematic, self.rounding)

    def rows(self) -> KernelRows:
        """The rows as variances take them."""
        return KernelRows(self.indices, self.stored, self.exact, self.systematic)


class TrainKernel(Protocol):
    """The symmetric kernel among n training points."""

    @property
    def name(self) -> str:
        """As it was asked for: `nngp`, `ntk`, `ntkgp` (the NTK as the covariance of a Gaussian process) or `gram` (given)."""
        ...

    @property
    def source(self) -> Kernel:
        """Whose tiles are read: `nngp`, `ntk` or `gram`."""
        ...

    @property
    def identity(self) -> str:
        """Digest of what determines the entries of the whole kernel, but for `source`."""
        ...

    @property
    def key(self) -> str:
        """Digest of `identity`, `source` and the number of rows in use: factors are kept under it."""
        ...

    @property
    def n(self) -> int:
        """Training points in use, the leading rows."""
        ...

    @property
    def images_per_row(self) -> int:
        """Images that training averages over for each row: 2 with flips, else 1."""
        ...

    @property
    def copies(self) -> Copies:
        """Which of the training points equal which."""
        ...

    @property
    def matrix(self) -> TileMatrix:
        """(n, n), symmetric: stored, recomputed or given tiles."""
        ...

    @property
    def precision(self) -> str:
        """Of the arithmetic that the entries come from, `float32` or `float64`."""
        ...

    @property
    def is_given(self) -> bool:
        """Whether the user computed it: nothing can be recomputed, or stored in another precision."""
        ...

    @property
    def largest_test_diagonal(self) -> float:
        """The largest `k(x, x)` of the test points, which error bounds are for; of the training points where there are none."""
        ...

    def diagonal(self, *, plain: bool = False) -> np.ndarray:
        """`k(x, x)`, (n,) float64; `plain` is that of the kernel itself where the tiles hold its even or odd part."""
        ...

    def sample_size(self, rows: int | None) -> int:
        """Rows that are recomputed: as asked for, or as many as their time allows."""
        ...

    def measure(self, operator: Operator, executor: Executor, rows: int | None) -> KernelSample:
        """Compare sampled rows of the stored kernel with the exact ones.

        Args:
            operator: the stored kernel.
            executor: where entries are recomputed.
            rows: see `sample_size`.
        """
        ...

    def parts(self) -> tuple[TrainKernel, ...]:
        """The kernel, and under flips its odd part."""
        ...

    def companion(self, source: Kernel) -> TrainKernel:
        """The other kernel of the same points and the same part."""
        ...

    def leading(self, n: int) -> TrainKernel:
        """The kernel among the first n points."""
        ...


class TestKernel(Protocol):
    """The kernel between p test points and n training points; named and divided as `TrainKernel` is."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    @property
    def name(self) -> str:
        """See `TrainKernel.name`."""
        ...

    @property
    def source(self) -> Kernel:
        """See `TrainKernel.source`."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(p, n)."""
        ...

    @property
    def matrix(self) -> TileMatrix:
        """(p, n)."""
        ...

    @property
    def points(self) -> TestPoints | None:
        """What is known of the test points besides the kernel; None if nothing."""
        ...

    @property
    def estimates_diagonal(self) -> bool:
        """Whether `diagonal` was estimated because nobody gave it: error bounds are estimates then."""
        ...

    def diagonal(self) -> np.ndarray:
        """`k(x, x)` of the test points, (p,) float64."""
        ...

    def sampled(self, rows: int | None) -> np.ndarray:
        """Training points whose entries with every test point are recomputed; see `TrainKernel.sample_size`."""
        ...

    def measure(self, stored: np.ndarray, systematic: float, executor: Executor, rows: int | None) -> TestErrors:
        """Compare sampled columns of the stored kernel with the exact ones.

        Args:
            stored: (p, k) the columns `sampled(rows)` as they are stored.
            systematic: of the train-train kernel, see `KernelSample`.
            executor: where entries are recomputed.
            rows: see `TrainKernel.sample_size`.
        """
        ...

    def own(self, executor: Executor) -> np.ndarray:
        """The kernel among the test points, (p, p) float64, which no tile stores: covariances alone need it.

        Raises:
            ConfigError: if it can be neither computed nor read.
        """
        ...

    def dominance(self, trace: float, smallest: float) -> float:
        """A number with `K <= dominance T` as matrices, K the NNGP and T the NTK of the same points.

        Args:
            trace: of K.
            smallest: eigenvalue of T; 0 if unknown.
        """
        ...

    def parts(self) -> tuple[TestKernel, ...]:
        """See `TrainKernel.parts`."""
        ...

    def companion(self, source: Kernel) -> TestKernel:
        """See `TrainKernel.companion`."""
        ...
