"""Settings of the tiles of the Gram matrix and of their store."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice


@dataclass(frozen=True)
class GridConfig:
    """Division of the Gram matrix into tiles.

    Args:
        edge: rows of a tile. By default the edge of a store that already has the same kernel and data, or a value
            that fits the size of the data set and the time per pair.
        pairs_per_step: columns of a tile that pass through the layers of a convolutional network together. By default
            the fastest of a few values; if `edge` is given too, nothing is measured.
    """

    edge: int | None = None
    pairs_per_step: int | None = None

    def __post_init__(self) -> None:
        at_least("grid.edge", self.edge, 1)
        at_least("grid.pairs_per_step", self.pairs_per_step, 1)


@dataclass(frozen=True)
class StoreConfig:
    """Where Gram stores are, and their precision.

    Args:
        url: folder or bucket that all runs share. Each store in it is found by its identity.
        dtype: precision of the stored tiles: `float32` or `float64`. By default that of `kernel.dtype`.
        name: name of the store under `url` to use; its identity must agree. By default the store is found by its
            identity.
        gram: `stored` computes every tile once and keeps it. `recompute` stores only diagonals, and computes a tile
            when it is read and not in memory. `auto` recomputes if the disk lacks space, or if the plan estimates
            that it is faster.
    """

    url: str = "./store"
    dtype: str | None = None
    name: str | None = None
    gram: str = "stored"

    def __post_init__(self) -> None:
        choice("store.gram", self.gram, ("stored", "recompute", "auto"))
        choice("store.dtype", self.dtype, (None, "float32", "float64"))
