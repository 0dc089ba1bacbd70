"""Inputs of a plan as plain values: the shape of the data, facts of the machine and store, and the needed Gram stores."""

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

# If the tiles take less than this on all workers together, a measurement of some seconds does not pay.
_WORTH_MEASURING = 60.0


@dataclass(frozen=True)
class Shapes:
    """The sizes of a data set. Plans need nothing else of the data, except for networks with series.

    Args:
        fingerprint: of the images.
        n_train: number of training images of the whole data set.
        n_test: number of test images of the whole data set.
        used_train: number of leading training images in use.
        used_test: number of leading test images in use.
        image: `(height, width, channels)`.
        outputs: number of columns of the targets.
        extremes: returns a few images (n, height, width, channels) that span the variances of the whole data set. None
            if there is no data set yet; series then have their default degree.
        layers: of the network, if the configuration does not contain them.
        prepared: whether the images are in the store.
        rows_of_point: rows of the kernel per point: 1, or the number of outputs for a kernel between all pairs of
            outputs. The numbers of points above are then numbers of rows.
        cost: of a pair, for kernels without layers of an infinite network; otherwise None.
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

    def identity(
        self,
        config: RunConfig,
        *,
        architecture: str,
        formula_version: str,
        edge: int,
        symmetry: Symmetry = "none",
        spec: Any = None,
    ) -> GramIdentity:
        """The identity of the Gram store of a kernel of these points; see `GramIdentity` for the arguments."""
        return GramIdentity(
            data=self.fingerprint,
            architecture=architecture,
            formula_version=formula_version,
            dtype=config.kernel.dtype,
            stored_dtype=config.store_dtype,
            edge=edge,
            n_train=self.n_train,
            n_test=self.n_test,
            symmetry=symmetry,
            spec=spec,
        )

    def for_kernel(self, kernel: KernelConfig) -> Shapes:
        """The sizes in rows of the kernel instead of points. `kernel.outputs=full` has one row per output of a point."""
        c = self.outputs
        if kernel.kind != "empirical" or kernel.outputs != "full" or self.rows_of_point > 1 or c == 1:
            return self
        counts = {name: c * getattr(self, name) for name in ("n_train", "n_test", "used_train", "used_test")}
        return dataclasses.replace(self, **counts, outputs=1, rows_of_point=c)

    def of_size(self, n: int) -> Shapes:
        """The sizes for n training points of the same kind, all in use and not prepared."""
        return dataclasses.replace(self, n_train=n, used_train=n, n_test=self.used_test, prepared=False)


@dataclass(frozen=True)
class Place:
    """Facts about the machine and the store of a run. The default is for machines other than this one.

    Args:
        free_memory: free bytes of this machine; None for another machine, whose figures include its memory.
        free_disk: free bytes of the store; None if unknown.
        pair: measured speed of the network's pairs.
        pair_seconds: calibrated seconds per pair of one worker, by dtype.
        edge: edge of the tiles in an existing store of the same values.
        stored_bytes: bytes that the Gram stores already contain.
        begun: whether an earlier start of this run chose to store its tiles. The run keeps this choice.
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
        text: its description.
        identity: of the store.
        spec: layers of its network.
    """

    text: str
    identity: GramIdentity
    spec: list[dict[str, Any]]


def spec_for(kernel: KernelConfig, shapes: Shapes) -> list[dict[str, Any]]:
    """The layers for a data set. Every series gets the degree that the variances need, unless the user set it.

    Raises:
        ConfigError: see `kernel_spec`.
    """
    spec = kernel_spec(kernel, shapes.image) if shapes.layers is None else shapes.layers
    return with_degrees_for(spec, shapes, kernel.dtype)


def with_degrees_for(spec: list[dict[str, Any]], shapes: Shapes, dtype: str) -> list[dict[str, Any]]:
    """The result of `spec_for` for known layers."""
    if shapes.extremes is None or all(layer["degree"] is not None for _, layer in expanded_layers(spec)):
        return spec
    return with_degrees(spec, shapes.extremes(), dtype)


def worth_measuring(
    config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig] = ()
) -> list[dict[str, Any]] | None:
    """The network whose pairs a run should time before it chooses its tiles; None if a measurement does not pay.

    Networks that flatten their images run at the rate of matrix products, so no measurement is needed. Other networks
    differ by a factor of a million in the time of a pair.
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
    """The Gram stores that a run fills, the store of the solve first.

    Args:
        config: of the run.
        siblings: see `make_run_plan`.
        specs: layers of each network.
        shapes: of the images.
        edge: rows of a tile.
    """
    symmetries: tuple[Symmetry, ...] = ("none",)
    if config.augment == "hflip":
        # Means come from the even part alone; the odd part adds its variance.
        symmetries = ("even",) if config.predict.covariance == "none" else ("even", "odd")
    found = []
    for one, spec in zip((config, *siblings), specs, strict=True):
        depth = [f"depth {one.kernel.depth}"] if siblings else []
        for symmetry in symmetries:
            part = [f"{symmetry} part under flips"] if symmetry != "none" else []
            identity = shapes.identity(
                one,
                architecture=fingerprint(spec),
                formula_version=str(FORMULA_VERSION),
                edge=edge,
                symmetry=symmetry,
                spec=spec,
            )
            found.append(WantedStore(" ".join([*depth, *part]) or "the kernel", identity, spec))
    return found


def tile_edge(config: RunConfig, cost: KernelCost, shapes: Shapes, place: Place, roofline: float) -> int:
    """Rows of a tile: the configured number, that of an existing store of the same values, or one from the cost of a pair.

    Args:
        config: of the run.
        cost: of a pair.
        shapes: of the images.
        place: see `Place`.
        roofline: projected seconds of a pair on another machine. On this machine only measurements count.
    """
    if (edge := config.grid.edge or place.edge) is not None:
        return edge
    if place.pair is not None:
        edge = choose_edge(shapes.n_train, cost, place.pair.seconds_per_pair * config.copies)
    else:
        edge = choose_edge(shapes.n_train, cost, roofline * config.copies if place.free_memory is None else None)
    return following(edge, shapes.used_test, shapes.n_test)


# A small number of test points reduces the edge to no less than this, and only if more than this share of rows would be
# wasted.
_LEAST_FOLLOWING, _IN_VAIN = 256, 0.3


def following(edge: int, used: int, there: int) -> int:
    """A smaller edge if few test points are in use, because tiles are computed whole: otherwise 2,048 rows for 200 points.

    Args:
        edge: rows of a tile for all test points.
        used: number of test points in use.
        there: number of all test points.
    """
    while edge > _LEAST_FOLLOWING and min(-(-used // edge) * edge, there) > (1 + _IN_VAIN) * used:
        edge //= 2
    return edge
