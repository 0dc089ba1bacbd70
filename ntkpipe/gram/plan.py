"""The tiles that a Gram stage computes, before anything runs, and how they go into tasks. Integers and floats only: no arrays, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from ntkpipe.kernels.cost import KernelCost
from ntkpipe.tiles.grid import TileGrid

Block = Literal["train", "test"]
KERNELS = 2
"""NNGP and NTK of a network come from one evaluation and are both stored."""

ITEM_BYTES = {"float32": 4, "float64": 8}
"""Bytes of a number, by dtype."""

RECEIPT_BYTES = 4096
"""One receipt: below a kilobyte of text, but a block of most file systems."""

BATCH_SECONDS = 10.0
"""Work per task: so long that a task's overhead (a few ms) and its one write that nothing overlaps do not count, so
short that progress is seen and little is left to the last worker."""

# Enough for writes to overlap; of a tile that takes minutes, `BATCH_SECONDS` makes it one.
_FIRST_BATCH = 4


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
    """The tiles of a run and what is known of each; made by `planning.tiles.plan_gram`.

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
        kernels: in every tile: both of a network, or one.
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
    kernels: int = KERNELS

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
        item = ITEM_BYTES[self.store_dtype]
        total = 0
        if not self.stored:
            return sum(
                block.used.tile_rows * RECEIPT_BYTES + block.used.rows * 8 * self.kernels for block in self.blocks
            )
        for block in self.blocks:
            chunk = min(self.edge, block.whole.rows) * min(self.edge, block.whole.cols) * item + 4
            total += block.tiles * (self.kernels * chunk + RECEIPT_BYTES)
        return total * len(self.stores)

    @property
    def seconds_per_tile(self) -> float:
        """Projected duration of a whole tile on one worker."""
        return self.edge**2 * self.evaluations * self.flops_per_pair / self.rate.flops

    @property
    def seconds(self) -> float:
        """Projected duration on all workers."""
        return self.flops / (self.rate.flops * self.workers)


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
