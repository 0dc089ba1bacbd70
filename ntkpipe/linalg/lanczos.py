"""Block Lanczos with full reorthogonalisation: one basis for every training time, ridge and filter.

With `b = V_1 R_0` the recurrence builds orthonormal blocks `V = [V_1 ... V_s]` and a block tridiagonal `H` such that

    A V = V H + V_{s+1} B E_s^T,      V^T V = I,      H = V^T A V,

and a function of the matrix applied to `b` is `V phi(H) E_1 R_0` up to a residual that lives in `V_{s+1} B` alone (its
consequences for predictions are in `ntkpipe.dynamics`). Blocks shrink where a direction is exhausted, so that a
rank-deficient `b` costs nothing.

Golub & Underwood 1977; full reorthogonalisation twice: Giraud et al. 2005, doi:10.1007/s00211-005-0615-4.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.solution import Reason


@runtime_checkable
class Checkpoint(Protocol):
    """Where the solver appends what is new since the last checkpoint; see `ntkpipe.linalg.checkpoint`."""

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep `arrays`, what the steps after `start` up to and including `step` have added."""
        ...

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        """What was appended, in order from step 0, up to the first damaged or missing entry."""
        ...


@dataclass(frozen=True)
class LanczosResult:
    """A block Lanczos decomposition; `A V = V H + V_{s+1} B E_s^T` to the rounding of the products.

    Args:
        basis: `(m, n)`, rows are the basis vectors (`V^T`).
        block_sizes: of the blocks in `basis`, in order; they sum to m and never grow.
        projected: `(m, m)` symmetric block tridiagonal `H`.
        coupling: `(k_next, k_last)`, the block `B`; no rows if the subspace is invariant.
        start: `(m_0, c)`, `R_0` with `b = V_1 R_0`; `m_0 <= c` is the numerical rank of `b`.
        steps: passes over the matrix.
        next_block: `(k_next, n)`, rows are the vectors of `V_{s+1}`.
        dropped: spectral norm of the parts below the deflation tolerance, summed over the steps: an upper bound of
            what the recurrence above leaves out by deflation.
        reason: why the iteration ended.
    """

    basis: Float64[np.ndarray, "m n"]
    block_sizes: list[int]
    projected: Float64[np.ndarray, "m m"]
    coupling: Float64[np.ndarray, "k_next k_last"]
    start: Float64[np.ndarray, "m_0 c"]
    steps: int
    next_block: Float64[np.ndarray, "k_next n"]
    dropped: float = 0.0
    reason: Reason = Reason.RUNNING

    @property
    def invariant(self) -> bool:
        """True if the basis spans an invariant subspace that holds `b`: every function of the matrix is exact."""
        return self.coupling.shape[0] == 0

    def orthogonality(self) -> float:
        """Largest entry of `|V V^T - I|`, the next block included; about 1e-15 to 1e-14. Costs 2 m^2 n flops."""
        worst = 0.0
        for low in range(0, len(self.basis), 256):
            gram = self.basis[: low + 256] @ self.basis[low : low + 256].T
            gram[low : low + gram.shape[1]] -= np.eye(gram.shape[1])
            worst = max(worst, float(np.abs(gram).max()))
        if len(self.next_block) and len(self.basis):
            worst = max(worst, float(np.abs(self.basis @ self.next_block.T).max()))
            worst = max(worst, float(np.abs(self.next_block @ self.next_block.T - np.eye(len(self.next_block))).max()))
        return worst


@dataclass(frozen=True)
class StepRecord:
    """What one step did: for progress lines and for the convergence figure.

    Args:
        step: counted from 1.
        vectors: in the basis after this step.
        block: vectors of the next block.
        coupling_norm: spectral norm of the new coupling block.
        product_seconds: of the pass over the matrix.
        orthogonalise_seconds: of everything else.
    """

    step: int
    vectors: int
    block: int
    coupling_norm: float
    product_seconds: float
    orthogonalise_seconds: float


def growing_schedule(step: int) -> int:
    """The next step at which the stopping rule is asked: 5% further, at least one.

    A check costs an eigendecomposition of `H`, O(m^3); asked at geometrically growing steps they cost in all about
    seven times the last one, and at most 5% of the steps are wasted.
    """
    return step + max(1, math.ceil(0.05 * step))


def block_lanczos(
    operator: LinearMap,
    b: Float64[np.ndarray, "n c"],
    *,
    max_steps: int,
    stop: Callable[[LanczosResult], bool] | None = None,
    check_every: Callable[[int], int] = growing_schedule,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 10,
    on_step: Callable[[StepRecord], None] | None = None,
) -> LanczosResult:
    """Run block Lanczos from the columns of `b` until `stop` says so, the space is invariant or the steps are used up.

    Args:
        operator: symmetric, n x n; one `matmul` with at most c columns per step.
        b: `(n, c)` starting block of any rank; directions below `n eps |b|` are dropped.
        max_steps: most passes over the matrix; basis memory grows to `8 n c max_steps` bytes if all are made.
        stop: asked with a snapshot (views of the basis, valid for ever) after the steps of `check_every`.
        check_every: maps a step to the next one at which `stop` is asked; depends on the step alone, so that a resumed
            run stops where the undisturbed one does.
        checkpoint: restored from first (one that went beyond `max_steps` is used as it is); then appended to every
            `checkpoint_every` steps and at the end.
        checkpoint_every: steps between checkpoints.
        on_step: called after every new step.

    Returns:
        The decomposition, with `reason` CONVERGED, INVARIANT or MAX_STEPS (CONVERGED if there is no `stop`).

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
    run = _Recurrence(operator, b, max_steps)
    saved = 0
    if checkpoint is not None:
        saved = run.restore(checkpoint.replay())
    check_at = 1
    while True:
        step = run.steps
        # Asked on the schedule alone, also right after a restore: a resumed run then ends at the same step.
        while check_at < step:
            check_at = check_every(check_at)
        out_of_steps = step >= max_steps
        reason = Reason.RUNNING
        if run.next_size == 0:
            reason = Reason.INVARIANT
        elif stop is None:
            reason = Reason.CONVERGED if out_of_steps else Reason.RUNNING
        elif step and (step == check_at or out_of_steps) and stop(run.snapshot()):
            reason = Reason.CONVERGED
        elif out_of_steps:
            reason = Reason.MAX_STEPS
        done = reason is not Reason.RUNNING
        if checkpoint is not None and step > saved and (done or step % checkpoint_every == 0):
            checkpoint.append(saved, step, run.since(saved))
            saved = step
        if done:
            return replace(run.snapshot(), reason=reason)
        record = run.advance()
        if on_step is not None:
            on_step(record)


def largest_eigenvalue(operator: LinearMap, *, tolerance: float = 1e-8, max_steps: int = 300, seed: int = 0) -> float:
    """The largest eigenvalue of a positive semi-definite operator, from below.

    Args:
        operator: one `matmul` with one column per step.
        tolerance: relative residual of the Ritz pair; the eigenvalue's error is at most that, and mostly its square.
        max_steps: most passes over the matrix.
        seed: of the random start.
    """
    start = np.random.default_rng(seed).standard_normal((operator.n, 1))

    def stop(result: LanczosResult) -> bool:
        values, vectors = np.linalg.eigh(result.projected)
        residual = np.linalg.norm(result.coupling @ vectors[-result.coupling.shape[1] :, -1])
        return bool(residual <= tolerance * abs(values[-1]))

    result = block_lanczos(operator, start, max_steps=max_steps, stop=stop)
    return float(np.linalg.eigvalsh(result.projected)[-1])


class _Recurrence:
    """The growing state: the basis with the next block behind it, and the blocks of `H`."""

    def __init__(self, operator: LinearMap, b: np.ndarray, max_steps: int) -> None:
        self.operator = operator
        self.n = operator.n
        first, self.start, self.dropped = orthonormal_rows(b.T, self.n * np.finfo(np.float64).eps)
        self.sizes: list[int] = []  # of the finished blocks
        self.diagonals: list[np.ndarray] = []
        self.couplings: list[np.ndarray] = []
        self.drops: list[float] = []
        self.scale = 0.0  # largest |A v| seen: a lower bound of |A|, for the deflation tolerance
        self.count = 0  # vectors of the finished blocks
        self.next_size = len(first)
        self.limit = min(self.n, len(first) * (max_steps + 1))
        self._storage = _reserve(self.limit, self.n)
        self._write(0, first)

    @property
    def steps(self) -> int:
        return len(self.sizes)

    def advance(self) -> StepRecord:
        """One pass over the matrix."""
        low, high = self.count, self.count + self.next_size
        began = time.perf_counter()
        block = self._storage[low:high]
        w = np.array(self.operator.matmul(block.T).T, dtype=np.float64, order="C")
        multiplied = time.perf_counter()
        norms = np.sqrt(np.einsum("ij,ij->i", w, w))
        if not np.isfinite(norms).all():
            raise NumericalError(
                f"the product of step {self.steps + 1} is not finite: a stored tile holds NaN or infinity; "
                "run `ntkpipe verify` to find and recompute it"
            )
        self.scale = max(self.scale, float(norms.max()))
        coefficients = _orthogonalise(self._storage[:high], w)
        diagonal = coefficients[low:high]
        # The rounding of a float64 product is about sqrt(n) eps |A|, signs being random: smaller directions are not the
        # matrix's. One kept by mistake does no harm (its coupling is tiny); one dropped would, hence not n eps.
        tolerance = 8 * math.sqrt(self.n) * float(np.finfo(np.float64).eps) * self.scale
        room = self.n - high
        q, coupling, dropped = orthonormal_rows(w, tolerance, absolute=True, limit=room)
        if len(q) and np.abs(self._storage[:high] @ q.T).max(initial=0.0) > 1e-13:
            # A small remainder is amplified by its normalisation: clean it once more, without changing the recurrence.
            _orthogonalise(self._storage[:high], q)
            q = _polish(q)
        self.sizes.append(self.next_size)
        self.diagonals.append((diagonal + diagonal.T) / 2)
        self.couplings.append(coupling)
        self.drops.append(dropped)
        self.count, self.next_size = high, len(q)
        self._write(high, q)
        finished = time.perf_counter()
        norm = float(np.linalg.norm(coupling, 2)) if coupling.size else 0.0
        return StepRecord(self.steps, high, len(q), norm, multiplied - began, finished - multiplied)

    def snapshot(self) -> LanczosResult:
        """What there is so far; the basis is a view that later steps do not change."""
        m = self.count
        projected = np.zeros((m, m))
        low = 0
        for size, diagonal, coupling in zip(self.sizes, self.diagonals, self.couplings, strict=True):
            high = low + size
            projected[low:high, low:high] = diagonal
            below = high + len(coupling)
            if below <= m:
                projected[high:below, low:high] = coupling
                projected[low:high, high:below] = coupling.T
            low = high
        last = self.couplings[-1] if self.couplings else np.zeros((self.next_size, 0))
        return LanczosResult(
            basis=self._storage[:m],
            block_sizes=list(self.sizes),
            projected=projected,
            coupling=last,
            start=self.start,
            steps=self.steps,
            next_block=self._storage[m : m + self.next_size],
            dropped=self.dropped + sum(self.drops),
        )

    def since(self, step: int) -> dict[str, np.ndarray]:
        """Everything that the steps after `step` have added, as plain arrays."""
        first = sum(self.sizes[:step]) + (0 if step == 0 else self._after(step))
        arrays = {
            "vectors": self._storage[first : self.count + self.next_size],
            "sizes": np.array([*self.sizes[step:], self.next_size], dtype=np.int64),
            "diagonals": _flat(self.diagonals[step:]),
            "couplings": _flat(self.couplings[step:]),
            "drops": np.array(self.drops[step:]),
            "scale": np.array([self.scale]),
        }
        return arrays

    def restore(self, records: Iterable[dict[str, np.ndarray]]) -> int:
        """Continue from what `since` gave in earlier runs.

        Returns:
            The number of steps restored.

        Raises:
            ValueError: if the records were made from another starting block.
        """
        for record in records:
            sizes = [int(size) for size in record["sizes"]]
            vectors = record["vectors"]
            expected = sum(sizes) - (0 if self.steps == 0 else sizes[0])
            if vectors.shape != (expected, self.n) or sizes[0] != self.next_size:
                raise ValueError("the checkpoint does not belong to this operator and starting block: delete it")
            if self.steps == 0 and not np.array_equal(vectors[: sizes[0]], self._storage[: sizes[0]]):
                # Another BLAS may differ in the last bits: R_0 is recomputed, so take the stored block and project.
                projection = vectors[: sizes[0]] @ self._storage[: sizes[0]].T
                if np.abs(projection @ projection.T - np.eye(sizes[0])).max() > 1e-8:
                    raise ValueError("the checkpoint was made from another starting block: delete it")
                self.start = projection @ self.start
            self._write(self.count + (0 if self.steps == 0 else self.next_size), vectors)
            diagonals, couplings = 0, 0
            for size, following in itertools.pairwise(sizes):
                self.diagonals.append(record["diagonals"][diagonals : diagonals + size * size].reshape(size, size))
                self.couplings.append(
                    record["couplings"][couplings : couplings + following * size].reshape(following, size)
                )
                diagonals, couplings = diagonals + size * size, couplings + following * size
                self.sizes.append(size)
                self.count += size
            self.next_size = sizes[-1]
            self.drops.extend(float(drop) for drop in record["drops"])
            self.scale = float(record["scale"][0])
        return self.steps

    def _after(self, step: int) -> int:
        """Size of the block that follows the first `step` ones; it was written with them."""
        return self.sizes[step] if step < self.steps else self.next_size

    def _write(self, at: int, rows: np.ndarray) -> None:
        end = at + len(rows)
        self.limit = max(self.limit, end)  # a restored run may have made more steps than this one asks for
        if end > len(self._storage):
            grown = _reserve(self.limit, self.n, at_least=max(end, min(self.limit, 2 * len(self._storage))))
            grown[:at] = self._storage[:at]
            self._storage = grown
        self._storage[at:end] = rows


def _flat(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([block.ravel() for block in blocks]) if blocks else np.zeros(0)


def _reserve(rows: int, n: int, at_least: int = 0) -> np.ndarray:
    """An uninitialised `(rows, n)` array, or the largest that the system grants.

    The system hands out pages when they are first written, so that reserving the whole basis costs nothing and spares
    the copies of a growing array.
    """
    while True:
        try:
            return np.empty((rows, n))
        except MemoryError:
            if rows // 2 < max(at_least, 1):
                raise
            rows //= 2


def _orthogonalise(basis: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Remove from the rows of `w` (k, n), in place, their components along the rows of `basis` (m, n); two sweeps.

    Returns:
        `(m, k)` the coefficients removed, of both sweeps together.
    """
    coefficients = basis @ w.T
    w -= coefficients.T @ basis
    correction = basis @ w.T
    w -= correction.T @ basis
    return coefficients + correction


def orthonormal_rows(
    rows: np.ndarray, tolerance: float, *, absolute: bool = False, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Factor `rows^T = Q^T R` with orthonormal rows `Q` and numerically full row rank `R`.

    Args:
        rows: `(k, n)`.
        tolerance: directions with singular values at or below it are dropped.
        absolute: if false the tolerance is relative to the largest singular value.
        limit: most directions to keep.

    Returns:
        `Q` (r, n), `R` (r, k), and the spectral norm of what was dropped.
    """
    if rows.shape[0] == 0:
        return np.zeros((0, rows.shape[1])), np.zeros((0, 0)), 0.0
    q, r = np.linalg.qr(rows.T)
    u, singular, vt = scipy.linalg.svd(r, full_matrices=False, check_finite=False)
    bound = tolerance if absolute else tolerance * float(singular[0])
    rank = int(np.count_nonzero(singular > bound))
    if limit is not None:
        rank = min(rank, limit)
    dropped = float(singular[rank]) if rank < len(singular) else 0.0
    return np.ascontiguousarray((q @ u[:, :rank]).T), singular[:rank, None] * vt[:rank], dropped


def _polish(rows: np.ndarray) -> np.ndarray:
    """The orthonormal rows nearest to `rows` (nearly orthonormal): symmetric, so that no direction turns."""
    u, _, vt = scipy.linalg.svd(rows, full_matrices=False, check_finite=False)
    return u @ vt
