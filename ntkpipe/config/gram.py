"""How the Gram matrix is tiled and where its tiles live."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice


@dataclass(frozen=True)
class GridConfig:
    """Tiling of the Gram matrix.

    Args:
        edge: rows of a tile; None takes that of a store which has the same values already, or chooses one from the size of
            the data set and the time of a pair.
        pairs_per_step: columns of a tile that go through the layers of a convolutional network together; None takes the
            fastest of a few. With both given, nothing is measured.
    """

    edge: int | None = None
    pairs_per_step: int | None = None

    def __post_init__(self) -> None:
        at_least("grid.edge", self.edge, 1)
        at_least("grid.pairs_per_step", self.pairs_per_step, 1)


@dataclass(frozen=True)
class StoreConfig:
    """Where Gram stores live and in which precision.

    Args:
        url: folder that all runs share; a store inside it is addressed by its identity.
        dtype: of the stored tiles, `float32` or `float64`; None follows `kernel.dtype`.
        name: of one store under `url` that must be used; its identity has to agree. None addresses by identity.
        gram: `stored` (every tile is computed once and kept), `recompute` (only diagonals are stored, and a tile is computed
            whenever it is read and not in memory), or `auto` (recompute where the disk lacks the space, or where that is
            clearly faster by the plan's estimate).
    """

    url: str = "./store"
    dtype: str | None = None
    name: str | None = None
    gram: str = "stored"

    def __post_init__(self) -> None:
        choice("store.gram", self.gram, ("stored", "recompute", "auto"))
        choice("store.dtype", self.dtype, (None, "float32", "float64"))
