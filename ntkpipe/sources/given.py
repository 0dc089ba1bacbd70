"""A kernel that the user computed, as matrices in files or in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.data.given_gram import GivenGram, changed_content
from ntkpipe.errors import ConfigError
from ntkpipe.kernels.dominance import dominance
from ntkpipe.linalg.operator import rectangular_operator, tile_operator
from ntkpipe.sources.scale import check_given_scale
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

_HALF_UNIT = 2.0**-25


@dataclass(frozen=True)
class PrecomputedSource:
    """A `KernelSource` of given matrices, called `gram`. Nothing is recomputed.

    Args:
        gram: both blocks and their diagonals, which were checked.
    """

    gram: GivenGram

    is_given = True

    @property
    def identity(self) -> GramIdentity:
        """See `KernelSource`."""
        return self.gram.identity

    @property
    def where(self) -> str:
        """See `KernelSource`."""
        return self.gram.where

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """See `KernelSource`."""
        return ()

    @property
    def estimates_test_diagonal(self) -> bool:
        """See `KernelSource`."""
        return self.gram.test_diagonal is None

    def grid(self, block: Block) -> TileGrid:
        """See `KernelSource`."""
        return self.gram.grid(block)

    def matrix(self, kernel: Kernel, block: Block, rows: int, cols: int) -> TileMatrix:
        """See `KernelSource`."""
        return self.gram.matrix(kernel, block, rows, cols)

    def diagonal(self, kernel: Kernel, block: Block, rows: int, *, plain: bool = False) -> np.ndarray:
        """See `KernelSource`."""
        return self.gram.read_diagonal(block, kernel, rows, plain=plain)

    def exact_rows(
        self, block: Block, indices: np.ndarray, n: int, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray]:
        """See `KernelSource`."""
        del workers
        rows = n if block == "train" else self.grid(block).rows
        operate = tile_operator if block == "train" else rectangular_operator
        with operate(self.matrix("gram", block, rows, n), executor, products="float64") as operator:
            return {"gram": operator.rows(indices)}

    def exact_columns(
        self, p: int, indices: np.ndarray, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray] | None:
        """See `KernelSource`."""
        del p, indices, executor, workers
        return None

    def rounding_of_given(self, stored: np.ndarray, n: int) -> float:
        """See `KernelSource`."""
        if self.matrix("gram", "train", n, n).dtype != np.float32:
            return 0.0
        # The user's entries were rounded to float32, which changes them by up to half a unit in the last place.
        return 3.0 * math.sqrt(n * np.mean(stored**2)) * _HALF_UNIT

    @property
    def has_series(self) -> bool:
        """See `KernelSource`."""
        return False

    def entry_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """See `KernelSource`."""
        del rows, columns, n, executor
        return None

    def series_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, p: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """See `KernelSource`."""
        del rows, columns, n, p, executor
        return None

    def test_gram(self, kernel: Kernel, p: int, executor: Executor) -> np.ndarray:
        """See `KernelSource`."""
        del kernel, p, executor
        raise ConfigError(
            f"covariances between test points need the kernel among them, which was not given with {self.where}: use "
            "predict.covariance=diagonal"
        )

    def check_scale(self, n: int, solver: SolverConfig, executor: Executor) -> None:
        """See `KernelSource`."""
        del executor
        self.check_found(n, solver)

    def describe(self) -> dict[str, Any]:
        """See `KernelSource`."""
        return {"given": self.where, "content": self.gram.content, "dtype": self.gram.dtype}

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """See `KernelSource`."""
        del block, rows
        raise ConfigError(
            "predict.initial=network needs kernel=empirical, because other kernels have no finite network: give the "
            "outputs as a file, or leave it out"
        )

    def find_changes(self) -> dict[str, list[str]]:
        """See `KernelSource`."""
        return {f"kernel {self.where}": changed_content(self.gram)}

    def check_found(self, n: int, solver: SolverConfig) -> None:
        """See `KernelSource`."""
        dtype = str(self.matrix("gram", "train", n, n).dtype)
        check_given_scale(self.diagonal("gram", "train", n), dtype, self.where, solver)

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`."""
        return dominance((), trace, smallest)
