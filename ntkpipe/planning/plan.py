"""Plans of runs, as pure functions of a configuration, the shape of the data and a machine.

This module does not read a clock, a store or the machine, starts no process and writes nothing. `surroundings.py` reads
the facts of the machine and the store, and measures them if a run needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.errors import ResourceError
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.plan import GramPlan, Rate
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.linalg.factor.plan import FactorPlan
from ntkpipe.planning import memory
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.machine import Figure, Machine
from ntkpipe.planning.model import Sizes, Work
from ntkpipe.planning.network import traffic
from ntkpipe.planning.passes import solved_kernels, solver_passes
from ntkpipe.planning.roofline import Stage
from ntkpipe.planning.shapes import Place, Shapes, WantedStore, spec_for, tile_edge, wanted_stores
from ntkpipe.planning.solving import notes, project
from ntkpipe.planning.storing import Storing, choose_storing
from ntkpipe.planning.text import as_html, describe
from ntkpipe.planning.tiles import pair_rate, pair_seconds, plan_gram
from ntkpipe.units import human_bytes

# Number of times of the default grid.
_TIMES = 20
_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run before it starts. `str(plan)` is readable text, and a notebook shows tables.

    Args:
        config: of the run.
        shapes: of its data.
        machine: figures of the machine with their origins.
        tiles: plan of the tiles.
        stores: the Gram stores to fill, the store of the solve first; empty for given matrices.
        storing: comparison of stored and recomputed tiles; None for given matrices.
        factors: plan of one factor, for `cholesky`.
        stages: seconds, bytes and memory of each stage, in order.
        work: quantities that the stages share.
        notes: warnings about memory and disk, with remedies.
    """

    config: RunConfig
    shapes: Shapes
    machine: Machine
    tiles: GramPlan
    stores: tuple[WantedStore, ...]
    storing: Storing | None
    factors: FactorPlan | None
    stages: tuple[Stage, ...]
    work: Work = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def processor_seconds(self) -> float:
        """Computing time, summed over all stages and processes."""
        return sum(stage.processor_seconds for stage in self.stages)

    @property
    def node_hours(self) -> float:
        """Number of nodes times hours."""
        return self.machine.nodes.value * self.seconds / 3600

    @property
    def cost(self) -> float:
        """Cost in the currency of the machine's price."""
        return self.node_hours * self.machine.price.value

    @property
    def stored(self) -> float:
        """Bytes that remain in the store."""
        return sum(stage.stored for stage in self.stages)

    def stage(self, name: str) -> Stage:
        """One of `start`, `images`, `gram`, `solve`, `predict`, `report`."""
        return next(stage for stage in self.stages if stage.name == name)

    def __str__(self) -> str:
        return describe(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def make_run_plan(
    config: RunConfig,
    shapes: Shapes,
    machine: Machine,
    place: Place | None = None,
    siblings: Sequence[RunConfig] = (),
    *,
    passes: Mapping[str, int] | None = None,
) -> RunPlan:
    """The plan of a run, checked against memory and disk.

    Args:
        config: of the run.
        shapes: of its images.
        machine: of the run.
        place: see `Place`; None plans for another machine.
        siblings: configurations with the same images and precision and networks of other depths, which share the
            evaluations of the run.
        passes: known passes of the solver over the tiles, by kernel.

    Raises:
        ConfigError: with the setting to change.
        ResourceError: with the setting to change.
    """
    place, (config, _) = place or Place(), choose(config, shapes, siblings)
    specs = [spec_for(one.kernel, shapes) for one in (config, *siblings)]
    deepest = max(specs, key=len)
    architecture(*specs).check_input(shapes.image)
    cost = pair_cost(deepest, shapes.image)
    seconds = _pair_seconds(deepest, cost, shapes, machine, place)
    edge = tile_edge(config, cost, shapes, place, seconds[config.kernel.dtype].value)
    stores = wanted_stores(config, siblings, specs, shapes, edge)
    planned = {
        "spec": deepest,
        "cost": cost,
        "edge": stores[0].identity.edge,
        "kernel_dtype": config.kernel.dtype,
        "store_dtype": config.store_dtype,
        "rate": _rate(config, cost, place, seconds),
        "stores": [one.text for one in stores],
        "evaluations": config.copies,
        "pairs_per_step": config.grid.pairs_per_step if place.pair is None else place.pair.pairs_per_step,
        "process_bytes": None if place.pair is None else place.pair.process_bytes,
    }

    def ways(*, stored: bool) -> Work:
        tiles = _tiles(config, shapes, machine, place, **planned, stored=stored)
        return _work(config, shapes, machine, place, tiles, seconds, passes)

    both: dict[bool, Work | ResourceError] = {}
    for stored in (True, False):
        try:
            both[stored] = ways(stored=stored)
        except ResourceError as error:  # an error of the way that is not chosen does not matter
            both[stored] = error
    storing = choose_storing(config, both[True], both[False], place.free_disk, place.stored_bytes, begun=place.begun)
    work = both[storing.stored]
    if isinstance(work, ResourceError):
        raise work
    _tiles(config, shapes, machine, place, **planned, stored=storing.stored, free=True)  # raises if the disk is too
    # small
    return _finished(config, shapes, machine, place, work, tuple(stores), storing)


def plan_given(config: RunConfig, shapes: Shapes, machine: Machine, place: Place, *, dtype: str, edge: int) -> RunPlan:
    """The plan of a run with a given kernel, whose pairs cost nothing.

    Args:
        config: of the run.
        shapes: of the given kernel.
        machine: of the run.
        place: see `Place`.
        dtype: of the tiles.
        edge: rows of a tile.

    Raises:
        ResourceError: if the solver does not fit into the memory.
    """
    config, _ = choose(config, shapes)
    if config.kernel.kind != "gram":  # a function gives one kernel, like a matrix
        config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, kernels=("ntk",)))
    cost, free = KernelCost(0.0, 0.0, 1, 1, 0, 0), {name: Figure(0.0, "given") for name in _DTYPES}
    tiles = _tiles(
        config,
        shapes,
        machine,
        None,
        spec=(),
        cost=cost,
        edge=edge,
        kernel_dtype=dtype,
        store_dtype=dtype,
        rate=Rate(1.0, "given"),
    )
    work = _work(config, shapes, machine, place, tiles, free, None)
    made = _finished(config, shapes, machine, place, work, (), None)
    kept = tuple(stage for stage in made.stages if stage.name not in ("images", "gram"))
    return dataclasses.replace(made, stages=kept)


def plan_of_cost(
    config: RunConfig,
    machine: Machine,
    place: Place,
    shapes: Shapes,
    cost: KernelCost,
    stores: Sequence[WantedStore],
) -> RunPlan:
    """The plan of a run from the cost of a pair, for kernels without the spec of one infinite network.

    Args:
        config: of the run.
        machine: of the run.
        place: see `Place`.
        shapes: of the points.
        cost: of a pair, for all stores together.
        stores: the Gram stores to fill.

    Raises:
        ConfigError: with the setting to change.
        ResourceError: with the setting to change.
    """
    seconds = {dtype: Figure(pair_seconds(cost, machine, dtype), _origin(machine, dtype)) for dtype in _DTYPES}
    identity = stores[0].identity
    tiles = _tiles(
        config,
        shapes,
        machine,
        place,
        free=True,
        spec=(),
        cost=cost,
        edge=identity.edge,
        kernel_dtype=identity.dtype,
        store_dtype=identity.stored_dtype,
        rate=_rate(config, cost, place, seconds),
        stores=[store.text for store in stores],
        evaluations=config.copies,
        pairs_per_step=config.grid.pairs_per_step,
        stored=config.store.gram != "recompute",
        kernels=len(identity.kernels),
    )
    work = _work(config, shapes, machine, place, tiles, seconds, None)
    return _finished(config, shapes, machine, place, work, tuple(stores), None)


def _pair_seconds(
    spec: list[dict[str, Any]], cost: KernelCost, shapes: Shapes, machine: Machine, place: Place
) -> dict[str, Figure]:
    """Seconds per pair of one worker, by dtype: measured for this network, or from its roofline on this machine."""
    moved = traffic(spec, shapes.image) if machine.accelerated else 0.0
    found = {}
    for dtype in _DTYPES:
        roof = pair_seconds(cost, machine, dtype, moved)
        found[dtype] = place.pair_seconds.get(dtype) or Figure(roof, _origin(machine, dtype))
    return found


def _origin(machine: Machine, dtype: str) -> str:
    """The origin of the rates of arithmetic, if it is the same for all."""
    origins = {machine.figures()[f"{kind}_{dtype}"].origin.partition(":")[0] for kind in ("matrix", "elementwise")}
    return origins.pop() if len(origins) == 1 else "assumed in part"


def _rate(config: RunConfig, cost: KernelCost, place: Place, seconds: Mapping[str, Figure]) -> Rate:
    if place.pair is not None:
        return pair_rate(cost, place.pair.seconds_per_pair, place.pair.origin)
    figure = seconds[config.kernel.dtype]
    return pair_rate(cost, figure.value, figure.origin)


def _tiles(
    config: RunConfig, shapes: Shapes, machine: Machine, place: Place | None, *, free: bool = False, **planned: Any
) -> GramPlan:
    """The plan of the tiles. Raises if a tile does not fit into memory, or with `free` if all do not fit on the disk."""
    memory_free = None if place is None else place.free_memory
    return plan_gram(
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        train_rows=shapes.used_train,
        test_rows=shapes.used_test,
        workers=machine.all_workers,
        memory_bytes=None if memory_free is None else memory.memory_budget(config, memory_free),
        free_bytes=place.free_disk if place and free else None,
        stored_bytes=place.stored_bytes if place and free else 0,
        **planned,
    )


def _budget(config: RunConfig, shapes: Shapes, machine: Machine, place: Place, tiles: GramPlan) -> memory.Budget:
    n, outputs, workers = shapes.used_train, shapes.outputs, tiles.workers
    if place.free_memory is not None:
        return memory.divide(config, tiles, n, outputs, place.free_memory)
    each, driver = int(machine.memory.value), int(machine.driver_memory.value)
    room = max(0, each - (0 if tiles.stored else tiles.memory_per_worker)) * workers
    return memory.Budget(each * workers, driver, room, each * workers, driver // (8 * n))


def _work(
    config: RunConfig,
    shapes: Shapes,
    machine: Machine,
    place: Place,
    tiles: GramPlan,
    seconds: Mapping[str, Figure],
    passes: Mapping[str, int] | None,
) -> Work:
    n, p, budget = shapes.used_train, shapes.used_test, _budget(config, shapes, machine, place, tiles)
    _refuse_eigh(config, n, budget.driver, there=place.free_memory is not None)
    times = _TIMES if config.predict.times is None else len(config.predict.times)
    batch = 0
    if config.predict.covariance != "none":
        batch = config.predict.covariance_batch
        if batch is None:
            batch = memory.Batches.of(config, n, times).columns(p, memory.Room(budget.solving, tiles.workers))
    factors = None
    if config.solver.kind == "cholesky":
        factors = memory.plan_factors(config, tiles, n, budget.factors)
    measured = {dtype: figure.value for dtype, figure in seconds.items()}
    if place.pair is not None:
        measured[config.kernel.dtype] = place.pair.seconds_per_pair
    sizes = Sizes(
        numbers=tiles.cost.inputs,
        outputs=shapes.outputs,
        passes={k: solver_passes(config, k, n, (passes or {}).get(k)) for k in solved_kernels(config)},
        pair_seconds=measured,
        budget=budget,
        times=times,
        batch=min(p, batch),
        factors=factors,
        prepared=shapes.prepared,
        there=min(1.0, place.stored_bytes / max(1, tiles.disk_bytes)),
    )
    return Work(config, tiles, sizes, machine)


def _refuse_eigh(config: RunConfig, n: int, driver: int, *, there: bool) -> None:
    """Raise if a dense matrix, its eigenvectors and LAPACK's workspace do not fit into the driver's memory."""
    if config.solver.kind != "eigh" or not there:
        return
    copies = 3
    copies += config.copies if config.predict.covariance != "none" else 0  # with flips both parts have eigenvectors
    if (need := copies * 8 * n * n) > driver:
        where = "the driver's machine has" if config.cluster.kind == "ray" else "the budget is"
        raise ResourceError(
            f"solver={config.solver.kind} needs {human_bytes(need)} for {n:,} training points and {where} "
            f"{human_bytes(driver)}: use solver=krylov, a smaller data.train_size, or more cluster.memory_gib"
        )


def _finished(
    config: RunConfig,
    shapes: Shapes,
    machine: Machine,
    place: Place,
    work: Work,
    stores: tuple[WantedStore, ...],
    storing: Storing | None,
) -> RunPlan:
    stages = project(work)
    if place.free_memory is not None:
        peaks = {"gram": memory.gram_peak(config, work.plan), "solve": solving_peak(work)}
        stages = tuple(dataclasses.replace(one, memory=peaks.get(one.name)) for one in stages)
    return RunPlan(config, shapes, machine, work.plan, stores, storing, work.sizes.factors, stages, work, notes(work))


def solving_peak(work: Work) -> memory.Peak:
    """Peak memory of all processes while systems are solved."""
    config, tiles, n, outputs = work.config, work.plan, work.n, work.sizes.outputs
    edge, budget = min(tiles.edge, n), work.sizes.budget
    if work.sizes.factors is not None:
        return memory.factoring_peak(config, work.sizes.factors, tiles, n, outputs, budget.solving)
    item = 4 if tiles.store_dtype == "float32" or config.solver.products == "float32" else 8
    return memory.solving_peak(
        config,
        n,
        outputs,
        tiles=n * (n + edge) // 2 * item,
        tile=edge * edge * item,
        passes=max(work.sizes.passes.values()),
        budget=budget,
        workers=tiles.workers,
        worker_bytes=tiles.memory_per_worker,
    )
