"""Cholesky factors of kernels in the store. Their keys contain everything that determines them, so runs can share them."""

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
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import digest

PREFIX = "cholesky"


@dataclass(frozen=True)
class Factors:
    """The factors of one kernel for any ridge.

    Args:
        kernel: the train-train kernel.
        workspace: computes and stores the factors.
        precision: see `solve_direct`.
        edge: rows of a tile; None chooses the number.
    """

    kernel: TrainKernel
    workspace: Workspace
    precision: str = "float64"
    edge: int | None = None

    def prefix(self, ridge: float) -> str:
        """Prefix of the keys of one ridge."""
        return f"{PREFIX}/{digest({'matrix': self.kernel.key, 'ridge': ridge.hex()})}"

    def solve(
        self, b: np.ndarray, operator: Operator, ridge: float, on_tile: Callable[[str, int, int], None] | None = None
    ) -> DirectSolution:
        """`(A + ridge I)^-1 b` (n, k) in the configured precision. A missing factor is computed and stored.

        Args:
            b: right-hand sides (n, k).
            operator: the kernel, with float64 products.
            ridge: absolute.
            on_tile: called with the precision of the factor, the number of finished tiles and the number of all tiles.

        Raises:
            HeldError: if another run computes the factor.
            IndefiniteError: if the kernel plus ridge is not positive definite.
        """
        with self._held(ridge):
            return solve_direct(
                self.kernel.matrix,
                operator,
                b,
                precision=self.precision,
                name=self.kernel.key,
                ridge=ridge,
                store=self.workspace.store,
                prefix=self.prefix(ridge),
                executor=self.workspace.executor,
                memory_bytes=self._memory_bytes,
                edge=self.edge,
                on_tile=on_tile,
            )

    def factor(self, operator: Operator, ridge: float) -> CholeskyFactor:
        """A factor for solves with many columns: for `precision=mixed` the float32 factor if refinement converges.

        Args:
            operator: the kernel, with float64 products.
            ridge: absolute.
        """
        found = self.solve(np.ones((self.kernel.n, 1)), operator, ridge)
        if found.method != "cg":
            return found.run.factor
        return replace(self, precision="float64").factor(operator, ridge)

    def preconditioner(self, ridge: float) -> Float32Factor:
        """A float32 factor as preconditioner of conjugate gradients. `precision=mixed` uses the same factor."""
        with self._held(ridge):
            return float32_factor(
                self.kernel.matrix,
                name=self.kernel.key,
                ridge=ridge,
                store=self.workspace.store,
                prefix=f"{self.prefix(ridge)}/float32",
                executor=self.workspace.executor,
                memory_bytes=self._memory_bytes,
                edge=self.edge,
            )

    @property
    def _memory_bytes(self) -> int:
        room = self.workspace.room
        return factor_memory(room.budget, room.workers)

    @contextmanager
    def _held(self, ridge: float) -> Iterator[None]:
        with self.workspace.store.lease(self.prefix(ridge), holder=self.workspace.holder):
            yield
