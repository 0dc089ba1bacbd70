"""A kernel whose tiles are stored nowhere: each is computed when it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import ImageSource, evaluate_tile
from ntkpipe.tiles.chunk import finite_error
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.layout import Block, Kernel


@dataclass(frozen=True)
class RecomputedTiles:
    """`TileMatrix` of one block of one kernel: the very tiles that a Gram store would hold.

    A tile is computed whole, in the shapes and with the compiled functions of the Gram stage, and cut afterwards: on one
    machine its values are those of the stored tile in every bit. The images of its rows stay prepared while its columns
    pass. Cheap to pickle: addresses and layers.

    Args:
        images: that tiles are computed from.
        evaluation: of this one kernel, or of its even or odd part.
        kernel: `nngp` or `ntk`; one evaluation gives both, and the other is dropped. Of a function `gram`.
        block: `train` or `test`.
        whole: grid of the full data set, as it would be stored.
        grid: its leading block that is read.
        stored_dtype: that tiles are rounded to.
        pairs_per_step: see `Evaluation.tile`.
    """

    images: ImageSource
    evaluation: Evaluates
    kernel: Kernel
    block: Block
    whole: TileGrid
    grid: TileGrid
    stored_dtype: str
    pairs_per_step: int | None = None

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Of the tiles."""
        return np.dtype(self.stored_dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)`, computed now; see `TileMatrix.read`.

        Raises:
            DataError: naming the images, if values are not finite.
            CorruptionError: if the prepared images are damaged.
        """
        shape = self.grid.tile(i, j).shape
        (made,) = evaluate_tile(
            self.images, self.evaluation, self.block, self.whole, i, j, self.stored_dtype, self.pairs_per_step
        )
        tile = made[self.kernel]
        if error := finite_error(tile, self.kernel, self.block, i, j, self.whole.edge):
            raise error
        return tile if tile.shape == shape else np.ascontiguousarray(tile[: shape[0], : shape[1]])

    def leading(self, rows: int, cols: int | None = None) -> RecomputedTiles:
        """The leading block `[:rows, :cols]`."""
        return replace(self, grid=self.grid.leading(rows, cols))
