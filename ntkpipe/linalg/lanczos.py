"""Block Lanczos with full reorthogonalisation. One basis serves every training time, ridge and filter.

With `b = V_1 R_0` the recurrence builds orthonormal blocks `V = [V_1 ... V_s]` and a block tridiagonal `H` such that

    A V = V H + V_{s+1} B E_s^T,      V^T V = I,      H = V^T A V,

and a function of the matrix applied to `b` is `V phi(H) E_1 R_0` up to a residual in the span of `V_{s+1}` (`ntkpipe.dynamics`
derives its effect on predictions). Blocks shrink when a direction is exhausted, so a rank-deficient `b` needs no further
treatment (Golub & Underwood 1977). `recurrence.py` keeps the basis orthonormal, `basis.py` stores it, and `restarted.py` restarts
a basis that exceeds its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64

from ntkpipe.linalg.basis import Basis, MemoryBasis
from ntkpipe.linalg.block_tridiagonal import BlockTridiagonal
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.recurrence import Recurrence, StepRecord
from ntkpipe.linalg.rounded_basis import RoundedBasis
from ntkpipe.linalg.rounded_recurrence import RoundedRecurrence
from ntkpipe.linalg.solution import Reason
from ntkpipe.linalg.steps import Checkpoint, take_step


@dataclass(frozen=True)
class LanczosResult:
    """A block Lanczos decomposition `A V = V H + V_{s+1} B E_s^T`, up to the rounding of the products.

    Args:
        vectors: the basis. Only its first m vectors belong to this result, because later steps append to it.
        block_sizes: sizes of the blocks, in order. They sum to m and never grow.
        tridiagonal: `H`.
        coupling: `(k_next, k_last)`, the block `B`; no rows if the subspace is invariant.
        start: `(m_0, c)`, `R_0` with `b = V_1 R_0`; `m_0 <= c` is the numerical rank of `b`.
        steps: number of passes over the matrix.
        next_block: `(k_next, n)`, rows are the vectors of `V_{s+1}`.
        dropped: spectral norms of the parts below the deflation tolerance, summed over the steps. It is an upper bound of the part that
            deflation leaves out of the recurrence.
        reason: why the iteration ended.
        recurrence: the state from which restarts continue.
        start_error: (c,) norms of the part of the starting block that a rounded first block does not represent; None if it is not
            rounded.
    """

    vectors: Basis
    block_sizes: list[int]
    tridiagonal: BlockTridiagonal
    coupling: Float64[np.ndarray, "k_next k_last"]
    start: Float64[np.ndarray, "m_0 c"]
    steps: int
    next_block: Float64[np.ndarray, "k_next n"]
    dropped: float = 0.0
    reason: Reason = Reason.RUNNING
    recurrence: Recurrence | None = None
    start_error: Float64[np.ndarray, " c"] | None = None

    @cached_property
    def pencil(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The projected matrix and the Gram matrix of a rounded basis, (m, m) each; None if the basis is not rounded.

        H then equals the projected matrix up to 1e-7 of its norm.
        """
        return None if self.recurrence is None else self.recurrence.pencil(self.tridiagonal.size)

    @property
    def basis(self) -> Float[np.ndarray, "m n"]:
        """The basis vectors as rows `(m, n)` (`V^T`), in this process."""
        return self.vectors.array(self.tridiagonal.size)

    @property
    def projected(self) -> Float64[np.ndarray, "m m"]:
        """`H`, dense."""
        return self._dense

    @cached_property
    def _dense(self) -> np.ndarray:
        return self.tridiagonal.dense()

    @property
    def invariant(self) -> bool:
        """Whether the basis spans an invariant subspace that contains `b`. Every function of the matrix is then exact."""
        return self.coupling.shape[0] == 0

    @property
    def is_empty(self) -> bool:
        """Whether `b` is zero, so that there is no vector and no step."""
        return self.invariant and not self.block_sizes

    def orthogonality(self) -> float:
        """Largest entry of `|V^T V - I|`, the next block included; about 1e-15 to 1e-14. It takes 2 m^2 n flops."""
        basis, worst = self.basis, 0.0
        for low in range(0, len(basis), 256):
            gram = basis[: low + 256] @ basis[low : low + 256].T
            gram[low : low + gram.shape[1]] -= np.eye(gram.shape[1])
            worst = max(worst, float(np.abs(gram).max()))
        if len(self.next_block) and len(basis):
            worst = max(worst, float(np.abs(basis @ self.next_block.T).max()))
            worst = max(worst, float(np.abs(self.next_block @ self.next_block.T - np.eye(len(self.next_block))).max()))
        return worst


def growing_schedule(step: int) -> int:
    """The next step at which the stopping rule is checked: 5% more steps, and at least one.

    At most 5% of the steps are wasted. All checks with a cost of O(m^2) together cost about ten times the last one. The schedule depends
    only on steps, never on seconds, so a resumed run stops at the same step as an uninterrupted one.
    """
    return step + max(1, math.ceil(0.05 * step))


def block_lanczos(
    operator: LinearMap,
    b: Float64[np.ndarray, "n c"],
    *,
    max_steps: int,
    max_vectors: int | None = None,
    stop: Callable[[LanczosResult], bool] | None = None,
    check_every: Callable[[int], int] = growing_schedule,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 10,
    on_step: Callable[[StepRecord], None] | None = None,
    basis: Basis | None = None,
) -> LanczosResult:
    """Run block Lanczos from the columns of `b` until `stop` returns True, the space is invariant, or a limit is reached.

    Args:
        operator: symmetric, n x n. Each step calls `matmul` once with at most c columns.
        b: `(n, c)` starting block of any rank; directions below `n eps |b|` are dropped.
        max_steps: largest number of passes over the matrix. The basis grows to at most `8 n c max_steps` bytes.
        max_vectors: largest number of vectors in the basis, the next block included; None is unlimited.
        stop: called with a snapshot at the steps of `check_every`; returns whether to stop. The snapshot's views of the basis stay valid.
        check_every: maps a step to the next one at which `stop` is called. It depends only on the step, so a resumed run stops at the
            same step as an uninterrupted one.
        checkpoint: state to continue from, also if it has more than `max_steps` steps. New steps are appended every
            `checkpoint_every` steps and at the end.
        checkpoint_every: number of steps between checkpoints.
        on_step: called after every new step.
        basis: an empty basis for the vectors; None stores them in this process.

    Returns:
        The decomposition, with `reason` CONVERGED, INVARIANT, FULL or MAX_STEPS (CONVERGED if there is no `stop`).

    Raises:
        ValueError: if `b` has not n rows, or is not finite.
        NumericalError: if a product is not finite.
    """
    b = np.asarray(b, dtype=np.float64)
    if b.ndim != 2 or b.shape[0] != operator.n:
        raise ValueError(f"starting block of shape {b.shape} does not fit an operator of size {operator.n}")
    if not np.isfinite(b).all():
        raise ValueError("the starting block holds non-finite values: clean the labels (data.drop_invalid=true)")
    if max_steps < 1 or checkpoint_every < 1:
        raise ValueError(f"max_steps={max_steps} and checkpoint_every={checkpoint_every} must be at least 1")
    if basis is None:
        basis = MemoryBasis(operator.n, min(operator.n, b.shape[1] * (max_steps + 1)))
    if isinstance(basis, RoundedBasis):
        run = RoundedRecurrence(operator, b, basis, checkpoint)
    else:
        run = Recurrence(operator, b, basis, checkpoint)
    saved = 0
    if checkpoint is not None:
        saved = run.restore(checkpoint.replay())

    def keep() -> None:
        nonlocal saved
        if checkpoint is not None and run.steps > saved:
            checkpoint.append(saved, run.steps, run.since(saved))
            saved = run.steps

    check_at, lanes = 1, Lanes()
    while True:
        step = run.steps
        # `stop` is called only on the schedule, also right after a restore, so a resumed run ends at the same step.
        while check_at < step:
            check_at = check_every(check_at)
        out_of_steps = step >= max_steps
        full = max_vectors is not None and run.count + 2 * run.next_size > max_vectors
        reason = Reason.RUNNING
        if run.next_size == 0:
            reason = Reason.INVARIANT
        elif stop is None:
            reason = Reason.CONVERGED if out_of_steps else Reason.FULL if full else Reason.RUNNING
        elif step and (step == check_at or out_of_steps or full) and stop(_snapshot(run)):
            reason = Reason.CONVERGED
        elif full:
            reason = Reason.FULL
        elif out_of_steps:
            reason = Reason.MAX_STEPS
        done = reason is not Reason.RUNNING
        if done or step % checkpoint_every == 0:
            keep()
        if done:
            return replace(_snapshot(run), reason=reason)
        take_step(run, run.advance, on_step, keep, lanes)


def largest_eigenvalue(operator: LinearMap, *, tolerance: float = 1e-8, max_steps: int = 300, seed: int = 0) -> float:
    """The largest eigenvalue of a positive semi-definite operator, approximated from below.

    Args:
        operator: Each step calls `matmul` once with one column.
        tolerance: relative residual of the Ritz pair. The relative error of the eigenvalue is at most this, and usually its square.
        max_steps: largest number of passes over the matrix.
        seed: seed of the random start.
    """
    start = np.random.default_rng(seed).standard_normal((operator.n, 1))

    def stop(result: LanczosResult) -> bool:
        values, vectors = np.linalg.eigh(result.projected)
        residual = np.linalg.norm(result.coupling @ vectors[-result.coupling.shape[1] :, -1])
        return bool(residual <= tolerance * abs(values[-1]))

    result = block_lanczos(operator, start, max_steps=max_steps, stop=stop)
    return float(np.linalg.eigvalsh(result.projected)[-1])


def _snapshot(run: Recurrence) -> LanczosResult:
    """The present result. Later steps do not change it."""
    return LanczosResult(
        vectors=run.basis,
        block_sizes=list(run.sizes),
        tridiagonal=run.matrix(),
        coupling=run.last_coupling,
        start=run.start,
        steps=run.steps,
        next_block=run.next_block,
        dropped=run.dropped + sum(run.drops),
        recurrence=run,
        start_error=run.start_error,
    )
