"""The protocols of kernels that solvers and predictions use. They hide the source of the entries.

For a network trained on images and their flips, the tiles contain the even part of the kernel. Variances also need the odd
part, which is another kernel of the same shape (`parts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ntkpipe.dynamics.sampling import RowSample, TestErrors
from ntkpipe.dynamics.variance import KernelRows
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.rounded_basis import along
from ntkpipe.predictions.points import TestPoints
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.matrix import TileMatrix


@dataclass(frozen=True)
class KernelSample:
    """Sampled rows of a train-train kernel, stored and recomputed, and the errors of all entries that follow from them.

    Args:
        indices: (k,) distinct row numbers.
        stored: (k, n) float64 stored rows.
        exact: (k, n) float64 recomputed rows; for a given matrix, the given rows.
        noise: bound on the spectral norm of the errors of the stored kernel, and so on the error of its eigenvalues.
        systematic: bound on the part of these errors that does not average out; see `RowSample`.
        rounding: see `RowSample`.
    """

    indices: np.ndarray
    stored: np.ndarray
    exact: np.ndarray
    noise: float
    systematic: float
    rounding: float = 0.0

    def plain(self) -> RowSample:
        """The sample for weights on the training points."""
        return RowSample(self.indices, self.stored, self.exact, self.systematic, self.rounding)

    def in_basis(self, basis: np.ndarray) -> RowSample:
        """The sample for weights in an orthonormal basis (m, n)."""
        stored, exact = along(self.stored, basis), along(self.exact, basis)
        return RowSample(self.indices, stored, exact, self.systematic, self.rounding)

    def rows(self) -> KernelRows:
        """The sample for variances."""
        return KernelRows(self.indices, self.stored, self.exact, self.systematic)


@dataclass(frozen=True)
class TestRows:
    """Sampled rows of a test-train kernel.

    Args:
        rows: (p, n) float64.
        diagonal: (p,) float64 `k(x, x)` of these test points.
    """

    __test__ = False  # not a test class, despite its name

    rows: np.ndarray
    diagonal: np.ndarray


class TrainKernel(Protocol):
    """The symmetric kernel (n, n) of n training points."""

    @property
    def name(self) -> str:
        """The name that the user gave: `nngp`, `ntk`, `ntkgp` (the NTK as the covariance of a Gaussian process) or `gram`."""
        ...

    @property
    def source(self) -> Kernel:
        """The kernel whose tiles are read: `nngp`, `ntk` or `gram`."""
        ...

    @property
    def identity(self) -> str:
        """Digest of everything except `source` that determines the entries of the kernel of all points."""
        ...

    @property
    def key(self) -> str:
        """Digest of `identity`, `source` and the number of rows in use. Factors are stored under this key."""
        ...

    @property
    def n(self) -> int:
        """Number of training points in use, which are the leading rows."""
        ...

    @property
    def images_per_row(self) -> int:
        """Number of images that training averages over per row: 2 with flips, otherwise 1."""
        ...

    @property
    def copies(self) -> Copies:
        """The equal training points."""
        ...

    @property
    def matrix(self) -> TileMatrix:
        """The symmetric matrix (n, n), with stored, recomputed or given tiles."""
        ...

    @property
    def precision(self) -> str:
        """The precision in which the entries were computed, `float32` or `float64`."""
        ...

    @property
    def is_given(self) -> bool:
        """Whether the user computed the kernel, so that entries cannot be recomputed or stored in another precision."""
        ...

    @property
    def largest_test_diagonal(self) -> float:
        """The largest `k(x, x)` of the test points, for error bounds; of the training points if there are no test points."""
        ...

    def diagonal(self, *, plain: bool = False) -> np.ndarray:
        """`k(x, x)` of the training points, (n,) float64.

        Args:
            plain: whether to return the diagonal of the full kernel if the tiles contain its even or odd part.
        """
        ...

    def test_rows(self, most: int, executor: Executor) -> TestRows | None:
        """Rows of some evenly spaced test points, with which a solver checks whether predictions have converged.

        Args:
            most: largest number of test points.
            executor: reads or computes the rows.

        Returns:
            The rows; None if no test rows are available.
        """
        ...

    def sample_size(self, rows: int | None) -> int:
        """Number of recomputed rows: `rows`, or for None as many as their time allows."""
        ...

    def measure(self, operator: Operator, executor: Executor, rows: int | None) -> KernelSample:
        """Compare sampled rows of the stored kernel with the exact ones.

        Args:
            operator: of the stored kernel.
            executor: recomputes entries.
            rows: see `sample_size`.
        """
        ...

    def parts(self) -> tuple[TrainKernel, ...]:
        """The kernel, and its odd part if it is symmetrised under flips."""
        ...

    def companion(self, source: Kernel) -> TrainKernel:
        """Another kernel (`nngp` or `ntk`) of the same points and the same part."""
        ...

    def leading(self, n: int) -> TrainKernel:
        """The kernel of the first n points."""
        ...


class TestKernel(Protocol):
    """The kernel (p, n) between p test points and n training points. Its names and parts are those of `TrainKernel`."""

    __test__ = False  # not a test class, despite its name

    @property
    def name(self) -> str:
        """See `TrainKernel.name`."""
        ...

    @property
    def source(self) -> Kernel:
        """See `TrainKernel.source`."""
        ...

    @property
    def identity(self) -> str:
        """Digest of everything except `source` that determines the entries, including the test points."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (p, n)."""
        ...

    @property
    def matrix(self) -> TileMatrix:
        """The matrix (p, n)."""
        ...

    @property
    def points(self) -> TestPoints | None:
        """Indices and targets of the test points; None if they are unknown."""
        ...

    @property
    def estimates_diagonal(self) -> bool:
        """Whether `diagonal` is estimated, because it was not given. Error bounds are estimates then."""
        ...

    def diagonal(self) -> np.ndarray:
        """`k(x, x)` of the test points, (p,) float64."""
        ...

    def sampled(self, rows: int | None) -> np.ndarray:
        """Indices of the training points whose columns are recomputed; see `TrainKernel.sample_size`."""
        ...

    def measure(self, stored: np.ndarray | None, systematic: float, executor: Executor, rows: int | None) -> TestErrors:
        """Compare sampled columns of the stored kernel with the exact ones.

        Args:
            stored: (p, k) stored columns `sampled(rows)`; None for recomputed entries, which have only systematic errors.
            systematic: of the train-train kernel, see `KernelSample`.
            executor: recomputes entries.
            rows: see `TrainKernel.sample_size`.
        """
        ...

    def own(self, executor: Executor) -> np.ndarray:
        """The kernel of the test points with each other, (p, p) float64. It is not stored; covariances need it.

        Raises:
            ConfigError: if it can neither be computed nor read.
        """
        ...

    def dominance(self, trace: float, smallest: float) -> float:
        """A number c such that `c T - K` is positive semidefinite, for the NNGP K and the NTK T of the same points.

        Args:
            trace: of K.
            smallest: smallest eigenvalue of T; 0 if it is unknown.
        """
        ...

    def parts(self) -> tuple[TestKernel, ...]:
        """See `TrainKernel.parts`."""
        ...

    def companion(self, source: Kernel) -> TestKernel:
        """See `TrainKernel.companion`."""
        ...
