"""Points of a tile that are known by number, where what they are made of is read elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.tiles.layout import Block

_BLOCKS: tuple[Block, Block] = ("train", "test")


@dataclass(frozen=True)
class RowNumbers:
    """`ImageSource` of numbers: `(n, 2)`, which block a point is of, and which row of it."""

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """See `ImageSource.read`."""
        rows = np.arange(start, stop, dtype=np.int64)
        return np.stack([np.full_like(rows, _BLOCKS.index(block)), rows], axis=1)


def runs_of(numbers: np.ndarray) -> Iterator[tuple[Block, slice]]:
    """Rows that follow each other in one block, which are read together.

    Args:
        numbers: (n, 2), as `RowNumbers` gives them, at least one.
    """
    cuts = np.flatnonzero((np.diff(numbers[:, 0]) != 0) | (np.diff(numbers[:, 1]) != 1)) + 1
    for run in np.split(numbers, cuts):
        yield _BLOCKS[int(run[0, 0])], slice(int(run[0, 1]), int(run[-1, 1]) + 1)
