"""What a plan is made from: the shape of the data, what is known of the place, and the Gram stores that a run needs. Pure values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.config import KernelConfig, RunConfig
from ntkpipe.gram.from_config import kernel_spec, pair_cost
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.spec import FORMULA_VERSION, fingerprint
from ntkpipe.kernels.truncation import expanded_layers, with_degrees
from ntkpipe.planning.machine import Figure
from ntkpipe.planning.probes import PairSpeed
from ntkpipe.planning.tiles import choose_edge, plan_gram
from ntkpipe.tiles.identity import GramIdentity, Symmetry

# A run whose tiles should take less than this (all workers together) is not worth the seconds that measuring takes.
_WORTH_MEASURING = 60.0


@dataclass(frozen=True)
class Shapes:
    """Sizes of a data set, which is all that a plan needs of it, but for networks with expansions.

    Args:
        fingerprint: of the images.
        n_train, n_test: images of the whole data set.
        used_train, used_test: of these the leading ones that are used.
        image: `(height, width, channels)`.
        outputs: columns of the targets.
        extremes: gives a few images of the whole data set, `(n, height, width, channels)`, that span its variances; None if
            there is no data set yet: expansions then have their usual degree.
        layers: of the network, where the configuration does not name them.
        prepared: whether the images are in the store.
        rows_of_point: of the kernel: 1, or as many as there are outputs where it is between all pairs of these. The numbers of points above
            are then numbers of rows.
        cost: of a pair, where no layers of an infinite network tell it; None where they do.
    """

    fingerprint: str
    n_train: int
    n_test: int
    used_train: int
    used_test: int
    image: tuple[int, ...]
    outputs: int
    extremes: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)
    layers: list[dict[str, Any]] | None = field(default=None, repr=False)
    prepared: bool = field(default=False, compare=False)
    cost: KernelCost | None = field(default=None, compare=False, repr=False)
    rows_of_point: int = 1

    def for_kernel(self, kernel: KernelConfig) -> Shapes:
        """Rows of the kernel instead of points, where they are not the same: `kernel.outputs=full` has one for each output."""
        c = self.outputs
        if kernel.kind != "empirical" or kernel.outputs != "full" or self.rows_of_point > 1 or c == 1:
            return self
        counts = {name: c * getattr(self, name) for name in ("n_train", "n_test", "used_train", "used_test")}
        return dataclasses.replace(self, **counts, outputs=1, rows_of_point=c)

    def of_size(self, n: int) -> Shapes:
        """Such images, but `n` for training, all of them used, and nothing prepared."""
        return dataclasses.replace(self, n_train=n, used_train=n, n_test=self.used_test, prepared=False)


@dataclass(frozen=True)
class Place:
    """What a plan has to know of where the run is, besides the machine's figures; the default is a machine that is not there.

    Args:
        free_memory: bytes that are free; None of machines that are not there: their figures say how much memory there is.
        free_disk: bytes that the store may still take; None if unknown.
        pair: measured speed of the network's pairs.
        pair_seconds: of one worker, by dtype, as calibrated.
        edge: of the tiles of a store that has the same values.
        stored_bytes: that the Gram stores hold already.
        begun: whether this run has chosen to store its tiles, if it has begun: it stays with that.
    """

    free_memory: int | None = None
    free_disk: int | None = None
    pair: PairSpeed | None = None
    pair_seconds: Mapping[str, Figure] = field(default_factory=dict)
    edge: int | None = None
    stored_bytes: int = 0
    begun: bool | None = None


@dataclass(frozen=True)
class WantedStore:
    """A Gram store that a run needs.

    Args:
        text: what it is, for people.
        identity: of the store.
        spec: layers of its network.
    """

    text: str
    identity: GramIdentity
    spec: list[dict[str, Any]]


def spec_for(kernel: KernelConfig, shapes: Shapes) -> list[dict[str, Any]]:
    """The layers for a data set: every expansion as long as its variances call for, unless the user said how long.

    Raises:
        ConfigError: see `kernel_spec`.
    """
    spec = kernel_spec(kernel, shapes.image) if shapes.layers is None else shapes.layers
    return with_degrees_for(spec, shapes, kernel.dtype)


def with_degrees_for(spec: list[dict[str, Any]], shapes: Shapes, dtype: str) -> list[dict[str, Any]]:
    """See `spec_for`, of layers that are known."""
    if shapes.extremes is None or all(layer["degree"] is not None for _, layer in expanded_layers(spec)):
        return spec
    return with_degrees(spec, shapes.extremes(), dtype)


def worth_measuring(
    config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig] = ()
) -> list[dict[str, Any]] | None:
    """The network whose pairs a run should measure before it chooses its tiles; None where nothing is to be gained.

    Networks that flatten their images are as fast as the machine's matrix products: nothing is to be chosen. Others differ by a
    factor of a million in the time of a pair.
    """
    specs = [spec_for(one.kernel, shapes) for one in (config, *siblings)]
    deepest = max(specs, key=len)
    cost = pair_cost(deepest, shapes.image)
    given = config.grid.edge is not None and config.grid.pairs_per_step is not None
    if cost.input_entries == 1 or given:
        return None
    tiles = plan_gram(
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        spec=deepest,
        cost=cost,
        edge=config.grid.edge,
        kernel_dtype=config.kernel.dtype,
        train_rows=shapes.used_train,
        test_rows=shapes.used_test,
        workers=config.cluster.worker_count(),
        evaluations=config.copies,
    )
    return deepest if tiles.seconds >= _WORTH_MEASURING else None


def wanted_stores(
    config: RunConfig, siblings: Sequence[RunConfig], specs: Sequence[list[dict[str, Any]]], shapes: Shapes, edge: int
) -> list[WantedStore]:
    """The Gram stores that a run fills, the one to solve with first.

    Args:
        config: of the run.
        siblings: see `make_run_plan`.
        specs: layers of each network.
        shapes: of the images.
        edge: rows of a tile.
    """
    symmetries: tuple[Symmetry, ...] = ("none",)
    if config.augment == "hflip":
        # Means are those of the even part alone; the odd one adds its variance.
        symmetries = ("even",) if config.predict.covariance == "none" else ("even", "odd")
    found = []
    for one, spec in zip((config, *siblings), specs, strict=True):
        depth = [f"depth {one.kernel.depth}"] if siblings else []
        for symmetry in symmetries:
            part = [f"{symmetry} part under flips"] if symmetry != "none" else []
            identity = GramIdentity(
                data=shapes.fingerprint,
                architecture=fingerprint(spec),
                formula_version=str(FORMULA_VERSION),
                dtype=one.kernel.dtype,
                stored_dtype=one.store_dtype,
                edge=edge,
                n_train=shapes.n_train,
                n_test=shapes.n_test,
                symmetry=symmetry,
                spec=spec,
            )
            found.append(WantedStore(" ".join([*depth, *part]) or "the kernel", identity, spec))
    return found


def tile_edge(config: RunConfig, cost: KernelCost, shapes: Shapes, place: Place, roofline: float) -> int:
    """Rows of a tile: as set, as a store of the same tiles was cut by whatever machine, or by what a pair needs.

    Args:
        config: of the run.
        cost: of a pair.
        shapes: of the images.
        place: see there.
        roofline: seconds of a pair on a machine that is not there; on this machine nothing counts but what was measured.
    """
    if (edge := config.grid.edge or place.edge) is not None:
        return edge
    if place.pair is not None:
        edge = choose_edge(shapes.n_train, cost, place.pair.seconds_per_pair * config.copies)
    else:
        edge = choose_edge(shapes.n_train, cost, roofline * config.copies if place.free_memory is None else None)
    return following(edge, shapes.used_test, shapes.n_test)


# Tiles are not cut smaller than this for the sake of few test points, and not for less than this share of rows in vain.
_LEAST_FOLLOWING, _IN_VAIN = 256, 0.3


def following(edge: int, used: int, there: int) -> int:
    """A smaller edge where few of the test points are used: tiles are computed whole, 2,048 rows for 200 points.

    Args:
        edge: rows of a tile, if all were used.
        used: test points in use.
        there: all of them.
    """
    while edge > _LEAST_FOLLOWING and min(-(-used // edge) * edge, there) > (1 + _IN_VAIN) * used:
        edge //= 2
    return edge
