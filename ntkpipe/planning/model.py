"""Cost model of a run: a roofline per stage gives seconds, bytes and processor seconds from sizes and rates.

A stage is a sequence of phases. In a phase all resources work at the same time, and the busiest one, its bottleneck,
determines its duration. With W workers, n training and p test images of d numbers, c vectors (outputs), T tiles of both
blocks, K kernels with P passes each, and s bytes per number of a tile, in seconds:

- start       `start`.
- images      `(n + p) d / images`, by the driver.
- Gram        compute `ceil(T / W) pairs / T pair_seconds`, half the pairs of tiles on the diagonal, plus `2 s pairs / (W write_path)`
              on CPUs, where both take the same core;
              store `(images read + max(0, bytes written - cache)) / bandwidth` and `3 T / requests`;
              scheduler `tasks task + T record`, tasks as `gram.plan.batch_size` makes them;
              packing `T (2 store_latency / 16 + 3 store_latency / 1000)`: a thread beside the driver's loop reads receipts and deletes
              them, 16 at a time, and puts a thousand as one object (`gram/stage.py`). It delays no task, but the stage ends when it has
              caught up.
- solve, predict   see `solving.py`.
- report      `finish`.

Processor seconds are those of all processes: a worker computes with `threads` threads and moves tiles with one, the driver's linear algebra
has `driver_threads`, and of fixed costs those count that were measured (`Figure.processor_seconds`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import ITEM_BYTES, GramPlan, batch_size
from ntkpipe.linalg.factor.plan import FactorPlan
from ntkpipe.planning.machine import Figure, Machine
from ntkpipe.planning.memory import Budget
from ntkpipe.planning.passes import solved_kernels
from ntkpipe.planning.roofline import Phase, Stage
from ntkpipe.planning.sample_rows import sample_rows
from ntkpipe.tiles.segment import SEGMENT

PACKED_AT_ONCE = 16
"""Receipts that are read or deleted at the same time while they are packed (`tiles/ledger.py`)."""

# Objects of a tile: two kernels and a receipt; requests to pack a segment, besides its receipts.
_OBJECTS, _SEGMENT_REQUESTS = 3, 3
# Images in an object of the prepared data.
_IMAGES_OF_OBJECT = 512


def vectors(config: RunConfig, outputs: int) -> int:
    """Number of right-hand sides. Centred one-hot labels of c classes span c - 1 directions."""
    return max(1, outputs - (config.data.labels == "centered"))


@dataclass(frozen=True)
class Sizes:
    """Quantities of a run that a projection needs besides its tiles.

    Args:
        numbers: per image.
        outputs: number of outputs of the network.
        passes: over the tiles, by kernel.
        pair_seconds: seconds per pair of one worker, by dtype.
        budget: division of the memory.
        times: number of training times of the predictions.
        batch: number of test images per batch of variances; 0 without variances.
        factors: plan of one factor, for `cholesky`.
        prepared: whether the images are already in the store.
        there: share of the tiles that are already in the store.
    """

    numbers: int
    outputs: int
    passes: Mapping[str, int]
    pair_seconds: Mapping[str, float]
    budget: Budget
    times: int
    batch: int = 0
    factors: FactorPlan | None = None
    prepared: bool = False
    there: float = 0.0


class Work:
    """One run on one machine: the quantities that the stages share, and the stages up to the Gram matrix.

    Args:
        config: solver, precision, times and ridges.
        plan: of the tiles; `plan.stored` says whether they are stored or computed on every pass.
        sizes: see there.
        machine: to run on.
    """

    def __init__(self, config: RunConfig, plan: GramPlan, sizes: Sizes, machine: Machine) -> None:
        self.config, self.plan, self.sizes, self.machine = config, plan, sizes, machine
        self.w, self.item = machine.all_workers, ITEM_BYTES[plan.store_dtype]
        self.n = plan.blocks[0].used.rows
        self.p = plan.blocks[1].used.rows if len(plan.blocks) > 1 else 0
        self.c = vectors(config, sizes.outputs)
        self.kernels = solved_kernels(config)
        self.train = self.n * (self.n + plan.edge) / 2 * self.item
        self.test = float(self.p * self.n * self.item)
        self.held = held_share(config, plan, sizes.budget.tiles)

    # ---- resources

    def path(self, nbytes: float, kind: str) -> float:
        """Worker seconds, summed over workers, to `read` or `write` bytes through checksums and copies."""
        return nbytes / getattr(self.machine, f"{kind}_path").value

    def write(self, nbytes: float) -> float:
        """Seconds of the store to write bytes; bytes that fit into the page cache cost no time."""
        return max(0.0, nbytes - self.machine.cache.value) / self.machine.store_bandwidth("write")

    def read(self, nbytes: float, of: float) -> float:
        """Seconds of the store to read a part of `of` bytes that were written before; 0 if the page cache holds them."""
        return 0.0 if of <= self.machine.cache.value else nbytes / self.machine.store_bandwidth("read")

    def computing(
        self, work: float, *, path: float = 0.0, store: float = 0.0, slowest: float = 1.0, **others: float
    ) -> Phase:
        """A phase of all workers.

        Args:
            work: seconds of computing, summed over workers.
            path: seconds of moving tiles, summed over workers, with one thread each.
            store: seconds that the store is busy.
            slowest: time of the last worker relative to the mean.
            others: seconds that other resources are busy.
        """
        compute, through = slowest * work / self.w, path / self.w
        used = work * self.machine.threads.value + path
        if self.machine.accelerated:
            return Phase({"compute": compute, "tile path": through, "store": store, **others}, used)
        # On CPUs tiles are checked and copied by the core that computes.
        return Phase({"compute": compute + through, "store": store, **others}, used)

    def algebra(self, flops: float, store: float = 0.0) -> Phase:
        """A memory-bound phase of products with long vectors in the driver, which occupies all its threads."""
        seconds = flops / self.machine.orthogonalise.value
        return Phase({"driver": seconds, "store": store}, seconds * self.machine.driver_threads.value)

    # ---- pieces of several stages

    def evaluation(self, *blocks: int) -> tuple[float, float]:
        """Seconds of all workers to evaluate the tiles of some blocks once, and the imbalance factor of the last
        worker.
        """
        tiles, pairs = 0, 0.0
        for block in (self.plan.blocks[k] for k in blocks if k < len(self.plan.blocks)):
            tiles += block.tiles
            pairs += block.pairs
            if block.used.symmetric:  # of a tile on the diagonal one triangle is computed
                whole, rest = divmod(min(block.used.tile_rows * block.whole.edge, block.whole.rows), block.whole.edge)
                pairs -= (whole * block.whole.edge**2 + rest**2) / 2
        pair = self.plan.evaluations * self.sizes.pair_seconds[self.plan.kernel_dtype]
        return pairs * pair, self.rounds(tiles)

    def rounds(self, tiles: int) -> float:
        """Ratio of the last worker's time to the mean, for a number of tiles on W workers."""
        return math.ceil(tiles / self.w) * self.w / tiles if tiles else 1.0

    def exact(self) -> Phase:
        """The phase that recomputes rows of both kernels in float64."""
        rows = sample_rows(self.config, self.plan, self.n)
        return self.computing(rows * self.n * self.plan.evaluations * self.sizes.pair_seconds["float64"])

    # ---- stages

    def start(self) -> Stage:
        """The stage that starts the workers."""
        return Stage("start", (fixed(self.machine.start),))

    def images(self) -> Stage:
        """The stage that reads, standardises, hashes and writes the images."""
        numbers = sum(block.whole.rows for block in self.plan.blocks) * self.sizes.numbers
        nbytes = float(numbers * ITEM_BYTES[self.plan.kernel_dtype])
        if self.sizes.prepared:
            return Stage("images", (Phase({"driver": 0.0}),), stored=nbytes)
        seconds = numbers / self.machine.images.value
        return Stage(
            "images", (Phase({"driver": seconds, "store": self.write(nbytes)}, seconds),), written=nbytes, stored=nbytes
        )

    def gram(self) -> Stage:
        """The stage that computes missing tiles and the diagonals."""
        plan, machine, new = self.plan, self.machine, 1.0 - self.sizes.there
        first = fixed(machine.first_tile)
        diagonal = (self.n + self.p) * self.sizes.pair_seconds["float64"]
        if not plan.stored:
            return Stage("gram", (first, self.computing(diagonal)), stored=plan.disk_bytes)
        written, item = new * plan.disk_bytes, ITEM_BYTES[plan.kernel_dtype]
        # A task keeps its row block and reads a column block for every tile.
        read = new * plan.tiles * plan.edge * self.sizes.numbers * item
        tile = plan.pairs / plan.tiles * plan.evaluations * self.sizes.pair_seconds[plan.kernel_dtype]
        tiles = new * plan.tiles
        tasks = tiles / batch_size(plan.tiles, self.w, tile, measured=True)
        work, slowest = self.evaluation(0, 1)
        latency = machine.store_latency.value
        phase = self.computing(
            new * work + diagonal,
            slowest=slowest,
            path=self.path(written, "write") + self.path(read, "read"),
            store=self.write(written) + self.read(read, self.plan.blocks[0].whole.rows * self.sizes.numbers * item),
            scheduler=tasks * machine.task.value + tiles * machine.record.value,
            packing=tiles * latency * (2 / PACKED_AT_ONCE + _SEGMENT_REQUESTS / SEGMENT),
            requests=tiles * (_OBJECTS * len(plan.stores) + plan.edge / _IMAGES_OF_OBJECT) / machine.requests.value,
        )
        scheduling = Phase(phase.busy, phase.processor_seconds + phase.busy["scheduler"])
        return Stage("gram", (first, scheduling), read, written, 0.0, float(plan.disk_bytes))

    def report(self) -> Stage:
        """The stage that writes metrics, figures and the page."""
        return Stage("report", (fixed(self.machine.finish, "driver"),))


def fixed(figure: Figure, name: str = "start") -> Phase:
    """A phase of fixed duration."""
    return Phase({name: figure.value}, figure.used)


def held_share(config: RunConfig, plan: GramPlan, room: float) -> float:
    """Share of a kernel's train-train tiles that `room` bytes hold between passes."""
    item = ITEM_BYTES["float32" if config.solver.products == "float32" else plan.store_dtype]
    rows = plan.blocks[0].used.rows
    return min(1.0, max(0.0, room) / (rows * (rows + plan.edge) / 2 * item))
