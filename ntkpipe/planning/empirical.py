"""What the Gram matrices of a finite network are known by, and how they are tiled."""

from __future__ import annotations

import json

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.tiles import choose_edge
from ntkpipe.tiles.identity import EMPIRICAL, EMPIRICAL_FULL, GramIdentity

# A worker keeps what it has made of three blocks of points: rows, columns, and the next columns.
_BLOCKS, _BLOCKS_BYTES = 3, 1 << 30
_ITEM = {"float32": 4, "float64": 8}


def empirical_identity(config: RunConfig, shapes: Shapes, kernel: NetworkKernel | FunctionNetwork) -> GramIdentity:
    """What the tiles are known by: the points, and every weight of the network.

    Args:
        config: of the run.
        shapes: of its points.
        kernel: of the network.

    Raises:
        ConfigError: for flips, under which no finite network is symmetric; or if all pairs of outputs are others than the targets.
    """
    if kernel.rows_of_point != shapes.rows_of_point:
        raise ConfigError(
            f"kernel.outputs=full: the network has {kernel.rows_of_point} outputs and the targets have {shapes.rows_of_point}: end it "
            'with {"op": "dense"} of as many features, or set kernel.outputs=trace'
        )
    if config.augment != "none":
        raise ConfigError(
            f"augment={config.augment} needs a kernel that is symmetric under flips, and the weights of one network are not: set "
            "augment=none, or give the flipped images as data"
        )
    return GramIdentity(
        data=shapes.fingerprint,
        architecture=kernel.digest,
        formula_version=EMPIRICAL if kernel.outputs != "full" else EMPIRICAL_FULL,
        dtype=config.kernel.dtype,
        stored_dtype=config.store_dtype,
        edge=_edge(config, shapes, kernel),
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        spec={"layers": json.loads(kernel.layers), "outputs": kernel.outputs},
    )


def _edge(config: RunConfig, shapes: Shapes, kernel: NetworkKernel | FunctionNetwork) -> int:
    """Rows of a tile: as of other kernels, or fewer where a network keeps much of every point."""
    edge, kept = choose_edge(shapes.n_train, kernel.cost), kernel.cost.seen * _ITEM[config.kernel.dtype]
    while edge > 8 and _BLOCKS * edge * kept > _BLOCKS_BYTES:
        edge //= 2
    # Outputs of a point stay together: it is prepared once.
    return max(1, edge // kernel.rows_of_point) * kernel.rows_of_point
