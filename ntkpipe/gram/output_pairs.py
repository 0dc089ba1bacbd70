"""Tiles of a finite network's kernel between all pairs of outputs: a row for every output of every point, those of a point together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.gram.empirical import StoredNetwork
from ntkpipe.gram.numbered import runs_of
from ntkpipe.gram.task import ImageSource
from ntkpipe.kernels.accelerator import precision_context

# Rows of which only `k(x, x)` is wanted are paired together.
_OWN_ROWS = 64


@dataclass(frozen=True)
class OutputPairs:
    """See `Evaluator`.

    Args:
        network: whose weights lie in the store.
        points: whose outputs the rows are.
        outputs: c of the network.
    """

    network: StoredNetwork
    points: ImageSource
    outputs: int

    def evaluation(self, dtype: str) -> PairsEvaluation:
        """See `Evaluator.evaluation`."""
        return PairsEvaluation(self.network, self.points, self.outputs, dtype)


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """Rows of a tile.

    Args:
        points: prepared, (u,).
        point: (m,) which of them a row is of.
        output: (m,) and which output.
    """

    points: Any
    point: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class PairsEvaluation:
    """See `Evaluates`; rows are known by number (`RowNumbers`).

    Args:
        network, points, outputs: see `OutputPairs`.
        dtype: of the computation.
    """

    network: StoredNetwork
    points: ImageSource
    outputs: int
    dtype: str

    @property
    def flips(self) -> bool:
        """Weights break the symmetry under flips."""
        return False

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> PreparedRows:
        """See `Evaluates.prepare`; every point once, however many of its outputs are asked for."""
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
        """See `Evaluates.tile`; exactly symmetric where rows are paired with themselves."""
        del flipped, pad_to, pairs_per_step
        other = rows if columns is None else columns
        with precision_context(self.dtype):
            full = np.asarray(self.network.read().tile(rows.points, other.points).ntk)
        made = full[rows.point[:, None], other.point[None], rows.output[:, None], other.output[None]]
        if columns is None:
            made = (made + made.T) / 2
        return [{"ntk": np.ascontiguousarray(made, dtype=out_dtype)}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        parts = []
        for start in range(0, len(images), _OWN_ROWS):
            block = self.prepare(images[start : start + _OWN_ROWS])
            parts.append(self.tile(block, None, out_dtype="float64")[0]["ntk"].diagonal())
        return [{"ntk": np.concatenate(parts)}]
