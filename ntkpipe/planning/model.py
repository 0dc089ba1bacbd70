"""What a run takes on a machine: a roofline per stage. Seconds, bytes and money, from sizes and rates alone.

A stage is a sequence of phases. In a phase all resources work at the same time, and the busiest one, its bottleneck, decides how long
it takes. With W workers, n training and p test images of d numbers, c vectors (outputs), T tiles of both blocks, K kernels with P
passes each, and s bytes per number of a tile:

- start       `start`.
- images      `(n + p) d / images`, by the driver.
- Gram        compute `ceil(T / W) pairs / T seconds_per_pair`, half the pairs of tiles on the diagonal, plus
              `2 s pairs / (W write_path)` on CPUs, where both take the same core;
              store `(images read + max(0, bytes written - cache)) / bandwidth` and `3 T / requests`;
              scheduler `tasks task + T (record + 2 store_latency / 16)`, tasks as `gram.plan.batch_size` makes them; the driver reads
              and deletes every receipt to pack a thousand into one object, 16 at a time.
- Krylov      P passes, each: compute `2 n^2 c / (W skinny)`, or `s n^2 / 2 / (W tile_bandwidth)` on GPUs;
              store and path: the tiles not held in memory, all of them in the first pass; or, if tiles are recomputed, their evaluation;
              then the vectors and the workers' parts of the product, as `planning/allreduce_cost.py` counts them;
              then `4 n (c P)^2 / 2 sweeps / orthogonalise` over a basis that grows to c P vectors; and `step` each.
- Cholesky    `n^3 / 3 / (W factor)` for each ridge; store: each tile of the factor is written once, and read n / edge / 3 times.
- predict     one pass over the test tiles for every kernel, with as many vectors as the basis has or times, ridges and outputs.
- report      `finish`.

Passes grow with the condition of a kernel, hence with n. Without ridge at t = inf, fully connected networks of depth 3 on CIFAR-10 took 41,
56, 78 and 147 (NTK; n = 2,500, 5,000, 10,000, 50,000) and 53, 74 and 247 (NNGP; n = 2,500, 5,000, 50,000): `147 (n / 50,000)^0.42` and
`247 (n / 50,000)^0.52`. Beyond 50,000, and for other networks, that is an extrapolation; ridges and finite times need fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan, batch_size
from ntkpipe.planning.allreduce_cost import exchange
from ntkpipe.planning.machine import Machine
from ntkpipe.planning.roofline import Phase, Projection, Stage
from ntkpipe.planning.sample_rows import sample_rows

# Passes at n = 50,000, and the power of n by which they grow.
_PASSES = {"ntk": (147.0, 0.42), "nngp": (247.0, 0.52)}
_ITEM = {"float32": 4, "float64": 8}
# Over the basis in each step: the second one is made only where the first has lost norm.
_SWEEPS = 1.2
# Receipts that are packed at once (`tiles/ledger.py`).
_READERS = 16
# Objects of a tile: two kernels and a receipt.
_OBJECTS = 3


def expected_passes(kernel: str, n: int) -> int:
    """Over the train-train tiles, to a bound of 1e-4 at t = inf without ridge; see above."""
    passes, power = _PASSES[kernel]
    return max(5, round(passes * (n / 50_000) ** power))


def vectors(config: RunConfig, outputs: int) -> int:
    """Right-hand sides: one-hot labels less their mean leave one direction out."""
    return max(1, outputs - (config.data.labels == "centered"))


@dataclass(frozen=True)
class Sizes:
    """What a projection needs of a run besides its tiles.

    Args:
        numbers: of an image.
        outputs: of the network.
        passes: over the tiles, by kernel.
        pair_seconds: of one worker, by dtype.
        prepared: whether the images are in the store already.
    """

    numbers: int
    outputs: int
    passes: Mapping[str, int]
    pair_seconds: Mapping[str, float]
    prepared: bool = False


def pair_seconds(plan: GramPlan, machine: Machine, dtype: str, traffic: float) -> float:
    """Roofline of one evaluation of a pair: arithmetic, or the covariances that layers read and write.

    Args:
        plan: whose network it is.
        machine: whose worker it is.
        dtype: of the computation.
        traffic: numbers that are read and written for a pair, of both kernels.
    """
    flops = plan.cost.product_flops / machine.rate("matrix", dtype)
    flops += plan.cost.elementwise_flops / machine.rate("elementwise", dtype)
    # On a CPU a block of covariances goes through all layers in a core's cache (docs/performance.md).
    return max(flops, traffic * _ITEM[dtype] / machine.memory_bandwidth.value) if accelerated(machine) else flops


def accelerated(machine: Machine) -> bool:
    """Whether workers are GPUs: they move tiles while they compute, and their products are bound by the tiles' bytes."""
    return machine.tile_bandwidth.value > 0


def held_share(config: RunConfig, plan: GramPlan, machine: Machine) -> float:
    """Of a kernel's train-train tiles, what stays in the workers' memory between passes."""
    item = _ITEM["float32" if config.solver.products == "float32" else plan.store_dtype]
    rows = plan.blocks[0].used.rows
    spare = max(0.0, machine.memory.value - (0.0 if plan.stored else plan.memory_per_worker))
    return min(1.0, spare * machine.all_workers / (rows * (rows + plan.edge) / 2 * item))


def project(config: RunConfig, plan: GramPlan, sizes: Sizes, machine: Machine) -> Projection:
    """All stages of a run with this configuration.

    Args:
        config: solver, precision, times and ridges.
        plan: of the tiles; `plan.stored` says whether they are stored or computed on every pass.
        sizes: see there.
        machine: to run on.
    """
    at = _At(config, plan, sizes, machine)
    return Projection(
        machine, plan, (at.start(), at.images(), at.gram(), at.solve(), at.predict(), at.report()), tuple(at.notes())
    )


class _At:
    """One run on one machine."""

    def __init__(self, config: RunConfig, plan: GramPlan, sizes: Sizes, machine: Machine) -> None:
        self.config, self.plan, self.sizes, self.machine = config, plan, sizes, machine
        self.w, self.item = machine.all_workers, _ITEM[plan.store_dtype]
        self.n = plan.blocks[0].used.rows
        self.p = plan.blocks[1].used.rows if len(plan.blocks) > 1 else 0
        self.c = vectors(config, sizes.outputs)
        self.kernels = list(dict.fromkeys("nngp" if k == "nngp" else "ntk" for k in config.predict.kernels))
        self.train = self.n * (self.n + plan.edge) / 2 * self.item
        self.test = float(self.p * self.n * self.item)
        self.held = held_share(config, plan, machine)

    def path(self, nbytes: float, kind: str) -> float:
        return nbytes / (self.w * getattr(self.machine, f"{kind}_path").value)

    def write(self, nbytes: float) -> float:
        """Seconds of the store: what the page cache takes is not waited for."""
        return max(0.0, nbytes - self.machine.cache.value) / self.machine.store_bandwidth("write")

    def read(self, nbytes: float, of: float) -> float:
        """Seconds of the store to read so much of `of` bytes that were written before: none if the page cache has them."""
        return 0.0 if of <= self.machine.cache.value else nbytes / self.machine.store_bandwidth("read")

    def together(self, compute: float, path: float, store: float, **others: float) -> Phase:
        """On CPUs tiles are checked and copied by the core that computes."""
        if accelerated(self.machine):
            return Phase({"compute": compute, "tile path": path, "store": store, **others})
        return Phase({"compute": compute + path, "store": store, **others})

    def start(self) -> Stage:
        return Stage("start", (Phase({"start": self.machine.start.value}),))

    def images(self) -> Stage:
        numbers = (
            self.plan.blocks[0].whole.rows + sum(b.whole.rows for b in self.plan.blocks[1:])
        ) * self.sizes.numbers
        nbytes = float(numbers * _ITEM[self.plan.kernel_dtype])
        if self.sizes.prepared:
            return Stage("images", (Phase({"driver": 0.0}),), stored=nbytes)
        busy = {"driver": numbers / self.machine.images.value, "store": self.write(nbytes)}
        return Stage("images", (Phase(busy),), written=nbytes, stored=nbytes)

    def evaluation(self, *blocks: int) -> float:
        """Seconds to evaluate the tiles of some blocks once, on all workers: rounds of whole tiles."""
        tiles, pairs = 0, 0.0
        for block in (self.plan.blocks[k] for k in blocks if k < len(self.plan.blocks)):
            tiles += block.tiles
            pairs += block.pairs
            if block.used.symmetric:  # of a tile on the diagonal one triangle is computed
                whole, rest = divmod(min(block.used.tile_rows * block.whole.edge, block.whole.rows), block.whole.edge)
                pairs -= (whole * block.whole.edge**2 + rest**2) / 2
        pair = self.plan.evaluations * self.sizes.pair_seconds[self.plan.kernel_dtype]
        return math.ceil(tiles / self.w) * pairs / tiles * pair if tiles else 0.0

    def gram(self) -> Stage:
        plan, machine = self.plan, self.machine
        diagonal = (self.n + self.p) * self.sizes.pair_seconds["float64"] / self.w
        start = Phase({"start": machine.first_tile.value})
        if not plan.stored:
            return Stage("gram", (start, Phase({"compute": diagonal})), stored=plan.disk_bytes)
        written = float(plan.disk_bytes)
        item = _ITEM[plan.kernel_dtype]
        # A task keeps its row block, and reads a block of columns for every tile.
        read = float(plan.tiles * plan.edge * self.sizes.numbers * item)
        tile = plan.pairs / plan.tiles * plan.evaluations * self.sizes.pair_seconds[plan.kernel_dtype]
        tasks = plan.tiles / batch_size(plan.tiles, self.w, tile, measured=True)
        work = self.together(
            diagonal + self.evaluation(0, 1),
            self.path(written, "write") + self.path(read, "read"),
            self.write(written) + self.read(read, self.plan.blocks[0].whole.rows * self.sizes.numbers * item),
            scheduler=tasks * machine.task.value
            + plan.tiles * (machine.record.value + 2 * machine.store_latency.value / _READERS),
            requests=plan.tiles * (_OBJECTS * len(plan.stores) + plan.edge / 512) / machine.requests.value,
        )
        return Stage("gram", (start, work), read, written, 0.0, written)

    def exact(self) -> Phase:
        """Rows recomputed in float64, of both kernels at once."""
        rows = sample_rows(self.config, self.plan, self.n)
        return Phase({"compute": rows * self.n * self.plan.evaluations * self.sizes.pair_seconds["float64"] / self.w})

    def solve(self) -> Stage:
        kind = self.config.solver.kind
        if kind == "cholesky":
            return self.factor()
        if kind == "eigh":
            return self.eigensystem()
        phases, read, moved, stored = [Phase({"start": self.machine.first_solve.value}), self.exact()], 0.0, 0.0, 0.0
        for kernel in self.kernels:
            passes = self.sizes.passes[kernel]
            made, taken = self.passes(passes)
            phases += made
            read += taken
            moved += passes * exchange(self.machine, 8.0 * self.n * self.c).moved
            stored += 8.0 * self.n * self.c * passes if kind == "krylov" else 0.0
        return Stage("solve", tuple(phases), read, stored, moved, stored)

    def passes(self, passes: int) -> tuple[list[Phase], float]:
        """The phases of one kernel's solve, and the bytes that it reads."""
        machine, n, c = self.machine, self.n, self.c
        flops = 2.0 * n * n * c
        if accelerated(machine):
            compute = max(
                flops / (self.w * machine.rate("matrix", self.config.solver.products)),
                self.train / (self.w * machine.tile_bandwidth.value),
            )
        else:
            compute = flops / (self.w * machine.rate("skinny", self.config.solver.products))
        # Shares of whole tiles: the largest share decides.
        tiles = self.plan.blocks[0].tiles
        compute *= math.ceil(tiles / self.w) * self.w / tiles if tiles < 50 * self.w else 1.0
        again = (1 - self.held) * (passes - 1)
        if self.plan.stored:
            read = self.train * (2 + again)  # once more for the sampled rows
            work = self.together((passes + 1) * compute, self.path(read, "read"), self.read(read, self.plan.disk_bytes))
        else:
            read = 0.0
            work = Phase({"compute": (passes + 1) * compute + (1 + again) * self.evaluation(0)})
        m = c * passes
        phases = [
            Phase({"start": machine.pool.value}),
            work,
            Phase({"network": passes * exchange(machine, 8.0 * n * c).seconds}),
            Phase({"driver": passes * machine.step.value}),
        ]
        if self.config.solver.kind == "krylov":
            phases.append(
                Phase(
                    {
                        "driver": 4.0 * _SWEEPS * n * m * m / 2 / machine.orthogonalise.value,
                        "store": self.write(8.0 * n * m),
                    }
                )
            )
        return phases, read

    def factor(self) -> Stage:
        machine, n = self.machine, self.n
        precision = "float64"
        count = len(self.kernels) * len(self.config.predict.ridges)
        written = 8.0 * n * n / 2
        read = self.train + written * max(
            1.0, n / self.plan.edge / 3 * (1 - min(1.0, machine.memory.value * self.w / written))
        )
        work = self.together(
            n**3 / 3 / (self.w * machine.rate("factor", precision)),
            self.path(written, "write") + self.path(read, "read"),
            self.write(written) + self.read(read, written),
        )
        evaluated = () if self.plan.stored else (Phase({"compute": self.evaluation(0)}),)
        phases = (Phase({"start": machine.pool.value}), *(work, *evaluated) * count)
        return Stage("solve", phases, count * read, count * written, 0.0, count * written)

    def eigensystem(self) -> Stage:
        n, count = self.n, len(self.kernels)
        flops = 9.0 * n**3 / self.machine.rate("factor", "float64")
        return Stage(
            "solve",
            (Phase({"driver": count * flops, "store": self.read(count * self.train, self.plan.disk_bytes)}),),
            count * self.train,
        )

    def predict(self) -> Stage:
        machine, config = self.machine, self.config.predict
        times = len(config.times) if config.times is not None else 20
        wanted = times * len(config.ridges) * self.c
        phases, read = [self.exact()], 0.0
        for kernel in self.kernels:
            columns = min(self.sizes.passes[kernel] * self.c, wanted) if self.config.solver.kind == "krylov" else wanted
            flops = 2.0 * self.p * self.n * columns
            rate = machine.rate("matrix", self.config.solver.products)
            compute = flops / (self.w * rate)
            phases.append(Phase({"start": machine.pool.value}))
            if self.plan.stored:
                read += self.test
                phases.append(
                    self.together(compute, self.path(self.test, "read"), self.read(self.test, self.plan.disk_bytes))
                )
            else:
                phases.append(Phase({"compute": compute + self.evaluation(1)}))
            phases.append(
                Phase(
                    {
                        "network": 8.0
                        * columns
                        * (self.n * machine.nodes.value + self.p * self.w)
                        / machine.network.value
                    }
                )
            )
        return Stage(
            "predict", tuple(phases), read, moved=8.0 * wanted * (self.n * machine.nodes.value + self.p * self.w)
        )

    def report(self) -> Stage:
        return Stage("report", (Phase({"driver": self.machine.finish.value}),))

    def notes(self) -> Sequence[str]:
        found, n, c = [], self.n, self.c
        machine, solver = self.machine, self.config.solver
        most = max((self.sizes.passes[k] for k in self.kernels), default=0)
        if solver.kind in ("krylov", "cg") and most > solver.max_steps:
            found.append(f"about {most:,} passes are expected: set solver.max_steps above, or add a ridge")
        basis = 8.0 * n * c * most
        if solver.kind == "krylov" and basis > machine.driver_memory.value:
            found.append(
                f"the basis takes {basis / 1e9:,.0f} GB and the driver's node has {machine.driver_memory.value / 1e9:,.0f} GB: "
                "solver=cg, a ridge, or a larger head node"
            )
        if solver.kind == "eigh" and 24.0 * n * n > machine.driver_memory.value:
            found.append(f"eigh needs {24.0 * n * n / 1e9:,.0f} GB in one process: use solver=krylov")
        if self.plan.memory_per_worker > machine.memory.value:
            found.append("a tile does not fit into a worker's memory: set a smaller grid.edge")
        if self.plan.stored and self.held < 1:
            found.append(
                f"{self.held:.0%} of a kernel's tiles stay in the workers' memory, the rest is read on every pass"
            )
        return found
