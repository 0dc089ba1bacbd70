"""The block Lanczos recurrence. Each step takes one pass over the matrix, and the basis stays orthonormal to rounding.

Orthogonalisation is first local, then full. `w = A V_j` lies almost completely in the span of the last two blocks. Their components are
removed twice, at a negligible cost. The remaining components along the basis are rounding errors of about `eps |A|`, and one sweep over
all vectors reduces them to `eps |w|`. Normalisation divides by at least the smallest singular value s of the block that is
kept, so the new vectors are orthogonal up to `eps |w| / s`. If `|w| / s` exceeds `_SWEEP_AGAIN`, a second sweep follows on the
normalised block, and "twice is enough" (Giraud et al. 2005, doi:10.1007/s00211-005-0615-4). The criterion is the loss of
norm in a sweep (Daniel et al. 1976), with the smallest singular value instead of the norm of one vector, so that it covers every
direction of the block. Real kernels usually need one sweep.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.basis import Basis
from ntkpipe.linalg.block_tridiagonal import BlockTridiagonal
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.steps import Checkpoint

# Limit on the loss of orthogonality in units of eps. Larger values saved no sweep on the measured kernels.
_SWEEP_AGAIN = 32.0


@dataclass(frozen=True)
class StepRecord:
    """Record of one step, for lines of progress and for the convergence figure.

    Args:
        step: number of the step, from 1.
        vectors: number of vectors in the basis after this step.
        block: number of vectors of the next block.
        coupling_norm: spectral norm of the new coupling block.
        product_seconds: seconds of the pass over the matrix.
        orthogonalise_seconds: seconds of everything else.
        sweeps: number of sweeps over the whole basis, 1 or 2.
    """

    step: int
    vectors: int
    block: int
    coupling_norm: float
    product_seconds: float
    orthogonalise_seconds: float
    sweeps: int


class Recurrence:
    """The growing state: the basis, which ends with the next block, and the blocks of the projected matrix.

    Args:
        operator: symmetric, n x n.
        b: `(n, c)` finite starting block.
        basis: an empty basis for the vectors.
        checkpoint: the checkpoint to which the caller appends the arrays of `since`. With None, blocks that only a checkpoint needs are
            not kept.
    """

    def __init__(self, operator: LinearMap, b: np.ndarray, basis: Basis, checkpoint: Checkpoint | None) -> None:
        self.operator = operator
        self.n = operator.n
        self.basis = basis
        first, self.start, self.dropped = orthonormal_rows(b.T, self.n * np.finfo(np.float64).eps)
        self.sizes: list[int] = []  # sizes of the finished blocks
        self.diagonals: list[np.ndarray] = []
        self.couplings: list[np.ndarray] = []
        self.drops: list[float] = []
        self.theta, self.arrow = np.zeros(0), np.zeros((0, 0))  # the head after a restart
        self.scale = 0.0  # largest |A v| so far, a lower bound of |A|, for the deflation tolerance
        self.steps = 0  # number of passes over all cycles
        self.recent = [self._as_stored(first)]  # blocks that are in no checkpoint yet; the next block is the last
        self._previous = np.zeros((0, self.n))
        self._checkpoint = checkpoint
        self._saved = False
        self._store(self.recent[-1])
        basis.recover_from(self._kept)

    @property
    def count(self) -> int:
        """Number of vectors of the finished blocks and of the head."""
        return len(self.theta) + sum(self.sizes)

    @property
    def next_block(self) -> np.ndarray:
        """The vectors `(k, n)` that the next step multiplies."""
        return self.recent[-1]

    @property
    def next_size(self) -> int:
        """Number of vectors of the next block; 0 if the space is invariant."""
        return len(self.recent[-1])

    @property
    def last_coupling(self) -> np.ndarray:
        """The coupling `(k_next, k_last)` to the next block."""
        return self.couplings[-1] if self.couplings else np.zeros((self.next_size, 0))

    def _as_stored(self, block: np.ndarray) -> np.ndarray:
        """Return new vectors (k, n) with the values that the basis stores."""
        return block

    def _store(self, block: np.ndarray) -> None:
        """Add new vectors (k, n) to the basis, with the values that it stores."""
        self.basis.append(block)

    def _couple(self, coefficients: np.ndarray) -> None:
        """Use the coefficients (m, k) that were removed from the last product along all vectors of the basis."""
        del coefficients

    @property
    def start_error(self) -> np.ndarray | None:
        """(c,) norms of the part of the starting block that the first block does not represent; None if rounding alone is left."""
        return None

    def pencil(self, m: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the projected matrix and the Gram matrix of the first m vectors; None if the vectors are orthonormal to rounding."""
        del m
        return None

    def matrix(self) -> BlockTridiagonal:
        """The projected matrix so far."""
        return BlockTridiagonal(
            list(self.diagonals), self.couplings[:-1], self.theta, self.arrow if len(self.theta) else None
        )

    def advance(self) -> StepRecord:
        """Make one pass over the matrix.

        Raises:
            NumericalError: if the product is not finite.
        """
        began = time.perf_counter()
        block = self.next_block
        w = np.array(self.operator.matmul(block.T).T, dtype=np.float64, order="C")
        multiplied = time.perf_counter()
        norms = np.sqrt(np.einsum("ij,ij->i", w, w))
        if not np.isfinite(norms).all():
            raise NumericalError(
                f"the product of step {self.steps + 1} is not finite: a stored tile holds NaN or infinity; "
                "run `ntkpipe verify` to find and recompute it"
            )
        self.scale = max(self.scale, float(norms.max()))
        diagonal = np.zeros((len(block), len(block)))
        removed = np.zeros((len(self.basis), len(block)))
        if not self.sizes and len(self.theta):
            diagonal += self.basis.remove(w)[self.count :]  # the head is coupled only to this block, by `arrow`
        for _ in range(2):
            for near in (self._previous, block):
                coefficients = near @ w.T
                w -= coefficients.T @ near
                end = len(self.basis) - (0 if near is block else len(block))
                removed[end - len(near) : end] += coefficients
            diagonal += coefficients
        before = float(np.linalg.norm(w))
        swept = self.basis.remove(w)
        diagonal += swept[self.count :]
        # Rounding errors of a float64 product have random signs and a norm of about sqrt(n) eps |A|. Smaller directions are rounding. A
        # rounding direction that is kept is harmless, because its coupling is tiny. A true direction that is dropped is not, so the
        # tolerance is not n eps.
        tolerance = 8 * math.sqrt(self.n) * float(np.finfo(np.float64).eps) * self.scale
        q, coupling, dropped = orthonormal_rows(w, tolerance, absolute=True, limit=self.n - len(self.basis))
        sweeps = 1
        # The rows of `coupling` are orthogonal, and the norm of the last one is the smallest singular value that is kept.
        if len(q) and before > _SWEEP_AGAIN * float(np.linalg.norm(coupling[-1])):
            self.basis.remove(q)  # the recurrence does not change
            q = _polish(q)
            sweeps = 2
        self.sizes.append(len(block))
        self.diagonals.append((diagonal + diagonal.T) / 2)
        self.couplings.append(coupling)
        self.drops.append(dropped)
        self.steps += 1
        self._previous = block
        self._couple(removed + swept)
        q = self._as_stored(q)
        self.recent = [*self.recent, q] if self._checkpoint else [q]
        self._store(q)
        finished = time.perf_counter()
        norm = float(np.linalg.norm(coupling, 2)) if coupling.size else 0.0
        return StepRecord(self.steps, self.count, len(q), norm, multiplied - began, finished - multiplied, sweeps)

    def restart(self, theta: np.ndarray, rotation: np.ndarray) -> Recurrence:
        """Keep only `p` Ritz vectors and the next block (Wu & Simon 2000, doi:10.1137/S0895479898334605).

        Args:
            theta: `(p,)` Ritz values to keep.
            rotation: `(m, p)` their Ritz vectors in the coordinates of the basis.
        """
        k, last = self.last_coupling.shape
        kept = np.zeros((len(self.basis), len(theta) + k))
        kept[: len(rotation), : len(theta)] = rotation
        kept[len(rotation) :, len(theta) :] = np.eye(k)
        self.arrow = self.last_coupling @ rotation[len(rotation) - last :]
        self.theta = theta
        self.basis.rotate(kept)
        self.sizes, self.diagonals, self.couplings = [], [], []
        self.dropped, self.drops = self.dropped + sum(self.drops), []
        self.recent = [self.next_block]
        self._previous = np.zeros((0, self.n))
        return self

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Set the checkpoint that gets `state` and `since` from the next restart on."""
        self._checkpoint = checkpoint

    def state(self) -> dict[str, np.ndarray]:
        """The complete state directly after a restart."""
        self._saved = True
        return {
            "vectors": self.basis.array(),
            "theta": self.theta,
            "arrow": self.arrow,
            "scale": np.array([self.scale]),
            "dropped": np.array([self.dropped + sum(self.drops)]),
            "steps": np.array([self.steps]),
        }

    @classmethod
    def resumed(
        cls, operator: LinearMap, state: dict[str, np.ndarray], basis: Basis, checkpoint: Checkpoint
    ) -> Recurrence:
        """Continue from a `state` with an empty basis. The state does not contain `start`."""
        run = cls(operator, np.zeros((operator.n, 0)), basis, checkpoint)
        run.theta, run.arrow = state["theta"], state["arrow"]
        run.scale, run.dropped, run.steps = float(state["scale"][0]), float(state["dropped"][0]), int(state["steps"][0])
        run._saved = True
        basis.append(state["vectors"])
        run.recent = [state["vectors"][len(run.theta) :]]
        return run

    def since(self, step: int) -> dict[str, np.ndarray]:
        """The new data of the steps after `step` of this cycle, as plain arrays.

        Only data since the last call is available: `step` is the number of steps at that call, or 0 at first and after a restart.
        """
        vectors = np.concatenate(self.recent[1:] if self._saved else self.recent)
        arrays = {
            **self._record(vectors, step),
            "sizes": np.array([*self.sizes[step:], self.next_size], dtype=np.int64),
            "diagonals": _flat(self.diagonals[step:]),
            "couplings": _flat(self.couplings[step:]),
            "drops": np.array(self.drops[step:]),
            "scale": np.array([self.scale]),
        }
        self.recent, self._saved = [self.next_block], True
        return arrays

    def _record(self, vectors: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """Return the vectors (k, n) of `since` as stored, with everything else that the steps after `step` have added."""
        del step
        return {"vectors": vectors}

    def _kept(self) -> Iterator[np.ndarray]:
        """All vectors of this cycle, from the checkpoint and from the steps since then."""
        if self._checkpoint is not None and self._saved:
            for record in self._checkpoint.replay():
                yield record["vectors"]
        yield from self.recent[1:] if self._saved else self.recent

    def restore(self, records: Iterable[dict[str, np.ndarray]]) -> int:
        """Continue from the arrays of `since` of earlier runs. No step may have been taken before.

        Returns:
            The number of steps restored.

        Raises:
            ValueError: if the records were made from another starting block.
        """
        for record in records:
            sizes = [int(size) for size in record["sizes"]]
            vectors = record["vectors"].astype(np.float64, copy=False)
            fresh = not self._saved
            expected = sum(sizes) - (0 if fresh else sizes[0])
            if vectors.shape != (expected, self.n) or sizes[0] != self.next_size:
                raise ValueError("the checkpoint does not belong to this operator and starting block: delete it")
            blocks = np.split(vectors, np.cumsum(sizes if fresh else sizes[1:])[:-1])
            if fresh and not np.array_equal(blocks[0], self.next_block):
                # Another BLAS may differ in the last bits. So the stored block is used, and R_0 is projected on it.
                projection = blocks[0] @ self.next_block.T
                if np.abs(projection @ projection.T - np.eye(sizes[0])).max(initial=0.0) > self._same_start:
                    raise ValueError("the checkpoint was made from another starting block: delete it")
                self._turn_start(projection, blocks[0])
                self.basis.rotate(np.zeros((sizes[0], 0)))
                self.basis.append(blocks[0])
                self.recent = [blocks[0]]
            self._restore_products(sizes if fresh else sizes[1:], record, fresh=fresh)
            blocks = blocks[1:] if fresh else blocks
            diagonals, couplings = 0, 0
            for size, following in itertools.pairwise(sizes):
                self.diagonals.append(record["diagonals"][diagonals : diagonals + size * size].reshape(size, size))
                self.couplings.append(
                    record["couplings"][couplings : couplings + following * size].reshape(following, size)
                )
                diagonals, couplings = diagonals + size * size, couplings + following * size
            self.sizes.extend(sizes[:-1])
            self.steps += len(sizes) - 1
            for block in blocks:
                self.basis.append(block)
            if blocks:
                self._previous = blocks[-2] if len(blocks) > 1 else self.recent[-1]
                self.recent = [blocks[-1]]
            self._saved = True
            self.drops.extend(float(drop) for drop in record["drops"])
            self.scale = float(record["scale"][0])
        return self.steps

    _same_start = 1e-8
    """Largest deviation from an orthogonal matrix of the products of two first blocks that span the same space."""

    def _turn_start(self, turn: np.ndarray, first: np.ndarray) -> None:
        """Set `start` for another first block (k, n), given its products (k, k) with the present one."""
        del first
        self.start = turn @ self.start

    def _restore_products(self, sizes: list[int], record: dict[str, np.ndarray], *, fresh: bool) -> None:
        """Restore what `_record` returned besides the vectors, for new blocks of these sizes; `fresh` if they include the first block."""
        del sizes, record, fresh


def orthonormal_rows(
    rows: np.ndarray, tolerance: float, *, absolute: bool = False, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Factor `rows^T = Q^T R` with orthonormal rows `Q` and an `R` of numerically full row rank.

    Args:
        rows: `(k, n)`.
        tolerance: directions with singular values at or below it are dropped.
        absolute: whether the tolerance is absolute; otherwise it is relative to the largest singular value.
        limit: largest number of directions to keep; None is unlimited.

    Returns:
        `Q` (r, n), `R` (r, k) with orthogonal rows of decreasing norm, and the spectral norm of the dropped part.
    """
    if rows.shape[0] == 0:
        return np.zeros((0, rows.shape[1])), np.zeros((0, 0)), 0.0
    q, r = _qr(rows)
    u, singular, vt = np.linalg.svd(r, full_matrices=False)
    bound = tolerance if absolute else tolerance * float(singular[0])
    rank = int(np.count_nonzero(singular > bound))
    if limit is not None:
        rank = min(rank, limit)
    dropped = float(singular[rank]) if rank < len(singular) else 0.0
    return u[:, :rank].T @ q, singular[:rank, None] * vt[:rank], dropped


def _qr(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows^T = Q^T R` with orthonormal rows `Q` (k, n) and `R` (k, k) for `k <= n`; otherwise both have fewer rows.

    If the condition is below 1e5, it uses Cholesky factors of the Gram matrix twice (Yamamoto et al. 2015). The first round is
    orthogonal to 1e-5, and the second to rounding. This takes only products: 12 ms for 9 vectors of length 50,000 on a busy
    machine, where Householder's method takes 64 ms. Nearly dependent rows use Householder's method. The code here and around it uses only
    NumPy's BLAS. SciPy has another BLAS, and the threads of the last one that was called spin and occupy the cores.
    """
    gram = rows @ rows.T
    values = np.linalg.eigvalsh(gram)
    if not (len(rows) <= rows.shape[1] and values[0] > 1e-10 * values[-1]):
        q, r = np.linalg.qr(rows.T)
        return np.ascontiguousarray(q.T), r
    first = np.linalg.cholesky(gram)
    q = _forward(first, rows)
    second = np.linalg.cholesky(q @ q.T)
    q = _forward(second, q)
    return q, (first @ second).T


def _forward(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`lower^-1 rows` (k, n) by forward substitution, row by row: NumPy's `solve` copies long rows, and takes four times as long."""
    solved = np.empty_like(rows)
    for i in range(len(rows)):
        solved[i] = (rows[i] - lower[i, :i] @ solved[:i]) / lower[i, i]
    return solved


def _flat(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([block.ravel() for block in blocks]) if blocks else np.zeros(0)


def _polish(rows: np.ndarray) -> np.ndarray:
    """The orthonormal rows nearest to the nearly orthonormal `rows`. Symmetric orthogonalisation changes every direction least."""
    u, _, vt = np.linalg.svd(rows, full_matrices=False)
    return u @ vt
