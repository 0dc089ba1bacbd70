"""How a solver ended: a value whose text is the remedy, never a log line."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Reason(enum.Enum):
    """Why a solver stopped. `str(reason)` says what it means and what to do."""

    RUNNING = "not finished: this is a snapshot of a solver at work"
    CONVERGED = "the stopping rule is satisfied"
    INVARIANT = "an invariant subspace is reached: the answer is exact to rounding"
    MAX_STEPS = "out of steps before the stopping rule was satisfied: raise solver.max_steps or solver.tolerance"
    FULL = "the basis has no room for another block: raise solver.basis_gib or restart it"
    STAGNATED = "refinement no longer reduces the residual: store tiles as float64 or add a ridge (predict.ridges)"
    INDEFINITE = "the matrix is not positive definite: store tiles as float64 or add a ridge (predict.ridges)"

    def __str__(self) -> str:
        return self.value

    @property
    def ok(self) -> bool:
        """True if the value can be used as it was asked for."""
        return self in (Reason.CONVERGED, Reason.INVARIANT)


@dataclass(frozen=True)
class Solution(Generic[Value]):
    """What a solver returns.

    Args:
        value: the answer, usable also if the reason is not `ok`, with the residual that it has.
        residual: largest relative residual `|b - A x| / |b|` over the columns, measured, not recurred.
        iterations: sweeps that were made.
        reason: why it stopped.
    """

    value: Value
    residual: float
    iterations: int
    reason: Reason
