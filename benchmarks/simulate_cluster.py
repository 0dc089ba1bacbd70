"""Discrete-event simulation of the Gram and solve stages on N nodes with G GPUs: which resource is busy, and which one decides.

    python benchmarks/simulate_cluster.py [--profile h200x8x16] [--kernel myrtle10] [--sizes 50000 1000000 5000000] [--figure docs/figures]

Nothing here is measured on a cluster. Unit costs are the figures of the profile (`conf/cluster/profile`: data sheets,
assumptions, and measurements on two cores, each with its origin). Numbers of tiles, bytes, batches and shares come from
the program's own planning functions (`plan_gram`, `batch_size`, `balanced_shares`, `expected_passes`).

The Gram stage has a driver that handles one message at a time, and a thread beside it that packs a thousand receipts at
once. Workers have three tasks in flight, and compute a tile while the one before is written and the next is read. The
store has a total bandwidth, a bandwidth per node, a rate of requests and a latency. Tiles have random durations, some are
stragglers, and nodes are lost and replaced; their tasks are repeated. Second copies of stragglers are not simulated.

In the solve stage, a pass ends when the slowest worker has ended. Parts are summed between the nodes (with
`--sums driver` they arrive one after the other at the driver's link). The driver (`--basis driver`) or the workers
(`--basis slices`) orthogonalise vectors. Lost nodes read their tiles again. Above `--most-tiles`, a part of the tiles is
simulated, and the others count at the rate of its middle.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntkpipe.cli.folder import profiles
from ntkpipe.config import ClusterConfig, KernelConfig, PredictConfig, RunConfig, SolverConfig
from ntkpipe.gram.plan import batch_size
from ntkpipe.linalg.operator import balanced_shares
from ntkpipe.planning.allreduce_cost import allreduce_cost, at_the_driver
from ntkpipe.planning.machine import Machine, load_profile
from ntkpipe.planning.model import PACKED_AT_ONCE
from ntkpipe.planning.passes import expected_passes
from ntkpipe.planning.plan import RunPlan
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import on_profile
from ntkpipe.tiles.segment import SEGMENT
from ntkpipe.units import human_seconds

FLIGHT = 3  # tasks per worker, `cluster/ray_executor.py`
DETECTED, BACK = 30.0, 600.0  # seconds until a lost node is noticed, and until another takes its place
SLICE_RATE = 2e11  # flops per second of skinny products by the cores beside one GPU: eight at 25 GF/s, assumed
SHARES = 200_000  # tiles beyond which shares are taken to be equal


@dataclass(frozen=True)
class World:
    """Parameters that a profile does not have.

    Args:
        sigma: standard deviation of the logarithm of a tile's duration.
        stragglers: share of tiles that take `slow` times as long.
        losses: number of losses of a node per day.
    """

    sigma: float = 0.1
    stragglers: float = 1e-3
    slow: float = 5.0
    losses: float = 0.02


class Server:
    """A server that handles one request after the other, at a given rate."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free, self.busy = rate, 0.0, 0.0

    def serve(self, now: float, amount: float) -> float:
        """Return the time when it has handled an `amount` that arrives now."""
        took = amount / self.rate
        self.free = max(now, self.free) + took
        self.busy += took
        return self.free


class GramStage:
    """The Gram stage as events.

    The events are `tile` (a tile is computed), `task` (its last tile is written), `told` (the driver knows it), and
    losses of nodes.
    """

    def __init__(
        self, projection: RunPlan, pair: float, numbers: int, world: World, rng: np.random.Generator, most: int
    ):
        machine, plan = projection.machine, projection.tiles
        self.machine, self.plan, self.world, self.rng = machine, plan, world, rng
        self.nodes, self.per_node, self.workers = (
            int(machine.nodes.value),
            int(machine.workers.value),
            machine.all_workers,
        )
        self.tiles = min(plan.tiles, most)
        self.tile_bytes, self.image_bytes = plan.disk_bytes / plan.tiles, plan.edge * numbers * 4.0
        self.mean = plan.pairs / plan.tiles * plan.evaluations * pair
        slow = np.where(rng.random(self.tiles) < world.stragglers, world.slow, 1)
        self.waiting = deque((self.mean * np.exp(rng.normal(0, world.sigma, self.tiles)) * slow).tolist())
        self.again: deque[list[float]] = deque()
        self.driver, self.packer, self.requests = Server(1.0), Server(1.0), Server(machine.requests.value)
        self.writes, self.reads = Server(machine.store_write.value), Server(machine.store_read.value)
        self.links = [Server(machine.node_store.value) for _ in range(self.nodes)]
        # A thousand receipts are read, `PACKED_AT_ONCE` at once, put as one object and deleted: by a thread beside the driver.
        self.pack = (
            SEGMENT * 2 * self.machine.store_latency.value / PACKED_AT_ONCE + 3 * self.machine.store_latency.value
        )
        # Tasks of each worker, as durations of their tiles; a lost worker's events are of an earlier epoch, and void.
        self.tasks: list[deque[list[float]]] = [deque() for _ in range(self.workers)]
        self.alive, self.epoch = [True] * self.workers, [0] * self.workers
        self.written = [0.0] * self.workers
        self.ahead = [0.0] * self.workers  # when the images of the next tile are there
        self.events: list[tuple] = []
        self.now, self.order, self.left = 0.0, 0, self.tiles
        self.computing, self.unpacked, self.lost, self.finished = 0.0, 0, 0, []

    def run(self) -> dict:
        """Return the seconds of the stage and the busy share of every resource."""
        for _ in range(FLIGHT):
            for w in range(self.workers):
                self.give(w)
        self.next_loss()
        while self.left > 0:
            self.now, _, handle, *what = heapq.heappop(self.events)
            handle(*what)
        end = max(self.now, self.driver.free, self.packer.free)
        # Tiles that were not simulated go at the rate of the middle half.
        times, tiles = (np.array(column) for column in zip(*self.finished, strict=True))
        low, high = (int(np.searchsorted(np.cumsum(tiles), part * self.tiles)) for part in (0.25, 0.75))
        rate = tiles[low + 1 : high + 1].sum() / max(times[high] - times[low], 1e-9)
        more = (self.plan.tiles - self.tiles) / rate
        busy = {
            "compute": self.computing / self.workers,
            "driver": self.driver.busy,
            "packing": self.packer.busy,
            "store": max(self.writes.busy, self.reads.busy),
            "node links": max(link.busy for link in self.links),
            "requests": self.requests.busy,
        }
        return {
            "seconds": self.machine.first_tile.value + end + more,
            "busy": {name: value / end for name, value in busy.items()},
            "tiles": self.plan.tiles,
            "lost": self.lost,
            "simulated": self.tiles / self.plan.tiles,
        }

    def at(self, time: float, handle: Callable[..., None], *what: object) -> None:
        """Schedule an event."""
        self.order += 1
        heapq.heappush(self.events, (time, self.order, handle, *what))

    def give(self, w: int) -> None:
        """Let the driver send a task to a worker, if there is one."""
        if self.again:
            task = self.again.popleft()
        elif self.waiting:
            size = batch_size(len(self.waiting), self.workers, self.mean, measured=True)
            task = [self.waiting.popleft() for _ in range(size)]
        else:
            return
        self.tasks[w].append(task)
        if len(self.tasks[w]) == 1:
            self.begin(w)

    def images(self, w: int) -> float:
        """Return the time when the column images of a tile arrive, if they are requested now."""
        link = self.links[w // self.per_node]
        requested = self.requests.serve(self.now, self.plan.edge / 512)
        here = max(self.reads.serve(self.now, self.image_bytes), link.serve(self.now, self.image_bytes), requested)
        return self.machine.store_latency.value + here

    def begin(self, w: int) -> None:
        """Begin the first tile of the first task, whose images were not requested before."""
        task, here = self.tasks[w][0], self.images(w)
        self.ahead[w] = self.images(w) if len(task) > 1 else here
        self.at(here + task[0], self.tile, w, self.epoch[w], 0)

    def tile(self, w: int, epoch: int, k: int) -> None:
        """A tile is computed: it is written while the next one is computed, once the one before is written.

        As long the images of the one after the next are read.
        """
        if epoch != self.epoch[w]:
            return
        task, begun = self.tasks[w][0], self.written[w]
        self.computing += task[k]
        start = max(self.now, begun)
        self.written[w] = self.machine.store_latency.value + max(
            start + self.tile_bytes / self.machine.write_path.value,
            self.writes.serve(start, self.tile_bytes),
            self.links[w // self.per_node].serve(start, self.tile_bytes),
            self.requests.serve(start, 3 * len(self.plan.stores)),
        )
        if k + 1 < len(task):
            start = max(self.now, self.ahead[w], begun)
            self.ahead[w] = self.images(w) if k + 2 < len(task) else start
            self.at(start + task[k + 1], self.tile, w, epoch, k + 1)
        else:
            self.at(self.written[w], self.task, w, epoch)

    def task(self, w: int, epoch: int) -> None:
        """Handle a finished task: the next one begins, and the driver receives a message."""
        if epoch != self.epoch[w]:
            return
        done = len(self.tasks[w].popleft())
        if self.tasks[w]:
            self.begin(w)
        self.left -= done
        self.unpacked += done
        self.finished.append((self.now, done))
        told = self.driver.serve(self.now, self.machine.task.value + done * self.machine.record.value)
        if self.unpacked >= SEGMENT and self.packer.free <= told:  # else it is packed when the thread is next free
            segments, self.unpacked = divmod(self.unpacked, SEGMENT)
            self.requests.serve(told, 2 * SEGMENT * segments)
            self.packer.serve(told, segments * self.pack)
        self.at(told, self.told, w, epoch)

    def told(self, w: int, epoch: int) -> None:
        """Handle the driver's receipt of a message about a task."""
        if epoch == self.epoch[w]:
            self.give(w)

    def next_loss(self) -> None:
        """Schedule the next loss of a node; losses are independent of each other."""
        if self.world.losses:
            self.at(self.now + float(self.rng.exponential(86400 / self.world.losses / self.nodes)), self.loss)

    def loss(self) -> None:
        """Handle the loss of a node with its tasks; another node replaces it."""
        node = int(self.rng.integers(self.nodes))
        for w in range(node * self.per_node, (node + 1) * self.per_node):
            if self.alive[w]:
                self.alive[w], self.epoch[w] = False, self.epoch[w] + 1
                self.lost += len(self.tasks[w][0]) if self.tasks[w] else 0
                self.at(self.now + DETECTED, self.requeue, list(self.tasks[w]))
                self.tasks[w].clear()
                self.at(self.now + BACK, self.back, w)
        self.next_loss()

    def requeue(self, tasks: list[list[float]]) -> None:
        """Handle the driver's notice of a loss: idle workers take the tasks at once, and others later."""
        self.again.extend(tasks)
        for w in range(self.workers):
            if self.alive[w] and not self.tasks[w] and self.again:
                self.give(w)

    def back(self, w: int) -> None:
        """Start a worker of the new node."""
        self.alive[w] = True
        for _ in range(FLIGHT):
            self.give(w)


def solve(
    projection: RunPlan,
    config: RunConfig,
    outputs: int,
    world: World,
    rng: np.random.Generator,
    basis: str,
    sums: str,
) -> dict:
    """Simulate block Lanczos, and return the seconds and the busy share of every resource."""
    machine, plan = projection.machine, projection.tiles
    workers, nodes = machine.all_workers, int(machine.nodes.value)
    n, c = plan.blocks[0].used.rows, outputs - 1
    kernel = n * (n + plan.edge) / 2 * 4.0
    held = projection.work.held
    tiles = plan.blocks[0].tiles
    share = np.full(workers, 1 / workers)
    if tiles <= SHARES:
        counts = np.array([len(s) for s in balanced_shares(plan.blocks[0].used, workers, symmetric=True)], float)
        share = np.pad(counts, (0, workers - len(counts))) / counts.sum()
    flops, each = 2.0 * n * n * c, max(1, tiles // workers)
    busy: Counter[str] = Counter()
    seconds, losses = 0.0, 0
    for name in config.predict.kernels:
        seconds += machine.pool.value
        passes = expected_passes(name, n)
        for k in range(passes):
            # Of many tiles the mean varies less than one does, but machines are not equal either.
            noise = np.exp(rng.normal(0, max(world.sigma / math.sqrt(each), 0.02), workers))
            noise += (world.slow - 1) * rng.binomial(each, world.stragglers, workers) / each
            work = share * max(flops / machine.rate("matrix", "float64"), kernel / machine.tile_bandwidth.value) * noise
            unheld = kernel if k == 0 else (1 - held) * kernel
            if plan.stored:
                read = unheld / machine.store_bandwidth("read") if unheld else 0.0
                through = share * unheld / machine.read_path.value
                took = max(float(np.maximum(work, through).max()), read)
                busy["store"] += read
            else:
                again = (
                    share
                    * unheld
                    / kernel
                    * plan.blocks[0].pairs
                    * projection.work.sizes.pair_seconds[config.kernel.dtype]
                )
                took = float((work + again * noise).max())
                work = work + again
            busy["compute"] += float(work.mean())
            moved = (allreduce_cost if sums == "nodes" else at_the_driver)(machine, 8.0 * n * c)
            gather = moved.seconds
            busy["network"] += moved.links
            busy["driver"] += moved.driver
            vectors = 4.0 * 1.2 * n * c * c * (k + 1) / machine.orthogonalise.value
            if basis == "slices":
                # Each worker projects its own columns; coefficients alone travel, (k c) x c of each.
                vectors = vectors * machine.orthogonalise.value / (SLICE_RATE * workers)
                vectors += 8.0 * c * c * (k + 1) * workers / machine.network.value + 2 * machine.latency.value
            busy["driver"] += vectors + machine.step.value
            took += gather + vectors + machine.step.value
            if rng.random() < world.losses * nodes * took / 86400:
                losses += 1
                lost = DETECTED + held * kernel / nodes / min(machine.node_store.value, machine.store_read.value)
                took += lost
            seconds += took
    return {"seconds": seconds, "busy": {name: value / seconds for name, value in busy.items()}, "losses": losses}


def shapes_of(n: int) -> Shapes:
    """Return the shapes of a dataset with images like those of CIFAR-10."""
    return Shapes("0" * 64, n, 10_000, n, 10_000, (32, 32, 3), 10)


def simulate(config: RunConfig, machine: Machine, n: int, options: argparse.Namespace, *, stored: bool) -> dict:
    """Simulate both stages for one size on one machine."""
    projection = on_profile(config, shapes_of(n), machine, n, stored=stored)
    pair = projection.work.sizes.pair_seconds[config.kernel.dtype]
    rng = np.random.default_rng(options.seed)
    world = World(losses=options.losses)
    found = {"projection": projection}
    if stored:
        found["gram"] = GramStage(projection, pair, 3072, world, rng, options.most_tiles).run()
    found["solve"] = solve(projection, config, 10, world, rng, options.basis, options.sums)
    return found


def table(config: RunConfig, machine: Machine, options: argparse.Namespace) -> None:
    """Return a table of sizes by stages."""
    print(
        f"{machine.name}, {config.kernel.kind}, basis by {options.basis}, sums by {options.sums}, {options.losses} losses of a node a day, "
        f"store latency {machine.store_latency.value} s"
    )
    print(f"{'images':>10} {'stage':<22}{'simulated':>14}{'roofline':>14}  busy (the bottleneck first)")
    for n in options.sizes:
        for stored in (True, False):
            found = simulate(config, machine, n, options, stored=stored)
            roof = {stage.name: stage.seconds for stage in found["projection"].stages}
            for stage in ("gram", "solve"):
                if stage not in found:
                    continue
                one = found[stage]
                busy = sorted(one["busy"].items(), key=lambda item: -item[1])
                text = ", ".join(f"{name} {share:.0%}" for name, share in busy)
                extra = (
                    f"; {one['losses']} nodes lost"
                    if stage == "solve"
                    else (
                        f"; {one['tiles']:,} tiles, {one['lost']} computed again"
                        + (f", {one['simulated']:.0%} simulated" if one["simulated"] < 1 else "")
                    )
                )
                what = f"{stage}, {'stored' if stored else 'recomputed'}"
                print(
                    f"{n:>10,} {what:<22}{human_seconds(one['seconds']):>14}{human_seconds(roof[stage]):>14}  {text}{extra}",
                    flush=True,
                )


def figure(machine: Machine, options: argparse.Namespace) -> None:
    """Draw time and busy shares against the number of nodes, at the middle size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n, counts = options.sizes[len(options.sizes) // 2], [1, 2, 4, 8, 16, 32, 64, 128]
    rows = {}
    for kernel in ("fcn", "myrtle10"):
        config = configuration(kernel)
        found = [simulate(config, machine.overridden({"nodes": k}), n, options, stored=True) for k in counts]
        rows[f"Gram, {kernel}"] = [one["gram"] for one in found]
        rows["solve, either"] = [one["solve"] for one in found]
    rows["solve, either"] = rows.pop("solve, either")  # last
    figure, axes = plt.subplots(3, 2, figsize=(10, 9), sharex=True)
    for (left, right), (name, stages) in zip(axes, rows.items(), strict=True):
        hours = [one["seconds"] / 3600 for one in stages]
        left.loglog(counts, hours, "o-", label="simulated")
        left.loglog(counts, [hours[0] / k for k in counts], "--", color="0.6", label="ideal")
        left.set_ylabel(f"{name}, hours")
        left.legend(frameon=False)
        for resource in stages[0]["busy"]:
            right.semilogx(counts, [one["busy"].get(resource, 0.0) for one in stages], "o-", label=resource)
        right.set_ylim(0, 1.05)
        right.set_ylabel("busy share of the time")
        right.legend(frameon=False, fontsize="small")
    for axis in axes[-1]:
        axis.set_xlabel(f"nodes with {int(machine.workers.value)} GPUs")
        axis.set_xticks(counts, [str(k) for k in counts])
        axis.minorticks_off()
    figure.suptitle(
        f"{n:,} images, {machine.name.partition('x')[0].upper()}: simulated; rates of one GPU measured, of clusters assumed"
    )
    figure.tight_layout()
    target = Path(options.figure) / "cluster_simulation.png"
    figure.savefig(target, dpi=100)
    print(target)


def configuration(kernel: str) -> RunConfig:
    """Return the configuration of a run to convergence without a ridge."""
    return RunConfig(
        kernel=KernelConfig(kind=kernel),
        solver=SolverConfig(kind="krylov"),
        cluster=ClusterConfig(kind="local"),
        predict=PredictConfig(times=(math.inf,)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="h200x8x16")
    parser.add_argument("--kernel", default="myrtle10")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_000_000, 5_000_000])
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--basis", choices=("driver", "slices"), default="driver")
    parser.add_argument("--sums", choices=("nodes", "driver"), default="nodes")
    parser.add_argument("--losses", type=float, default=0.02, help="of a node, per day")
    parser.add_argument("--store-latency", type=float, help="seconds; the profile's")
    parser.add_argument("--most-tiles", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", help="folder: a figure against the number of nodes, instead of the table")
    options = parser.parse_args()
    machine = load_profile(options.profile, profiles())
    if options.store_latency is not None:
        machine = machine.overridden({"store_latency": options.store_latency})
    if options.nodes:
        machine = machine.overridden({"nodes": options.nodes})
    if options.figure:
        figure(machine, options)
    else:
        table(configuration(options.kernel), machine, options)


if __name__ == "__main__":
    main()
