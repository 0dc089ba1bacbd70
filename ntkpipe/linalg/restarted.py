"""Thick restarts: block Lanczos with a limited number of vectors, for several shifted systems at the same time.

When the basis is full, its user (`Answer`) adds up the contribution of the basis. Then only some Ritz vectors and the next block are
kept (Wu & Simon 2000, doi:10.1137/S0895479898334605; with right-hand sides: Darnell, Morgan & Wilcox 2008,
doi:10.1016/j.laa.2007.10.021). For every shift z the residual of `(A + z) x = b` is in the span of the next block:

    b - (A + z) V y = -V_next C y,      y = (H + z)^-1 E_first g,      C the coupling to the next block

So the next cycle corrects all shifts from one basis. Each shift has its own small right-hand side `g` (Simoncini 2003,
doi:10.1023/A:1025589524281).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.linalg

from ntkpipe.errors import ConfigError
from ntkpipe.linalg.basis import Basis, MemoryBasis
from ntkpipe.linalg.block_tridiagonal import BlockTridiagonal
from ntkpipe.linalg.lanczos import LanczosResult
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.recurrence import Recurrence, StepRecord
from ntkpipe.linalg.solution import Reason
from ntkpipe.linalg.steps import Checkpoint, take_step

# Share of the vectors of a full basis that a restart keeps. On 3,000 images with room for 20 blocks of 9 vectors, shares of 0.3, 0.5, 0.7
# and 0.85 took 71, 64, 59 and 59 passes for the NTK (46 without restarts), and 110, 100, 89 and 87 for the NNGP (59).
KEPT = 2 / 3
# Least number of blocks of a basis. A smaller basis loses too much information at each restart to converge.
LEAST_BLOCKS = 6


@dataclass(frozen=True)
class Cycle:
    """A basis between two restarts, `A V = V H + V_next C`.

    Args:
        vectors: the basis, of which the first m vectors belong to the cycle.
        matrix: `H`, (m, m).
        coupling: `(k_next, k_last)`, the last columns of `C`; the other columns are zero.
        next_block: `(k_next, n)`.
        first: first row in H of the block that contained the residuals when the cycle began.
        width: size of that block.
        steps: number of passes over the matrix so far, over all cycles.
    """

    vectors: Basis
    matrix: BlockTridiagonal
    coupling: np.ndarray
    next_block: np.ndarray
    first: int
    width: int
    steps: int

    @cached_property
    def eigensystem(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (m,), and their vectors as columns (m, m) in the coordinates of the basis."""
        return scipy.linalg.eigh(self.matrix.dense(), driver="evd", check_finite=False)

    @property
    def tail(self) -> np.ndarray:
        """`C` times the Ritz vectors, (k_next, m)."""
        last = self.coupling.shape[1]
        return self.coupling @ self.eigensystem[1][self.matrix.size - last :]

    @property
    def entry(self) -> np.ndarray:
        """`E_first` in the coordinates of the Ritz vectors, (m, width)."""
        return self.eigensystem[1][self.first : self.first + self.width].T


@runtime_checkable
class Answer(Protocol):
    """The result that adds up the contributions of all cycles."""

    def converged(self, cycle: Cycle) -> bool:
        """Whether the result would be accurate enough with this cycle. The call does not change the result."""
        ...

    def absorb(self, cycle: Cycle) -> None:
        """Add the contribution of the cycle. Residuals are then in the span of its next block."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """The sums so far, for a checkpoint."""
        ...

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        ...


def restarted_lanczos(
    operator: LinearMap,
    answer: Answer,
    *,
    capacity: int,
    max_steps: int,
    ridge: float,
    first: LanczosResult | None = None,
    basis: Basis | None = None,
    check_every: Callable[[int], int] | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 10,
    on_step: Callable[[StepRecord], None] | None = None,
) -> tuple[Reason, int]:
    """Run cycles of block Lanczos until the result is accurate enough, the space is invariant, or `max_steps` is reached.

    Args:
        operator: symmetric positive semi-definite, n x n.
        answer: the result, which is complete when this function returns.
        capacity: number of vectors that the basis may hold, the next block included.
        max_steps: largest number of passes over the matrix.
        ridge: the smallest ridge of the solve, on which the choice of Ritz vectors depends.
        first: the first cycle, a basis that `block_lanczos` has filled; None continues from the checkpoint.
        basis: an empty basis for the vectors of the checkpoint; None stores them in this process.
        check_every: maps a step to the next one at which `answer` is checked within a cycle; None checks only at its end.
        checkpoint: another checkpoint than that of `first`. It is written at every restart, and appended to every
            `checkpoint_every` steps. It holds at most one cycle.
        checkpoint_every: number of steps between checkpoints.
        on_step: called after every new step.

    Returns:
        CONVERGED, INVARIANT or MAX_STEPS, and the number of passes, those of `first` included.

    Raises:
        ConfigError: if the basis is too small to restart.
        ValueError: if there is neither a first cycle nor a checkpoint.
    """
    records = iter(()) if checkpoint is None else checkpoint.replay()
    state = next(records, None)
    if state is not None and checkpoint is not None:
        answer.load({name.removeprefix("answer_"): a for name, a in state.items() if name.startswith("answer_")})
        if state["done"][0]:
            return Reason.CONVERGED, int(state["steps"][0])
        run = Recurrence.resumed(operator, state, basis or MemoryBasis(operator.n), checkpoint)
        run.restore(records)
    elif first is not None and first.recurrence is not None:
        run = first.recurrence
        run.begin(checkpoint)
    else:
        raise ValueError("a restarted solve needs a first cycle or a checkpoint")
    if capacity < LEAST_BLOCKS * run.next_size:
        raise ConfigError(
            f"a basis of {capacity} vectors cannot be restarted with blocks of {run.next_size}: raise solver.basis_gib to "
            f"at least {8e-9 * LEAST_BLOCKS * run.next_size * run.n:.2g}"
        )
    saved, check_at = run.steps, run.steps

    lanes = Lanes()

    def keep() -> None:
        nonlocal saved
        if checkpoint is not None and run.steps > saved:
            checkpoint.append(saved, run.steps, run.since(len(run.sizes) - (run.steps - saved)))
            saved = run.steps

    while True:
        while check_every is not None and check_at < run.steps:
            check_at = check_every(check_at)
        full = run.count + 2 * run.next_size > capacity
        out = run.steps >= max_steps
        ended = run.next_size == 0
        if run.sizes and (full or out or ended or (check_every is not None and run.steps == check_at)):
            cycle = _cycle(run)
            good = ended or answer.converged(cycle)
            if good or full or out:
                answer.absorb(cycle)
                kept = {} if good else run.restart(*_kept(cycle, capacity, ridge)).state()
                if checkpoint is not None:
                    state = {f"answer_{name}": array for name, array in answer.state().items()}
                    more = {"done": np.array([good]), "steps": np.array([run.steps])}
                    checkpoint.append(0, run.steps, kept | state | more)
                    saved = run.steps
            if good:
                return (Reason.INVARIANT if ended else Reason.CONVERGED), run.steps
        if out:
            return Reason.MAX_STEPS, run.steps
        if run.steps - saved >= checkpoint_every:
            keep()
        take_step(run, run.advance, on_step, keep, lanes)


def _cycle(run: Recurrence) -> Cycle:
    matrix = run.matrix()
    return Cycle(
        run.basis, matrix, run.last_coupling, run.next_block, len(matrix.theta), len(matrix.diagonals[0]), run.steps
    )


def _kept(cycle: Cycle, capacity: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and vectors to keep: all except the range of consecutive ones with the smallest ratio of its ends.

    Later cycles need not find the kept vectors again. Their convergence depends on the condition number of the dropped
    part, shifted by the ridge. Image kernels have few large eigenvalues and many small ones, so mostly the large ones are kept.
    """
    values, rotation = cycle.eigensystem
    given_up = len(values) - min(int(KEPT * capacity), len(values) - 1)
    size = np.maximum(values, np.finfo(np.float64).eps * values[-1]) + ridge
    low = int(np.argmin(size[given_up - 1 :] / size[: len(size) - given_up + 1]))
    kept = np.r_[0:low, low + given_up : len(values)]
    return values[kept], rotation[:, kept]
