"""Tiles of a finite network's kernel between all pairs of outputs.

There is one row for every output of every point; the rows of a point are adjacent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.gram.empirical import StoredNetwork
from ntkpipe.gram.function import as_tile, diagonal_of_tiles
from ntkpipe.gram.numbered import runs_of
from ntkpipe.gram.task import ImageSource
from ntkpipe.kernels.accelerator import precision_context

# Block size of rows for which only `k(x, x)` is needed.
_OWN_ROWS = 64


@dataclass(frozen=True)
class OutputPairs:
    """An `Evaluator` of the kernel between all pairs of outputs of a finite network.

    Args:
        network: with its weights in the store.
        points: the source of the points.
        outputs: number c of outputs of the network.
    """

    network: StoredNetwork
    points: ImageSource
    outputs: int

    def evaluation(self, dtype: str) -> PairsEvaluation:
        """See `Evaluator.evaluation`."""
        return PairsEvaluation(self.network, self.points, self.outputs, dtype)


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """The m rows of a tile.

    Args:
        points: u prepared points.
        point: (m,) index of each row's point, below u.
        output: (m,) output of each row.
    """

    points: Any
    point: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class PairsEvaluation:
    """The `Evaluates` of `OutputPairs`; its images are row numbers (`RowNumbers`).

    Args:
        network: see `OutputPairs`.
        points: see `OutputPairs`.
        outputs: see `OutputPairs`.
        dtype: of the computation.
    """

    network: StoredNetwork
    points: ImageSource
    outputs: int
    dtype: str

    @property
    def flips(self) -> bool:
        """False: the weights of one network are not symmetric under flips."""
        return False

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> PreparedRows:
        """See `Evaluates.prepare`; every point is prepared once for all of its outputs."""
        del flipped
        of_point = np.stack([images[:, 0], images[:, 1] // self.outputs], axis=1)
        numbers, point = np.unique(of_point, axis=0, return_inverse=True)
        parts = [self.points.read(block, rows.start, rows.stop) for block, rows in runs_of(numbers)]
        with precision_context(self.dtype):
            made = self.network.read().prepare(np.ascontiguousarray(np.concatenate(parts), dtype=self.dtype))
        return PreparedRows(made, point.reshape(-1), images[:, 1] % self.outputs)

    def tile(
        self,
        rows: PreparedRows,
        columns: PreparedRows | None,
        flipped: None = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.tile`; exactly symmetric if the rows are paired with themselves."""
        del flipped, pad_to, pairs_per_step
        other = rows if columns is None else columns
        with precision_context(self.dtype):
            full = np.asarray(self.network.read().tile(rows.points, other.points).ntk)
        made = full[rows.point[:, None], other.point[None], rows.output[:, None], other.output[None]]
        return [{"ntk": as_tile(made, out_dtype, symmetric=columns is None)}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        return diagonal_of_tiles(self, images, _OWN_ROWS)
