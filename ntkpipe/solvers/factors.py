"""Cholesky factors of stored kernels, kept in the store by what determines them: other runs and stages find them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.linalg.direct import DirectSolution, solve_direct
from ntkpipe.linalg.factor.solve import CholeskyFactor
from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.preconditioner import Float32Factor, float32_factor
from ntkpipe.planning.memory import factor_memory
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.matrix import TileMatrix

PREFIX = "cholesky"


@dataclass(frozen=True)
class Factors:
    """The factors of one kernel, for any ridge.

    Args:
        matrix: the kernel among the training images in use.
        name: of it, by its content.
        store: where factors are.
        executor: runs their tasks.
        memory_bytes: for the data of all its workers together.
        edge: rows of a tile; None is chosen.
        precision: see `solve_direct`.
        holder: told to a run that wants the same factor at the same time.
    """

    matrix: TileMatrix
    name: str
    store: ObjectStore
    executor: Executor
    memory_bytes: int
    edge: int | None
    precision: str
    holder: str

    @staticmethod
    def of(inputs: Inputs, gram: KernelSource, source: Kernel, executor: Executor) -> Factors:
        """Of a kernel of the run.

        Args:
            inputs: of the run.
            gram: of `inputs.parts`.
            source: the stored kernel.
            executor: runs the tasks.
        """
        return Factors(
            inputs.matrix(source, "train", gram),
            digest({"gram": gram.identity.key, "kernel": source, "rows": inputs.n_train}),
            inputs.store,
            executor,
            factor_memory(inputs.memory_bytes, inputs.workers),
            inputs.config.solver.factor_edge,
            inputs.config.solver.precision,
            f"ntkpipe solve of {inputs.config.run_dir}",
        )

    def prefix(self, ridge: float) -> str:
        """Of the keys of one ridge."""
        return f"{PREFIX}/{digest({'matrix': self.name, 'ridge': ridge.hex()})}"

    def solve(
        self, b: np.ndarray, operator: Operator, ridge: float, on_tile: Callable[[str, int, int], None] | None = None
    ) -> DirectSolution:
        """`(A + ridge I)^-1 b` `(n, k)` in the run's precision; the factor is found or made, and kept.

        Args:
            b: `(n, k)`.
            operator: the kernel, with float64 products.
            ridge: absolute.
            on_tile: called with the precision of the factor, the number of finished tiles and of all.

        Raises:
            HeldError: if another run is making it.
            IndefiniteError: if the kernel plus ridge is not positive definite.
        """
        with self._held(ridge):
            return solve_direct(
                self.matrix,
                operator,
                b,
                precision=self.precision,
                name=self.name,
                ridge=ridge,
                store=self.store,
                prefix=self.prefix(ridge),
                executor=self.executor,
                memory_bytes=self.memory_bytes,
                edge=self.edge,
                on_tile=on_tile,
            )

    def factor(self, operator: Operator, ridge: float) -> CholeskyFactor:
        """A factor to solve many columns with: of `precision=mixed` the float32 one where refinement converges.

        Args:
            operator: the kernel, with float64 products.
            ridge: absolute.
        """
        found = self.solve(np.ones((self.matrix.grid.rows, 1)), operator, ridge)
        if found.method != "cg":
            return found.run.factor
        return replace(self, precision="float64").factor(operator, ridge)

    def preconditioner(self, ridge: float) -> Float32Factor:
        """A float32 factor for conjugate gradients: the one of `precision=mixed`."""
        with self._held(ridge):
            return float32_factor(
                self.matrix,
                name=self.name,
                ridge=ridge,
                store=self.store,
                prefix=f"{self.prefix(ridge)}/float32",
                executor=self.executor,
                memory_bytes=self.memory_bytes,
                edge=self.edge,
            )

    @contextmanager
    def _held(self, ridge: float) -> Iterator[None]:
        with self.store.lease(self.prefix(ridge), holder=self.holder):
            yield
