"""Points of a tile as row numbers; the code that evaluates them reads their data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.tiles.layout import Block

_BLOCKS: tuple[Block, Block] = ("train", "test")


@dataclass(frozen=True)
class RowNumbers:
    """An `ImageSource` that returns numbers (n, 2): 0 for a train or 1 for a test point, and its row in that block."""

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """See `ImageSource.read`."""
        rows = np.arange(start, stop, dtype=np.int64)
        return np.stack([np.full_like(rows, _BLOCKS.index(block)), rows], axis=1)


def runs_of(numbers: np.ndarray) -> Iterator[tuple[Block, slice]]:
    """Runs of consecutive rows in one block, so that each run is read at once.

    Args:
        numbers: (n, 2) as `RowNumbers.read` returns them, n at least 1.
    """
    cuts = np.flatnonzero((np.diff(numbers[:, 0]) != 0) | (np.diff(numbers[:, 1]) != 1)) + 1
    for run in np.split(numbers, cuts):
        yield _BLOCKS[int(run[0, 0])], slice(int(run[0, 1]), int(run[-1, 1]) + 1)
