"""What computing a Gram matrix will take, before anything runs. Integers and floats only: no arrays, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.tiles.grid import TileGrid

Block = Literal["train", "test"]
KERNELS = 2  # NNGP and NTK come from one evaluation and are both stored

_ITEMSIZE = {"float32": 4, "float64": 8}

LARGEST_EDGE = 2048
"""Rows of a default tile: past it products gain nothing, below it the receipts of a large matrix multiply."""

WORKER_BYTES = 600 << 20
"""Of a worker besides its tile: Python, NumPy, JAX with a compiled kernel, Ray, and up to 128 MiB of cached images.

Measured on CIFAR's shape in float32: 0.75 GB resident in all at edge 2048, 0.51 GB at 1024."""

# What Ray, checksums and cached image chunks add to a process that evaluates pairs, and such a worker as a whole where none
# was measured. Two workers of a Myrtle-5 network on 32 x 32 images: 0.48 and 0.55 GB; of CNN-Vec of depth 3 with tiles of
# 1024 rows 0.58 and 0.61 GB, a quarter of it images and what is seen of them.
_RAY_BYTES = 150 << 20
_CONVOLUTIONAL_BYTES = 420 << 20

RECEIPT_BYTES = 4096
"""One receipt: below a kilobyte of text, but a block of most file systems."""

BATCH_SECONDS = 10.0
"""Work per task: so long that a task's overhead (a few ms) and its one write that nothing overlaps do not count, so
short that progress is seen and little is left to the last worker."""

TILE_SECONDS = 30.0
"""Work per tile at most: what a lost worker loses, and a straggler keeps others waiting for."""

# Enough for writes to overlap; of a tile that takes minutes, `BATCH_SECONDS` makes it one.
_FIRST_BATCH = 4

# What one worker with one thread did in float32 on the machine of docs/performance.md, rounded down, and half of it: an
# order of magnitude elsewhere. Inner products of images 73 GF/s over all of CIFAR-10, reading and writing included;
# covariances one by one 6 (wide residual networks, CNN-Vec) to 20 GF/s (CNN-GAP).
_PRODUCT_RATE = {"float32": 6e10, "float64": 3e10}
_ELEMENTWISE_RATE = {"float32": 1e10, "float64": 5e9}

# Covariances at the input of all pairs of a default tile: with three convolutional layers, a minute or two of one worker.
_TILE_COVARIANCES = 1 << 32


@dataclass(frozen=True)
class Rate:
    """Arithmetic of one worker.

    Args:
        flops: floating-point operations per second.
        source: where the number comes from, for people.
    """

    flops: float
    source: str


@dataclass(frozen=True)
class BlockPlan:
    """The tiles of one block that a run needs.

    Args:
        block: `train` or `test`.
        whole: the grid of the full data set, as stored.
        used: its leading block that the run reads. Tiles at its edge are computed whole: other runs share them.
    """

    block: Block
    whole: TileGrid
    used: TileGrid

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.used)

    @property
    def pairs(self) -> int:
        """Kernel evaluations, counting diagonal tiles in full."""
        edge, rows, cols = self.whole.edge, self.whole.rows, self.whole.cols
        total = 0
        for i in range(self.used.tile_rows):
            last = i + 1 if self.used.symmetric else self.used.tile_cols
            total += (min((i + 1) * edge, rows) - i * edge) * min(last * edge, cols)
        return total


@dataclass(frozen=True)
class GramPlan:
    """Everything that is known before the first tile; made by `plan_gram`.

    Args:
        spec: layers of the architecture.
        cost: of one kernel evaluation, both kernels; of several depths, that of the deepest.
        blocks: `train`, then `test` if there are test images.
        edge: rows per tile.
        kernel_dtype: of the computation.
        store_dtype: of the stored tiles.
        workers: processes that compute at the same time.
        rate: of one worker.
        memory_per_worker: peak, in bytes.
        stores: what the Gram stores are that share every evaluation, each with all tiles.
        evaluations: of the kernel per pair: two where a flipped image is paired as well.
        pairs_per_step: columns that go through the layers together; None leaves it to the kernel.
        process_bytes: of a process that evaluates pairs, if it was measured.
        stored: False if tiles are computed whenever they are read, and only diagonals are stored.
    """

    spec: Sequence[Mapping[str, Any]]
    cost: KernelCost
    blocks: tuple[BlockPlan, ...]
    edge: int
    kernel_dtype: str
    store_dtype: str
    workers: int
    rate: Rate = field(repr=False)
    memory_per_worker: int = 0
    stores: tuple[str, ...] = ("the kernel",)
    evaluations: int = 1
    pairs_per_step: int | None = None
    process_bytes: int | None = None
    stored: bool = True

    @property
    def tiles(self) -> int:
        """Number of tiles, over all blocks; of each store."""
        return sum(block.tiles for block in self.blocks)

    @property
    def pairs(self) -> int:
        """Pairs of images, over all blocks."""
        return sum(block.pairs for block in self.blocks)

    @property
    def flops_per_pair(self) -> float:
        """Floating-point operations of one kernel evaluation, both kernels."""
        return self.cost.flops_per_pair

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return self.pairs * self.evaluations * self.flops_per_pair

    @property
    def disk_bytes(self) -> int:
        """Bytes of the stored tiles, their padding and receipts; diagonals, below a per mille of it, if they are all."""
        item = _ITEMSIZE[self.store_dtype]
        total = 0
        if not self.stored:
            return sum(block.used.tile_rows * RECEIPT_BYTES + block.used.rows * 8 * KERNELS for block in self.blocks)
        for block in self.blocks:
            chunk = min(self.edge, block.whole.rows) * min(self.edge, block.whole.cols) * item + 4
            total += block.tiles * (KERNELS * chunk + RECEIPT_BYTES)
        return total * len(self.stores)

    @property
    def seconds_per_tile(self) -> float:
        """Projected duration of a whole tile on one worker."""
        return self.edge**2 * self.evaluations * self.flops_per_pair / self.rate.flops

    @property
    def seconds(self) -> float:
        """Projected duration on all workers."""
        return self.flops / (self.rate.flops * self.workers)

    def describe(self) -> str:
        """The plan as a table for people."""
        lines = [f"{'block':<8}{'images':>20}{'tiles':>10}{'pairs':>12}{'on disk':>12}"]
        item = _ITEMSIZE[self.store_dtype]
        for b in self.blocks:
            images = f"{b.used.rows:,} x {b.used.cols:,}"
            arrays = len(self.stores) * b.tiles * KERNELS
            size = arrays * min(self.edge, b.whole.rows) * min(self.edge, b.whole.cols) * item * self.stored
            lines.append(f"{b.block:<8}{images:>20}{b.tiles:>10,}{b.pairs:>12.3g}{human_bytes(size):>12}")
        lines += [
            "",
            f"tile        {self.edge} x {self.edge}, computed in {self.kernel_dtype}, "
            f"{'stored' if self.stored else 'not stored but computed whenever it is read,'} in {self.store_dtype}, "
            "NNGP and NTK",
            *self._shared(),
            f"arithmetic  {self.flops_per_pair:,.0f} flops per pair, {self.flops:.3g} {'in all' if self.stored else 'once'}",
            f"disk        {human_bytes(self.disk_bytes)}",
            f"memory      {human_bytes(self.memory_per_worker)} per worker, "
            f"{human_bytes(self.memory_per_worker * self.workers)} for {self.workers}",
            *([] if self.pairs_per_step is None else [f"steps       pairs of images at a time: {self.pairs_per_step}"]),
            f"time        {human_seconds(self.seconds)}{'' if self.stored else ' for each tile once,'} at "
            f"{self.rate.flops / 1e9:.3g} GF/s per worker ({self.rate.source})",
        ]
        return "\n".join(lines)

    def _shared(self) -> list[str]:
        """What several stores share; nothing of a single plain one."""
        if len(self.stores) == self.evaluations == 1:
            return []
        flips = "two evaluations of a pair, one with the second image flipped"
        shared = flips if self.evaluations > 1 else "one evaluation of a pair, that of the deepest network"
        return [f"stores      {len(self.stores)}: {', '.join(self.stores)}; from {shared}"]


def choose_edge(n_train: int, cost: KernelCost, seconds_per_pair: float | None = None) -> int:
    """Default tile edge: a power of two up to 2048 that gives at least three rows of tiles where it can.

    Less where pairs take long, 64 for a pooled network on 32 x 32 images: a tile takes half a minute, not days. Where nothing
    was measured it depends on the full data set and on what the network needs of its images alone, so that networks that
    differ in depth have tiles of one size. The edge is part of a Gram store's identity; a run without a `grid.edge` of its
    own takes that of a store which has the same values already.

    Args:
        n_train: images of the full training set.
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


def _assumed_rate(cost: KernelCost, kernel_dtype: str) -> Rate:
    elementwise = cost.elementwise_flops / _ELEMENTWISE_RATE[kernel_dtype]
    seconds = cost.product_flops / _PRODUCT_RATE[kernel_dtype] + elementwise
    return Rate(cost.flops_per_pair / seconds, "assumed")


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
    item = _ITEMSIZE[kernel_dtype]
    if process_bytes is not None:
        own = process_bytes + _RAY_BYTES
    elif cost.input_entries == 1:
        own = WORKER_BYTES
    else:
        own = _CONVOLUTIONAL_BYTES + 6 * 8 * cost.entries  # an image with itself, in float64
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
) -> GramPlan:
    """Plan the Gram matrix of a data set, or the tiles of it that a subset needs.

    Args:
        n_train: images of the full training set.
        n_test: of the full test set; 0 if there is none.
        spec: layers of the architecture, of several the deepest's.
        cost: of one evaluation of it on images as prepared (`kernels.cost.kernel_cost`).
        edge: rows per tile; None is `choose_edge(n_train, cost)`.
        kernel_dtype: of the computation.
        store_dtype: of the stored tiles.
        train_rows: leading training images that are used; None is all.
        test_rows: leading test images that are used; None is all.
        workers: processes that compute at the same time.
        rate: of one worker; None is an assumption that the plan calls so.
        memory_bytes: for all workers together; None does not check.
        free_bytes: of the disk; None does not check.
        stored_bytes: that the Gram stores hold already and the plan need not write.
        stores: what the Gram stores are that share the evaluations.
        evaluations: of the kernel per pair.
        pairs_per_step: columns that go through the layers together; None leaves it to the kernel.
        process_bytes: of a process that evaluates pairs, if it was measured.
        stored: whether tiles are written, or computed whenever they are read.

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
    )
    plan = replace(plan, memory_per_worker=_memory(plan, min(edge, n_train)))
    if memory_bytes is not None:
        _check_memory(plan, memory_bytes // workers)
    if free_bytes is not None and plan.disk_bytes - stored_bytes > free_bytes:
        raise ResourceError(
            f"the tiles take {human_bytes(plan.disk_bytes - stored_bytes)} and the disk has {human_bytes(free_bytes)} "
            "free: choose another store.url, store.dtype=float32, a smaller data.train_size, store.gram=recompute (nothing "
            "is stored, tiles are computed whenever they are read), or run `ntkpipe clean`"
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

    low, high = 0, plan.edge  # the largest that fits, by bisection: memory grows with the edge
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    remedies = [f"set grid.edge={low} or less"] if low else []
    remedies += ["take fewer cluster.workers"] if plan.workers > 1 else []
    remedies += ["give more memory (cluster.memory_gib, where there is more)"]
    count = f"each of {plan.workers} workers" if plan.workers > 1 else "the worker"
    raise ResourceError(
        f"a tile of {plan.edge} x {plan.edge} needs {human_bytes(plan.memory_per_worker)} and {count} has "
        f"{human_bytes(share)}: {', or '.join(remedies)}"
    )


def batch_size(remaining: int, workers: int, seconds_per_tile: float, *, measured: bool) -> int:
    """Tiles of the next task: `BATCH_SECONDS` of work, less towards the end so that all workers finish together.

    Args:
        remaining: tiles that are in no task yet.
        workers: that share them.
        seconds_per_tile: on one worker.
        measured: False if that is the plan's projection: first tasks are short then, because it may be far off.
    """
    most = int(BATCH_SECONDS / seconds_per_tile) if seconds_per_tile else remaining
    if not measured:
        most = min(most, _FIRST_BATCH)
    return max(1, min(most, remaining // (2 * workers)))


def batches(addresses: Iterable[tuple[int, int]], size: Iterator[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Consecutive addresses in groups of `next(size)`, over the ends of rows: a task reads a row of images when it comes to it.

    Ends of tasks cost more than that: the write of the last tile, which nothing overlaps.

    Both arguments are consumed lazily: a size is asked for when its group begins.
    """
    addresses = iter(addresses)
    while True:
        first = next(addresses, None)
        if first is None:
            return
        yield (first, *islice(addresses, next(size) - 1))


def human_bytes(count: float) -> str:
    """A number of bytes for people, such as `16.8 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def human_seconds(seconds: float) -> str:
    """A duration for people, such as `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
