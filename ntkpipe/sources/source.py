"""Where the entries of a kernel come from: what every source offers."""

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
    """One kernel (of a network both, NNGP and NTK) among all points of a data set. Runs use leading blocks of it.

    There are infinite networks (`NetworkSource`), finite ones (`EmpiricalSource`, `OutputPairSource`), functions of two blocks
    (`FunctionSource`), features (`FeatureSource`), sums and products of networks' kernels (`CombinedSource`), and matrices that were given
    (`PrecomputedSource`). Tiles of all but the last are stored or computed whenever they are read. Nobody asks which it is.
    """

    @property
    def identity(self) -> GramIdentity:
        """All that decides the values; its key names what is made from them."""
        ...

    @property
    def where(self) -> str:
        """For messages."""
        ...

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """That hold its tiles, or those that they are made from; none of a given kernel."""
        ...

    @property
    def is_given(self) -> bool:
        """Whether the user computed it: nothing can be recomputed, or stored in another precision."""
        ...

    @property
    def estimates_test_diagonal(self) -> bool:
        """Whether `k(x, x)` of the test points is a guess: error bounds are estimates then."""
        ...

    def grid(self, block: Block) -> TileGrid:
        """Tiles of a whole block."""
        ...

    def matrix(self, kernel: Kernel, block: Block, rows: int, cols: int) -> TileMatrix:
        """The leading `(rows, cols)` of a block: stored, recomputed or given tiles."""
        ...

    def diagonal(self, kernel: Kernel, block: Block, rows: int, *, plain: bool = False) -> np.ndarray:
        """`k(x, x)` of the first `rows` points, float64.

        Args:
            kernel: `nngp`, `ntk` or `gram`.
            block: `train` or `test`.
            rows: leading points.
            plain: of the kernel itself, where the tiles hold its even or odd part.
        """
        ...

    def exact_rows(
        self, block: Block, indices: np.ndarray, n: int, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray]:
        """Rows computed now in float64, `(k, n)` of every kernel; of a given kernel as they were given.

        Args:
            block: `train` or `test`.
            indices: (k,) rows of the block.
            n: training points in use.
            executor: where they are computed.
            workers: that share the work.
        """
        ...

    def exact_columns(
        self, p: int, indices: np.ndarray, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray] | None:
        """Columns of the test block computed now in float64, `(p, k)` of every kernel; None if the stored ones are exact."""
        ...

    def rounding_of_given(self, stored: np.ndarray, n: int) -> float:
        """Bound on the norm of what the entries lost before they were given; 0 of computed ones, which are measured.

        Args:
            stored: (k, n) rows.
            n: training points in use.
        """
        ...

    @property
    def has_series(self) -> bool:
        """Whether entries are approximations of the kernel, which differ from it by more than rounding."""
        ...

    def entry_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """What float64 entries are themselves off by at most, in units of `sqrt(k(x, x) k(x', x'))`; None if they are exact.

        Args:
            rows: training points that near others.
            columns: these others, and some at random.
            n: training points in use.
            executor: where they are computed.
        """
        ...

    def series_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, p: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """What the end of expansions leaves of entries between test and training points, in the units of `entry_errors`.

        Args:
            rows: of the first p test points.
            columns: of the first n training points.
            n: training points in use.
            p: test points in use.
            executor: where entries are computed.

        Returns:
            By kernel; None where nothing is expanded.
        """
        ...

    def test_gram(self, kernel: Kernel, p: int, executor: Executor) -> np.ndarray:
        """The kernel among the first p test points, `(p, p)` float64, which no tile holds.

        Raises:
            ConfigError: if it can be neither computed nor read.
        """
        ...

    def check_scale(self, n: int, solver: SolverConfig, executor: Executor) -> None:
        """Refuse a kernel whose numbers its dtypes, or the solver's, cannot hold.

        Raises:
            ConfigError, DataError: saying what to change.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What the kernel is and in which precision, JSON-ready: for a report."""
        ...

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """Outputs `(rows, c)` of the finite network whose kernel this is, float64.

        Raises:
            ConfigError: if it is the kernel of something else.
        """
        ...

    def find_changes(self) -> dict[str, list[str]]:
        """Files of the user's that entries are read from, all values read again: name, and a line per difference from before."""
        ...

    def check_found(self, n: int, solver: SolverConfig) -> None:
        """As `check_scale`, of a kernel that was found complete; of computed tiles it was checked before the first was stored."""
        ...

    def dominance(self, trace: float, smallest: float) -> float:
        """See `kernels.dominance`."""
        ...
