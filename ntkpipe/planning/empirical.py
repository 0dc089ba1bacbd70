"""Identity and tiling of the Gram matrices of a finite network."""

from __future__ import annotations

import json

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.tiles import choose_edge
from ntkpipe.tiles.identity import EMPIRICAL, EMPIRICAL_FULL, GramIdentity

# A worker keeps the Jacobian factors of three blocks of points: rows, columns, and the next columns.
_BLOCKS, _BLOCKS_BYTES = 3, 1 << 30
_ITEM = {"float32": 4, "float64": 8}


def empirical_identity(config: RunConfig, shapes: Shapes, kernel: NetworkKernel | FunctionNetwork) -> GramIdentity:
    """The identity of the tiles, from the points and every weight of the network.

    Args:
        config: of the run.
        shapes: of its points.
        kernel: of the network.

    Raises:
        ConfigError: for augmentation by flips, under which a finite network is not symmetric; or if the number of
            outputs differs from that of the targets.
    """
    if kernel.rows_of_point != shapes.rows_of_point:
        raise ConfigError(
            f"kernel.outputs=full: the network has {kernel.rows_of_point} outputs and the targets have {shapes.rows_of_point}: end it "
            'with {"op": "dense"} of as many features, or set kernel.outputs=trace'
        )
    if config.augment != "none":
        raise ConfigError(
            f"augment={config.augment} needs a kernel that is symmetric under flips, which the kernel of a finite "
            "network is not: set augment=none, or add the flipped images to the data"
        )
    return shapes.identity(
        config,
        architecture=kernel.digest,
        formula_version=EMPIRICAL if kernel.outputs != "full" else EMPIRICAL_FULL,
        edge=_edge(config, shapes, kernel),
        spec={"layers": json.loads(kernel.layers), "outputs": kernel.outputs},
    )


def _edge(config: RunConfig, shapes: Shapes, kernel: NetworkKernel | FunctionNetwork) -> int:
    """Rows of a tile: the default, or fewer if the network needs much memory per point."""
    edge, kept = choose_edge(shapes.n_train, kernel.cost), kernel.cost.seen * _ITEM[config.kernel.dtype]
    while edge > 8 and _BLOCKS * edge * kept > _BLOCKS_BYTES:
        edge //= 2
    # A tile contains all outputs of a point, so that the point is prepared once.
    return max(1, edge // kernel.rows_of_point) * kernel.rows_of_point
