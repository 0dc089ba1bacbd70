"""What the Gram matrices of given features are known by, and how they are tiled."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.gram.features import feature_cost
from ntkpipe.gram.plan import ITEM_BYTES
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.tiles import choose_edge
from ntkpipe.tiles.identity import FEATURES, GramIdentity

# A worker holds columns of the rows of a tile, of its columns, and of the next columns.
_BLOCKS, _BLOCKS_BYTES = 3, 1 << 30


def feature_identity(config: RunConfig, shapes: Shapes, features: GivenFeatures) -> GramIdentity:
    """What the tiles are known by: every feature, and what products are divided by.

    Args:
        config: of the run.
        shapes: of its points.
        features: checked, or not yet: a plan of these knows no store.
    """
    return GramIdentity(
        data=features.content,
        architecture=f"features over {features.scale!r}",
        formula_version=FEATURES,
        dtype=config.kernel.dtype,
        stored_dtype=config.store_dtype,
        edge=_edge(config, shapes, features),
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        spec={"features": features.count, "scale": features.scale},
    )


def _edge(config: RunConfig, shapes: Shapes, features: GivenFeatures) -> int:
    """Rows of a tile: as of other kernels, or fewer where chunks are wide."""
    dtype = config.kernel.dtype
    edge = choose_edge(shapes.n_train, feature_cost(features, 1, dtype))
    while edge > 8 and _BLOCKS * edge * feature_cost(features, edge, dtype).seen * ITEM_BYTES[dtype] > _BLOCKS_BYTES:
        edge //= 2
    return edge
