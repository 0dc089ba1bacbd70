"""The list of the missing tiles of a Gram stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.task import GramJob
from ntkpipe.tiles.layout import Block


@dataclass(frozen=True, eq=False)
class Missing:
    """Tiles and parts of diagonals that lacked a receipt in at least one store when they were listed. False if empty.

    Tasks look for the receipt again before they compute a tile, so a tile that another run has stored since is not
    computed twice.

    Args:
        tiles: by block, (m, 2) integer rows and columns of tiles, in the order of the grid. There may be millions.
        diagonals: by block, (k,) rows of tiles.
    """

    tiles: Mapping[Block, np.ndarray]
    diagonals: Mapping[Block, np.ndarray]

    def __bool__(self) -> bool:
        return any(len(found) for found in (*self.tiles.values(), *self.diagonals.values()))

    def describe(self) -> str:
        """A description of the first missing tile; empty if none is missing."""
        for block, rows in self.diagonals.items():
            if len(tiles := self.tiles[block]):
                return f"tile ({tiles[0, 0]}, {tiles[0, 1]}) of {block}"
            if len(rows):
                return f"part {rows[0]} of the diagonal of {block}"
        return ""


NOTHING = Missing({}, {})


def list_missing(job: GramJob, plan: GramPlan) -> Missing:
    """List the diagonals of the plan, and its tiles if the plan stores tiles, that at least one store of the job lacks."""
    address = np.dtype((np.int32, 2))
    return Missing(
        {
            block.block: np.fromiter(
                ((tile.i, tile.j) for tile in (job.missing(block.block, block.used) if plan.stored else ())), address
            )
            for block in plan.blocks
        },
        {
            block.block: np.fromiter(job.missing_diagonal(block.block, block.used.rows), np.int32)
            for block in plan.blocks
        },
    )
