"""The protocol of kernel sources."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore


class KernelSource(Protocol):
    """A kernel (for a network, both NNGP and NTK) of all points of a data set. Runs use leading blocks of it.

    Implementations are infinite networks (`NetworkSource`), finite networks (`EmpiricalSource`, `OutputPairSource`),
    functions of two blocks (`FunctionSource`), features (`FeatureSource`), sums and products of networks' kernels
    (`CombinedSource`), and given matrices (`PrecomputedSource`). All except given matrices store their tiles or compute
    them on every read. Code that uses a source does not depend on its kind.
    """

    @property
    def identity(self) -> GramIdentity:
        """Everything that determines the values; its key names derived results."""
        ...

    @property
    def where(self) -> str:
        """The place of the kernel, for messages."""
        ...

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """The stores of its tiles or of its parts' tiles; empty for a given kernel."""
        ...

    @property
    def is_given(self) -> bool:
        """Whether the user computed the kernel, so that entries cannot be recomputed or stored in another precision."""
        ...

    @property
    def estimates_test_diagonal(self) -> bool:
        """Whether `k(x, x)` of the test points is estimated, so that error bounds are estimates."""
        ...

    def grid(self, block: Block) -> TileGrid:
        """The tiles of a whole block."""
        ...

    def matrix(self, kernel: Kernel, block: Block, rows: int, cols: int) -> TileMatrix:
        """The leading (rows, cols) of a block, with stored, recomputed or given tiles."""
        ...

    def diagonal(self, kernel: Kernel, block: Block, rows: int, *, plain: bool = False) -> np.ndarray:
        """`k(x, x)` of the first `rows` points, float64.

        Args:
            kernel: `nngp`, `ntk` or `gram`.
            block: `train` or `test`.
            rows: number of leading points.
            plain: whether to return the diagonal of the full kernel if the tiles contain its even or odd part.
        """
        ...

    def exact_rows(
        self, block: Block, indices: np.ndarray, n: int, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray]:
        """Rows (k, n) of every kernel, recomputed in float64; for a given kernel, the given rows.

        Args:
            block: `train` or `test`.
            indices: (k,) rows of the block.
            n: number of training points in use.
            executor: computes the rows.
            workers: number of workers that share the work.
        """
        ...

    def exact_columns(
        self, p: int, indices: np.ndarray, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray] | None:
        """Columns (p, k) of every test-train kernel, recomputed in float64; None if the stored columns are exact."""
        ...

    def rounding_of_given(self, stored: np.ndarray, n: int) -> float:
        """A bound on the norm of the rounding of given entries; 0 for computed kernels, whose rounding is measured.

        Args:
            stored: (k, n) rows.
            n: number of training points in use.
        """
        ...

    @property
    def has_series(self) -> bool:
        """Whether entries approximate the kernel with errors larger than rounding."""
        ...

    def entry_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """Largest error of float64 entries in units of `sqrt(k(x, x) k(x', x'))`; None if they are exact.

        Args:
            rows: training points that are close to other points.
            columns: these other points, and some random ones.
            n: number of training points in use.
            executor: computes the entries.
        """
        ...

    def series_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, p: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """Truncation error of series in the test-train entries, in the units of `entry_errors`.

        Args:
            rows: test points, below p.
            columns: training points, below n.
            n: number of training points in use.
            p: number of test points in use.
            executor: computes the entries.

        Returns:
            The error of every kernel; None if the kernel uses no series.
        """
        ...

    def test_gram(self, kernel: Kernel, p: int, executor: Executor) -> np.ndarray:
        """The kernel of the first p test points with each other, (p, p) float64. It is not stored in tiles.

        Raises:
            ConfigError: if it can neither be computed nor read.
        """
        ...

    def check_scale(self, n: int, solver: SolverConfig, executor: Executor) -> None:
        """Refuse a kernel whose values exceed the range of its dtypes or the solver's.

        Raises:
            ConfigError: with the setting to change.
            DataError: with the factor for a given kernel.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The kernel and its precision, JSON-ready, for a report."""
        ...

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """Outputs (rows, c) float64 of the finite network of this kernel.

        Raises:
            ConfigError: if it is not the kernel of a finite network.
        """
        ...

    def find_changes(self) -> dict[str, list[str]]:
        """Read the user's files again and compare them; returns the changes as texts, by the name of the kernel."""
        ...

    def check_found(self, n: int, solver: SolverConfig) -> None:
        """The check of `check_scale` for a complete kernel. Computed kernels were checked before their first tile."""
        ...

    def dominance(self, trace: float, smallest: float) -> float:
        """See `kernels.dominance`."""
        ...
