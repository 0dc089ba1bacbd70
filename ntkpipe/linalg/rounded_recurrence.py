"""The block Lanczos recurrence with a basis that is rounded to float32; see `rounded_basis`."""

from __future__ import annotations

import numpy as np

from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.recurrence import Recurrence
from ntkpipe.linalg.rounded_basis import Projection, RoundedBasis, rounded
from ntkpipe.linalg.steps import Checkpoint


class RoundedRecurrence(Recurrence):
    """A `Recurrence` whose vectors are rounded. Its blocks are accurate only to 1e-7, so it also keeps the exact projection.

    Arguments are those of `Recurrence`.
    """

    _same_start = 1e-6

    def __init__(self, operator: LinearMap, b: np.ndarray, basis: RoundedBasis, checkpoint: Checkpoint | None) -> None:
        self._targets = b
        self._projection = Projection()
        super().__init__(operator, b, basis, checkpoint)
        self._fit_start(self.next_block)

    @property
    def start_error(self) -> np.ndarray:
        """See `Recurrence.start_error`."""
        return self._start_error

    def pencil(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Recurrence.pencil`."""
        return self._projection.kernel(m), self._projection.gram(m)

    def _fit_start(self, first: np.ndarray) -> None:
        """Set `start` to the least-squares coordinates of the starting block in the rounded first block."""
        if len(first):
            self.start = np.linalg.solve(first @ first.T, first @ self._targets)
        self._start_error = np.linalg.norm(self._targets - first.T @ self.start, axis=0)

    def _as_stored(self, block: np.ndarray) -> np.ndarray:
        return rounded(block)

    def _store(self, block: np.ndarray) -> None:
        super()._store(block)
        self._projection.append(self.basis.times(block).T)

    def _couple(self, coefficients: np.ndarray) -> None:
        self._projection.couple(coefficients)

    def _record(self, vectors: np.ndarray, step: int) -> dict[str, np.ndarray]:
        products = self._projection.since(len(self._projection.sizes) - len(self.recent) + self._saved, step)
        return {"vectors": vectors.astype(np.float32), **products}  # exact, because the vectors are rounded

    def _turn_start(self, turn: np.ndarray, first: np.ndarray) -> None:
        super()._turn_start(turn, first)
        self._fit_start(first)

    def _restore_products(self, sizes: list[int], record: dict[str, np.ndarray], *, fresh: bool) -> None:
        if fresh:
            self._projection = Projection()
        self._projection.restore(sizes, record)
