"""Preconditioners of one kernel, which are computed once and stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.preconditioner import Identity, LowRank, Preconditioner, nystrom, pivoted_cholesky
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import digest

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
"""Unit roundoff of products, by their precision."""
# The smallest eigenvalue of a complete factor is multiplied by this share, which makes it a lower bound despite rounding.
_WHOLE = 0.9


@dataclass(frozen=True)
class Sketch:
    """The preconditioners of one kernel.

    Args:
        settings: settings of the solver.
        problem: the problem.
        kernel: the kernel of the problem, or another part of it.
        workspace: computes and stores the preconditioners.
    """

    settings: SolverConfig
    problem: Problem
    kernel: TrainKernel
    workspace: Workspace

    def name(self, ridge: float) -> str:
        """Name of the preconditioner for ridges of at least `ridge`."""
        return f"{self.settings.preconditioner}, rank {self.settings.rank}, ridge {ridge!r}"

    def preconditioner(
        self, operator: AnyOperator, ridge: float
    ) -> tuple[Callable[[float], Preconditioner], dict[str, Any]]:
        """A function from a ridge to its preconditioner, and facts about it.

        Args:
            operator: the kernel.
            ridge: the smallest ridge.
        """
        settings = self.settings
        key = self.problem.solve_key(settings.products, self.kernel)
        prefix = f"cg/{key}/{digest(self.name(ridge))}"
        facts: dict[str, Any] = {"preconditioner": settings.preconditioner, "vectors": 0, "sketch_passes": 0}
        if settings.preconditioner == "none":
            return lambda _: Identity(), facts
        if settings.preconditioner == "float32_factor":
            self._say(f"float32 factor of {operator.n:,} x {operator.n:,}", force=True)
            factors = Factors(self.kernel, self.workspace, edge=settings.factor_edge)
            return factors.preconditioner, {**facts, "vectors": operator.n}
        checkpoint = StoreCheckpoint(self.workspace.store, prefix, prefix)
        if kept := checkpoint.restore():
            arrays = kept[0]
            tail, passes, columns = arrays["scalars"].tolist()
            found = LowRank(arrays["vectors"], arrays["values"], tail, int(passes), int(columns))
            self._say(
                f"{settings.preconditioner} preconditioner of rank {len(found.values)} found in the store", force=True
            )
        else:
            self._say(f"computing the {settings.preconditioner} preconditioner", force=True)
            columns = self.problem.shape[1]
            if settings.preconditioner == "nystrom":
                found = nystrom(
                    operator, ridge=ridge, rank=settings.rank, columns=columns, rounding=ROUNDING[settings.products]
                )
            else:
                found = pivoted_cholesky(operator, ridge=ridge, rank=settings.rank, columns=columns)
            scalars = np.array([found.tail, found.passes, found.columns], dtype=np.float64)
            checkpoint.append(0, 1, {"vectors": found.vectors, "values": found.values, "scalars": scalars})
            self._say(f"{settings.preconditioner} preconditioner: {found.at(ridge).cost()}", force=True)
        # A complete factor contains all eigenvalues. A solver that takes only a step or two knows the smallest less accurately.
        whole = len(found.values) == operator.n
        return found.at, {
            **facts,
            **({"smallest_factored": _WHOLE * float(found.values[-1])} if whole else {}),
            "vectors": len(found.values),
            "sketch_passes": found.passes,
            "sketch_columns": found.columns,
        }

    def _say(self, line: str, **facts: Any) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}", kernel=self.problem.name, **facts)
