"""Identity and tiling of the Gram matrices of given features."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.gram.features import feature_cost
from ntkpipe.gram.plan import ITEM_BYTES
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.tiles import choose_edge
from ntkpipe.tiles.identity import FEATURES, GramIdentity

# A worker holds three blocks of features: for the rows of a tile, for its columns, and for the next columns.
_BLOCKS, _BLOCKS_BYTES = 3, 1 << 30


def feature_identity(config: RunConfig, shapes: Shapes, features: GivenFeatures) -> GramIdentity:
    """The identity of the tiles, from every feature and the divisor of the products.

    Args:
        config: of the run.
        shapes: of its points.
        features: that were checked; for a plan without a store, they may be unchecked.
    """
    return shapes.identity(
        config,
        architecture=f"features over {features.scale!r}",
        formula_version=FEATURES,
        edge=_edge(config, shapes, features),
        spec={"features": features.count, "scale": features.scale},
    )


def _edge(config: RunConfig, shapes: Shapes, features: GivenFeatures) -> int:
    """Rows of a tile: the default, or fewer if chunks are wide."""
    dtype = config.kernel.dtype
    edge = choose_edge(shapes.n_train, feature_cost(features, 1, dtype))
    while edge > 8 and _BLOCKS * edge * feature_cost(features, edge, dtype).seen * ITEM_BYTES[dtype] > _BLOCKS_BYTES:
        edge //= 2
    return edge
