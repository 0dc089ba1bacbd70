"""Division of Gram matrices into tiles: the edge, the seconds and the memory of a tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.gram.plan import ITEM_BYTES, KERNELS, Block, BlockPlan, GramPlan, Rate
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.planning.machine import Machine, assumed_machine
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.units import human_bytes

LARGEST_EDGE = 2048
"""Default rows of a tile. Larger tiles do not speed up products; with smaller tiles a large matrix has many receipts."""

WORKER_BYTES = 600 << 20
"""Memory of a worker without its tile: Python, NumPy, JAX with a compiled kernel, Ray, and up to 128 MiB of cached
images.

On CIFAR's shape in float32 the process took 0.75 GB of memory at edge 2048 and 0.51 GB at 1024."""

# Memory that Ray, checksums and cached image chunks add to a process that evaluates pairs, and the memory of such a
# worker if it was not measured. Two workers of a Myrtle-5 network on 32 x 32 images: 0.48 and 0.55 GB; of CNN-Vec of
# depth 3 with tiles of 1024 rows 0.58 and 0.61 GB, a quarter of it images and what is seen of them.
_RAY_BYTES = 150 << 20
_CONVOLUTIONAL_BYTES = 420 << 20

TILE_SECONDS = 30.0
"""Largest work per tile in seconds, because a lost worker loses it, and other workers wait for a slow one."""

# Covariances at the input of all pairs of a default tile: with three convolutional layers, a minute or two of one worker.
_TILE_COVARIANCES = 1 << 32


def choose_edge(n_train: int, cost: KernelCost, seconds_per_pair: float | None = None) -> int:
    """Default tile edge: a power of two up to 2048, with at least three rows of tiles if possible.

    It is smaller for slow pairs, such as 64 for a pooled network on 32 x 32 images: a tile then takes half a minute
    instead of days. Without a measurement it depends only on the full data set and on the size of a prepared image, so
    that networks of different depth have tiles of the same size. The edge is part of the identity of a Gram store. A run
    without `grid.edge` uses the edge of an existing store of the same values.

    Args:
        n_train: number of images of the full training set.
        cost: of a pair.
        seconds_per_pair: of one worker, if it was measured.
    """
    edge = LARGEST_EDGE
    while edge > 64 and -(-n_train // edge) < 3:
        edge //= 2

    def is_long(edge: int) -> bool:
        if seconds_per_pair is None:
            return edge > 32 and edge**2 * cost.input_entries > _TILE_COVARIANCES
        return edge > 8 and edge**2 * seconds_per_pair > TILE_SECONDS

    while is_long(edge):
        edge //= 2
    return edge


def pair_seconds(cost: KernelCost, machine: Machine, dtype: str, traffic: float = 0.0) -> float:
    """Seconds of one worker to evaluate both kernels of a pair of images, by the roofline model.

    They are the time of the arithmetic, `products / matrix + others / elementwise`. On a GPU they are the time to read and
    write covariances, if that is larger. On a CPU a block of covariances passes all layers in the cache of a core
    (docs/performance.md).

    Args:
        cost: of a pair.
        machine: of the worker.
        dtype: of the computation.
        traffic: numbers that the layers read and write for a pair.
    """
    flops = cost.product_flops / machine.rate("matrix", dtype) + cost.elementwise_flops / machine.rate(
        "elementwise", dtype
    )
    return max(flops, traffic * ITEM_BYTES[dtype] / machine.memory_bandwidth.value) if machine.accelerated else flops


def pair_rate(cost: KernelCost, seconds: float, source: str) -> Rate:
    """Operations per second of a worker, from its seconds per pair."""
    return Rate(cost.flops_per_pair / seconds, source) if seconds else Rate(1.0, source)


def _assumed_rate(cost: KernelCost, dtype: str) -> Rate:
    return pair_rate(cost, pair_seconds(cost, assumed_machine(), dtype), "assumed")


def worker_memory(
    edge: int,
    cost: KernelCost,
    kernel_dtype: str,
    *,
    stores: int = 1,
    evaluations: int = 1,
    process_bytes: int | None = None,
) -> int:
    """Peak bytes of a worker that computes tiles of `edge` rows.

    At its peak a worker holds, besides itself and its cache of image chunks (`WORKER_BYTES`),
    - four row blocks of `edge` images: three cached, one being put together; and as much of what is seen of each image:
      rows, their copy for the loop, columns, and one being put together; and the rows and columns of the next tile,
    - both kernels' covariances before and after a layer,
    - for each store four `edge x edge` arrays: the two kernels of this tile, and the two of the tile before, which is being
      written; two more for padded copies of one store's if it is ragged; and two for every evaluation of a pair besides
      the first, before they are combined. They are counted in the kernel's dtype, which is never the smaller one.
    """
    item = ITEM_BYTES[kernel_dtype]
    if process_bytes is not None:
        own = process_bytes + _RAY_BYTES
    elif cost.input_entries == 1:
        own = WORKER_BYTES
    else:
        own = _CONVOLUTIONAL_BYTES + 6 * 8 * cost.entries  # the kernel of an image with itself, in float64
    arrays = 4 * stores + 2 + 2 * stores * (evaluations - 1)
    return own + (edge * (6 * cost.inputs + 4 * cost.seen) + 4 * cost.entries + arrays * edge**2) * item


def plan_gram(
    *,
    n_train: int,
    n_test: int,
    spec: Sequence[Mapping[str, Any]],
    cost: KernelCost,
    edge: int | None = None,
    kernel_dtype: str = "float32",
    store_dtype: str = "float32",
    train_rows: int | None = None,
    test_rows: int | None = None,
    workers: int = 1,
    rate: Rate | None = None,
    memory_bytes: int | None = None,
    free_bytes: int | None = None,
    stored_bytes: int = 0,
    stores: Sequence[str] = ("the kernel",),
    evaluations: int = 1,
    pairs_per_step: int | None = None,
    process_bytes: int | None = None,
    stored: bool = True,
    kernels: int = KERNELS,
) -> GramPlan:
    """Plan the Gram matrix of a data set, or the tiles of it that a subset needs.

    Args:
        n_train: number of images of the full training set.
        n_test: number of images of the full test set; 0 without one.
        spec: layers of the architecture; of several depths, the deepest.
        cost: of one evaluation on prepared images (`kernels.cost.kernel_cost`).
        edge: rows per tile; None is `choose_edge(n_train, cost)`.
        kernel_dtype: of the computation.
        store_dtype: of the stored tiles.
        train_rows: number of leading training images in use; None is all.
        test_rows: number of leading test images in use; None is all.
        workers: number of processes that compute at the same time.
        rate: of one worker; None assumes a rate, and the plan says so.
        memory_bytes: for all workers together; None skips the check.
        free_bytes: of the disk; None skips the check.
        stored_bytes: bytes that the Gram stores already contain.
        stores: descriptions of the Gram stores that share the evaluations.
        evaluations: kernel evaluations per pair.
        pairs_per_step: columns that go through the layers at once; None lets the kernel choose.
        process_bytes: memory of a process that evaluates pairs, if it was measured.
        stored: whether tiles are stored; otherwise they are recomputed on every read.
        kernels: number of kernels in every tile.

    Raises:
        ConfigError: if a subset is larger than its set.
        ResourceError: if a tile does not fit into a worker's share of the memory, or the tiles into the disk.
    """
    edge = choose_edge(n_train, cost) if edge is None else edge
    grids: dict[Block, tuple[TileGrid, int, int]] = {}
    used = n_train if train_rows is None else train_rows
    grids["train"] = (TileGrid(n_train, n_train, edge, symmetric=True), used, used)
    if n_test and test_rows != 0:
        grids["test"] = (TileGrid(n_test, n_train, edge), n_test if test_rows is None else test_rows, used)
    try:
        blocks = tuple(BlockPlan(b, whole, whole.leading(rows, cols)) for b, (whole, rows, cols) in grids.items())
    except ConfigError as error:
        raise ConfigError(f"data.train_size or data.test_size is out of range: {error}") from error
    plan = GramPlan(
        spec=spec,
        cost=cost,
        blocks=blocks,
        edge=edge,
        kernel_dtype=kernel_dtype,
        store_dtype=store_dtype,
        workers=workers,
        rate=rate or _assumed_rate(cost, kernel_dtype),
        memory_per_worker=0,
        stores=tuple(stores),
        evaluations=evaluations,
        pairs_per_step=pairs_per_step,
        process_bytes=process_bytes,
        stored=stored,
        kernels=kernels,
    )
    plan = replace(plan, memory_per_worker=_memory(plan, min(edge, n_train)))
    if memory_bytes is not None:
        _check_memory(plan, memory_bytes // workers)
    if free_bytes is not None and plan.disk_bytes - stored_bytes > free_bytes:
        raise ResourceError(
            f"the tiles take {human_bytes(plan.disk_bytes - stored_bytes)} and the disk has {human_bytes(free_bytes)} "
            "free: choose another store.url, store.dtype=float32, a smaller data.train_size or store.gram=recompute "
            "(tiles are recomputed on every read instead of stored), or run `ntkpipe clean`"
        )
    return plan


def _memory(plan: GramPlan, edge: int) -> int:
    return worker_memory(
        edge,
        plan.cost,
        plan.kernel_dtype,
        stores=len(plan.stores),
        evaluations=plan.evaluations,
        process_bytes=plan.process_bytes,
    )


def _check_memory(plan: GramPlan, share: int) -> None:
    if plan.memory_per_worker <= share:
        return

    def fits(edge: int) -> bool:
        return _memory(plan, edge) <= share

    low, high = 0, plan.edge  # find the largest edge that fits by bisection, because memory grows with the edge
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    remedies = [f"set grid.edge={low} or less"] if low else []
    remedies += ["set fewer cluster.workers"] if plan.workers > 1 else []
    remedies += ["raise cluster.memory_gib if the machine has more memory"]
    count = f"each of {plan.workers} workers" if plan.workers > 1 else "the worker"
    raise ResourceError(
        f"a tile of {plan.edge} x {plan.edge} needs {human_bytes(plan.memory_per_worker)} and {count} has "
        f"{human_bytes(share)}: {', or '.join(remedies)}"
    )
