"""The outcome of a solver, as a value whose text contains the remedy."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Reason(enum.Enum):
    """The reason why a solver stopped. `str(reason)` explains it and says what to do."""

    RUNNING = "not finished: this is a snapshot of a running solver"
    CONVERGED = "the stopping rule is satisfied"
    ROUNDING = "only rounding and errors of the tiles remain: more steps would not change the solution visibly"
    INVARIANT = "an invariant subspace is reached: the answer is exact to rounding"
    MAX_STEPS = "out of steps before the stopping rule was satisfied: raise solver.max_steps or solver.tolerance"
    FULL = "the basis has no room for another block: raise solver.basis_gib or restart it"
    STAGNATED = "refinement no longer reduces the residual: store tiles as float64 or add a ridge (predict.ridges)"
    INDEFINITE = "the matrix is not positive definite: store tiles as float64 or add a ridge (predict.ridges)"

    def __str__(self) -> str:
        return self.value

    @property
    def ok(self) -> bool:
        """Whether the solution has the requested accuracy."""
        return self in (Reason.CONVERGED, Reason.ROUNDING, Reason.INVARIANT)


@dataclass(frozen=True)
class Solution(Generic[Value]):
    """The result of a solver.

    Args:
        value: the solution; also usable if the reason is not `ok`, with the given residual.
        residual: largest relative residual `|b - A x| / |b|` over the columns, computed from the solution.
        iterations: number of iterations.
        reason: why the solver stopped.
    """

    value: Value
    residual: float
    iterations: int
    reason: Reason
