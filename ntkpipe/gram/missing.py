"""What a Gram stage has left to compute, listed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.task import GramJob
from ntkpipe.tiles.layout import Block


@dataclass(frozen=True, eq=False)
class Missing:
    """Tiles and parts of diagonals that had no receipt in one of the stores when these were listed. False if there are none.

    Tasks ask again at every tile: what somebody else has computed since is found, not computed twice.

    Args:
        tiles: by block, (m, 2) rows and columns of tiles, in the grid's order; integers, since there may be millions.
        diagonals: by block, (k,) rows of tiles.
    """

    tiles: Mapping[Block, np.ndarray]
    diagonals: Mapping[Block, np.ndarray]

    def __bool__(self) -> bool:
        return any(len(found) for found in (*self.tiles.values(), *self.diagonals.values()))

    def describe(self) -> str:
        """The first that is missing, for people; empty if none is."""
        for block, rows in self.diagonals.items():
            if len(tiles := self.tiles[block]):
                return f"tile ({tiles[0, 0]}, {tiles[0, 1]}) of {block}"
            if len(rows):
                return f"part {rows[0]} of the diagonal of {block}"
        return ""


NOTHING = Missing({}, {})


def list_missing(job: GramJob, plan: GramPlan) -> Missing:
    """What the plan wants and any store of the job lacks: tiles, if they are stored, and diagonals."""
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
