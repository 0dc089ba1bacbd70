"""The plan of the tiles and tasks of a Gram stage. It contains integers and floats only: no arrays, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from ntkpipe.kernels.cost import KernelCost
from ntkpipe.tiles.grid import TileGrid

Block = Literal["train", "test"]
KERNELS = 2
"""Kernels per network: one evaluation computes the NNGP and the NTK, and both are stored."""

ITEM_BYTES = {"float32": 4, "float64": 8}
"""Bytes of a number, by dtype."""

RECEIPT_BYTES = 4096
"""Disk space of one receipt: it has less than a kilobyte of text, but takes one block of most file systems."""

BATCH_SECONDS = 10.0
"""Seconds of work per task.

This is long compared with a task's overhead (a few ms) and its last write, which nothing overlaps. It is short enough
for frequent progress, and all workers finish at about the same time."""

# Tiles of the first tasks: enough for writes to overlap. For tiles that take minutes, `BATCH_SECONDS` reduces it to 1.
_FIRST_BATCH = 4


@dataclass(frozen=True)
class Rate:
    """Arithmetic rate of one worker.

    Args:
        flops: floating-point operations per second.
        source: origin of the number, for the user.
    """

    flops: float
    source: str


@dataclass(frozen=True)
class BlockPlan:
    """The tiles of one block that a run needs.

    Args:
        block: `train` or `test`.
        whole: the grid of the full data set, as stored.
        used: the leading block of `whole` that the run reads. Tiles at its edge are computed whole, because other runs
            share them.
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
        """Number of kernel evaluations; diagonal tiles count in full."""
        edge, rows, cols = self.whole.edge, self.whole.rows, self.whole.cols
        total = 0
        for i in range(self.used.tile_rows):
            last = i + 1 if self.used.symmetric else self.used.tile_cols
            total += (min((i + 1) * edge, rows) - i * edge) * min(last * edge, cols)
        return total


@dataclass(frozen=True)
class GramPlan:
    """The tiles of a run and their costs; made by `planning.tiles.plan_gram`.

    Args:
        spec: layers of the architecture.
        cost: of one evaluation of both kernels; for several depths, of the deepest network.
        blocks: `train`, then `test` if there are test images.
        edge: rows per tile.
        kernel_dtype: of the computation.
        store_dtype: of the stored tiles.
        workers: processes that compute at the same time.
        rate: of one worker.
        memory_per_worker: peak, in bytes.
        stores: descriptions of the Gram stores that share every evaluation; each stores all tiles.
        evaluations: kernel evaluations per pair: 2 if the flipped image is paired as well.
        pairs_per_step: columns that go through the layers at once; None lets the kernel choose.
        process_bytes: memory of a process that evaluates pairs, if it was measured.
        stored: False if tiles are recomputed on every read and only diagonals are stored.
        kernels: number of kernels in every tile: 2 for a network, or 1.
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
        """Number of tiles in all blocks, per store."""
        return sum(block.tiles for block in self.blocks)

    @property
    def pairs(self) -> int:
        """Number of pairs of images in all blocks."""
        return sum(block.pairs for block in self.blocks)

    @property
    def flops_per_pair(self) -> float:
        """Floating-point operations of one evaluation of both kernels."""
        return self.cost.flops_per_pair

    @property
    def flops(self) -> float:
        """Floating-point operations of all pairs."""
        return self.pairs * self.evaluations * self.flops_per_pair

    @property
    def disk_bytes(self) -> int:
        """Bytes of the stored tiles with padding and receipts. Diagonals count only if no tiles are stored; otherwise they
        take less than 0.1%.
        """
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
    """Number of tiles of the next task: `BATCH_SECONDS` of work, and less near the end, so that all workers finish together.

    Args:
        remaining: number of tiles that are in no task yet.
        workers: number of workers.
        seconds_per_tile: on one worker.
        measured: False if `seconds_per_tile` is a projection of the plan, which may be far off. The first tasks are
            short then.
    """
    most = int(BATCH_SECONDS / seconds_per_tile) if seconds_per_tile else remaining
    if not measured:
        most = min(most, _FIRST_BATCH)
    return max(1, min(most, remaining // (2 * workers)))


def batches(addresses: Iterable[tuple[int, int]], size: Iterator[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Consecutive addresses in groups of `next(size)`.

    A group may cross the end of a row of tiles. A task then reads another block of images, which costs less than the end
    of a task, where nothing overlaps the write of the last tile. Both arguments are consumed lazily: the size of a group
    is read when the group begins.
    """
    addresses = iter(addresses)
    while True:
        first = next(addresses, None)
        if first is None:
            return
        yield (first, *islice(addresses, next(size) - 1))
