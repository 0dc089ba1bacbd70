"""A kernel without stored tiles: each tile is computed on every read."""

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
    """A `TileMatrix` of one block of one kernel, with the same tiles as a Gram store.

    A tile is computed whole, with the shapes and the compiled functions of the Gram stage, and cut afterwards. So its
    values equal the stored tile bit by bit on the same machine. The prepared images of its rows are reused while the
    columns change. It is cheap to pickle, because it contains addresses and layers only.

    Args:
        images: the source of the images.
        evaluation: of this kernel, or of its even or odd part.
        kernel: `nngp` or `ntk`, or `gram` for a function. One evaluation computes both kernels of a network; the other
            is dropped.
        block: `train` or `test`.
        whole: grid of the full data set, as it would be stored.
        grid: the leading block of `whole` that is read.
        stored_dtype: dtype to which tiles are rounded.
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
        """The dtype of the tiles."""
        return np.dtype(self.stored_dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Compute tile `(i, j)`; see `TileMatrix.read`.

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
