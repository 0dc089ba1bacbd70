"""The block Lanczos recurrence: one pass over the matrix at a time, its basis kept orthonormal to rounding.

Orthogonalisation is local first, then in full. `w = A V_j` lies almost wholly in the last two blocks: they are removed
twice, at no cost to speak of. What is then left along the whole basis is rounding, about `eps |A|`, and one sweep over
all vectors takes it down to `eps |w|`. Normalising divides by at most the smallest singular value s of the block that is
kept, so that the new vectors are orthogonal to `eps |w| / s`: only where that ratio exceeds `_SWEEP_AGAIN` a second sweep
follows, on the normalised block, after which "twice is enough" (Giraud et al. 2005, doi:10.1007/s00211-005-0615-4). The
criterion is that of Daniel et al. 1976, the norm lost by a sweep, with the smallest singular value in place of the norm of
one vector: it covers every direction of the block. On real kernels one sweep is the rule.
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

# Orthogonality stays below this many eps per vector; larger values save no sweep on the kernels that were measured.
_SWEEP_AGAIN = 32.0


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
        sweeps: over the whole basis, 1 or 2.
    """

    step: int
    vectors: int
    block: int
    coupling_norm: float
    product_seconds: float
    orthogonalise_seconds: float
    sweeps: int


class Recurrence:
    """The growing state: the basis with the next block behind it, and the blocks of the projected matrix.

    Args:
        operator: symmetric, n x n.
        b: `(n, c)` finite starting block.
        basis: empty; takes the vectors.
        checkpoint: to which the caller appends what `since` gives; None lets go of blocks that only it would need.
    """

    def __init__(self, operator: LinearMap, b: np.ndarray, basis: Basis, checkpoint: Checkpoint | None) -> None:
        self.operator = operator
        self.n = operator.n
        self.basis = basis
        first, self.start, self.dropped = orthonormal_rows(b.T, self.n * np.finfo(np.float64).eps)
        self.sizes: list[int] = []  # of the finished blocks
        self.diagonals: list[np.ndarray] = []
        self.couplings: list[np.ndarray] = []
        self.drops: list[float] = []
        self.theta, self.arrow = np.zeros(0), np.zeros((0, 0))  # the head that a restart leaves
        self.scale = 0.0  # largest |A v| seen: a lower bound of |A|, for the deflation tolerance
        self.steps = 0  # passes, over all cycles
        self.recent = [first]  # blocks that no checkpoint holds, the next one last
        self._previous = np.zeros((0, self.n))
        self._checkpoint = checkpoint
        self._saved = False
        basis.append(first)
        basis.recover_from(self._kept)

    @property
    def count(self) -> int:
        """Vectors of the finished blocks and of the head."""
        return len(self.theta) + sum(self.sizes)

    @property
    def next_block(self) -> np.ndarray:
        """`(k, n)`, the vectors that the next step multiplies."""
        return self.recent[-1]

    @property
    def next_size(self) -> int:
        """Their number; 0 where the space is invariant."""
        return len(self.recent[-1])

    @property
    def last_coupling(self) -> np.ndarray:
        """`(k_next, k_last)`, to the next block."""
        return self.couplings[-1] if self.couplings else np.zeros((self.next_size, 0))

    def matrix(self) -> BlockTridiagonal:
        """The projected matrix so far."""
        return BlockTridiagonal(
            list(self.diagonals), self.couplings[:-1], self.theta, self.arrow if len(self.theta) else None
        )

    def advance(self) -> StepRecord:
        """One pass over the matrix.

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
        if not self.sizes and len(self.theta):
            diagonal += self.basis.remove(w)[self.count :]  # the head couples to this block alone, by `arrow`
        for _ in range(2):
            for near in (self._previous, block):
                coefficients = near @ w.T
                w -= coefficients.T @ near
            diagonal += coefficients
        before = float(np.linalg.norm(w))
        diagonal += self.basis.remove(w)[self.count :]
        # The rounding of a float64 product is about sqrt(n) eps |A|, signs being random: smaller directions are not the
        # matrix's. One kept by mistake does no harm (its coupling is tiny); one dropped would, hence not n eps.
        tolerance = 8 * math.sqrt(self.n) * float(np.finfo(np.float64).eps) * self.scale
        q, coupling, dropped = orthonormal_rows(w, tolerance, absolute=True, limit=self.n - len(self.basis))
        sweeps = 1
        # The rows of `coupling` are orthogonal, the last one's norm is the smallest singular value kept.
        if len(q) and before > _SWEEP_AGAIN * float(np.linalg.norm(coupling[-1])):
            self.basis.remove(q)  # without changing the recurrence
            q = _polish(q)
            sweeps = 2
        self.sizes.append(len(block))
        self.diagonals.append((diagonal + diagonal.T) / 2)
        self.couplings.append(coupling)
        self.drops.append(dropped)
        self.steps += 1
        self._previous = block
        self.recent = [*self.recent, q] if self._checkpoint else [q]
        self.basis.append(q)
        finished = time.perf_counter()
        norm = float(np.linalg.norm(coupling, 2)) if coupling.size else 0.0
        return StepRecord(self.steps, self.count, len(q), norm, multiplied - began, finished - multiplied, sweeps)

    def restart(self, theta: np.ndarray, rotation: np.ndarray) -> Recurrence:
        """Keep `p` Ritz vectors and the next block alone (Wu & Simon 2000, doi:10.1137/S0895479898334605).

        Args:
            theta: `(p,)` Ritz values kept.
            rotation: `(m, p)` their vectors in the coordinates of the basis.
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
        """From the next restart on, `state` and `since` go to this checkpoint."""
        self._checkpoint = checkpoint

    def state(self) -> dict[str, np.ndarray]:
        """Everything, right after a restart."""
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
        """Go on from what `state` gave, into an empty basis; `start` is lost."""
        run = cls(operator, np.zeros((operator.n, 0)), basis, checkpoint)
        run.theta, run.arrow = state["theta"], state["arrow"]
        run.scale, run.dropped, run.steps = float(state["scale"][0]), float(state["dropped"][0]), int(state["steps"][0])
        run._saved = True
        basis.append(state["vectors"])
        run.recent = [state["vectors"][len(run.theta) :]]
        return run

    def since(self, step: int) -> dict[str, np.ndarray]:
        """Everything that the steps after `step` of this cycle have added, as plain arrays.

        Only what follows the last call is at hand: `step` is the number of steps then, or 0 at first and after a restart.
        """
        arrays = {
            "vectors": np.concatenate(self.recent[1:] if self._saved else self.recent),
            "sizes": np.array([*self.sizes[step:], self.next_size], dtype=np.int64),
            "diagonals": _flat(self.diagonals[step:]),
            "couplings": _flat(self.couplings[step:]),
            "drops": np.array(self.drops[step:]),
            "scale": np.array([self.scale]),
        }
        self.recent, self._saved = [self.next_block], True
        return arrays

    def _kept(self) -> Iterator[np.ndarray]:
        """All vectors of this cycle again: from the checkpoint, and from the steps since then."""
        if self._checkpoint is not None and self._saved:
            for record in self._checkpoint.replay():
                yield record["vectors"]
        yield from self.recent[1:] if self._saved else self.recent

    def restore(self, records: Iterable[dict[str, np.ndarray]]) -> int:
        """Continue from what `since` gave in earlier runs; nothing may have been done before.

        Returns:
            The number of steps restored.

        Raises:
            ValueError: if the records were made from another starting block.
        """
        for record in records:
            sizes = [int(size) for size in record["sizes"]]
            vectors = record["vectors"]
            fresh = not self._saved
            expected = sum(sizes) - (0 if fresh else sizes[0])
            if vectors.shape != (expected, self.n) or sizes[0] != self.next_size:
                raise ValueError("the checkpoint does not belong to this operator and starting block: delete it")
            blocks = np.split(vectors, np.cumsum(sizes if fresh else sizes[1:])[:-1])
            if fresh and not np.array_equal(blocks[0], self.next_block):
                # Another BLAS may differ in the last bits: R_0 is recomputed, so take the stored block and project.
                projection = blocks[0] @ self.next_block.T
                if np.abs(projection @ projection.T - np.eye(sizes[0])).max(initial=0.0) > 1e-8:
                    raise ValueError("the checkpoint was made from another starting block: delete it")
                self.start = projection @ self.start
                self.basis.rotate(np.zeros((sizes[0], 0)))
                self.basis.append(blocks[0])
                self.recent = [blocks[0]]
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
        `Q` (r, n), `R` (r, k) with orthogonal rows of decreasing norm, and the spectral norm of what was dropped.
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
    """`rows^T = Q^T R` with orthonormal rows `Q` (k, n) and `R` (k, k), for `k <= n`; fewer rows of both otherwise.

    By Cholesky factors of the Gram matrix, twice (Yamamoto et al. 2015), where the condition is below 1e5: the first round is
    then orthogonal to 1e-5, the second to rounding. Products alone: 12 ms for 9 vectors of 50,000 on a busy machine, where
    Householder's takes 64. Householder's where the rows are nearly dependent. NumPy's BLAS alone, here and around it: SciPy has
    another one, and the threads of the one that was called last spin on the cores that the other wants.
    """
    gram = rows @ rows.T
    values = np.linalg.eigvalsh(gram)
    if not (len(rows) <= rows.shape[1] and values[0] > 1e-10 * values[-1]):
        q, r = np.linalg.qr(rows.T)
        return np.ascontiguousarray(q.T), r
    first = np.linalg.cholesky(gram)
    q = np.linalg.solve(first, rows)
    second = np.linalg.cholesky(q @ q.T)
    q = np.linalg.solve(second, q)
    return np.ascontiguousarray(q), (first @ second).T


def _flat(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([block.ravel() for block in blocks]) if blocks else np.zeros(0)


def _polish(rows: np.ndarray) -> np.ndarray:
    """The orthonormal rows nearest to `rows` (nearly orthonormal): symmetric, so that no direction turns."""
    u, _, vt = np.linalg.svd(rows, full_matrices=False)
    return u @ vt
