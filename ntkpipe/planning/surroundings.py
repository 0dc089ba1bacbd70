"""Reads the facts of this machine and of the store for a plan, and measures them if a run needs it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from ntkpipe.config import COMBINED, RunConfig
from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel
from ntkpipe.gram.features import feature_cost
from ntkpipe.gram.from_config import empirical_kernel, pair_cost
from ntkpipe.gram.symmetry import check_flips
from ntkpipe.kernels.combined import Combination
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.spec import fingerprint
from ntkpipe.limits import free_memory, memory, processors
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.combined import combined_cost, combined_stores, distinct, parts_for
from ntkpipe.planning.empirical import empirical_identity
from ntkpipe.planning.features import feature_identity
from ntkpipe.planning.machine import Figure, Machine, assumed_machine
from ntkpipe.planning.measured import find_calibration, pair_key
from ntkpipe.planning.memory import memory_budget
from ntkpipe.planning.plan import RunPlan, make_run_plan, plan_given, plan_of_cost
from ntkpipe.planning.probes import (
    known_disk_speed,
    known_pair_speed,
    measure_disk,
    measure_pairs,
    pair_speed_key,
)
from ntkpipe.planning.rank import refuse_low_rank
from ntkpipe.planning.shapes import Place, Shapes, WantedStore, spec_for, tile_edge, wanted_stores, worth_measuring
from ntkpipe.storage.store import ObjectStore, local_folder
from ntkpipe.tiles.catalogue import stored_edge, stored_shares, usage
from ntkpipe.tiles.identity import GramIdentity

# Share of the memory budget for the system's page cache.
_CACHE_SHARE = 0.5
# The disk is measured if the tiles exceed the memory or this size, because reading is slow then.
_WORTH_MEASURING = 2 << 30
_DTYPES = ("float32", "float64")


def blas_threads() -> int:
    """Threads of linear algebra in this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else processors()


def worker_threads(config: RunConfig) -> int:
    """Threads of a worker; without worker processes, the threads of linear algebra in this process."""
    return blas_threads() if config.cluster.kind == "serial" else config.cluster.threads_per_worker


def this_machine(config: RunConfig, store: ObjectStore) -> Machine:
    """The machine of this process, calibrated or with assumed figures; reads `store` and writes nothing.

    Args:
        config: gives the workers and the kind of cluster.
        store: may hold measurements.
    """
    calibration, disk = find_calibration(config, store), known_disk_speed(store)
    known = calibration.known() if calibration else {}
    if disk is not None:
        known |= {"store_read": Figure(disk.read, disk.source), "store_write": Figure(disk.write, disk.source)}
    cache = _CACHE_SHARE * memory_budget(config, free_memory()) if local_folder(store.url) is not None else 0.0
    known |= {
        "driver_threads": Figure(blas_threads(), "this process"),
        "cache": Figure(cache, "half of the memory budget" if cache else "the store is remote"),
        "driver_memory": Figure(float(memory()), "this machine"),
    }
    serial = config.cluster.kind == "serial"
    return assumed_machine(config.cluster.worker_count(), worker_threads(config), serial=serial, **known)


def look_around(
    config: RunConfig,
    shapes: Shapes,
    store: ObjectStore,
    siblings: Sequence[RunConfig] = (),
    *,
    begun: bool | None = None,
) -> Place:
    """Facts of this machine and store for a plan. Measures and writes nothing.

    Args:
        config: of the run.
        shapes: of its images.
        store: of the Gram stores.
        siblings: see `make_run_plan`.
        begun: whether this run has begun to store tiles; None if it has not begun.
    """
    specs = [spec_for(one.kernel, shapes) for one in (config, *siblings)]
    deepest = max(specs, key=len)
    calibration = find_calibration(config, store)
    pairs = {}
    if calibration is not None:
        for dtype in _DTYPES:
            seconds = calibration.pairs.get(pair_key(fingerprint(deepest), tuple(shapes.image), dtype))
            if seconds:
                pairs[dtype] = Figure(seconds, f"by ntkpipe calibrate, {calibration.made}")
    network = worth_measuring(config, shapes, siblings)
    pair = None if network is None else known_pair_speed(store, _pair_key(config, shapes, network))
    place = Place(free_memory(), store.free_bytes(), pair, pairs, begun=begun)

    def wanted(place: Place) -> list[WantedStore]:
        cost = pair_cost(deepest, shapes.image)
        return wanted_stores(config, siblings, specs, shapes, tile_edge(config, cost, shapes, place, 0.0))

    if config.grid.edge is None:
        # An existing store of the same values keeps its edge, also if another machine created it.
        place = dataclasses.replace(place, edge=stored_edge(store, wanted(place)[0].identity))
    keys = [one.identity.key for one in wanted(place)]
    return dataclasses.replace(
        place, stored_bytes=sum(usage(store, name) for name in (config.store.name or keys[0], *keys[1:]))
    )


def plan_here(
    config: RunConfig,
    shapes: Shapes,
    store: ObjectStore,
    siblings: Sequence[RunConfig] = (),
    *,
    begun: bool | None = None,
    measure: bool = False,
    passes: int | None = None,
) -> RunPlan:
    """The plan of a run on this machine.

    Args:
        config: of the run.
        shapes: of its images.
        store: of the Gram stores.
        siblings: see `make_run_plan`.
        begun: see `look_around`.
        measure: whether to measure missing figures first, in a separate process and in the store.
        passes: passes over the tiles of each kernel; None estimates them from n.

    Raises:
        ConfigError: with the setting to change.
        ResourceError: with the setting to change.
    """
    config, _ = choose(config, shapes, siblings)
    if config.kernel.kind == "empirical":
        kernel = empirical_kernel(config.kernel).at(shapes.image)
        why = f"the network has {kernel.parameters:,} parameters"
        refuse_low_rank(config, shapes.used_train, kernel.rank, why, shapes.rows_of_point)
        return plan_empirical_here(config, shapes, store, kernel)
    if config.kernel.kind in COMBINED:
        return plan_combined_here(config, shapes, store, parts_for(config.kernel, shapes))
    if config.augment == "hflip":
        check_flips([spec_for(one.kernel, shapes) for one in (config, *siblings)], shapes.image)
    if measure and (network := worth_measuring(config, shapes, siblings)) is not None:
        key = _pair_key(config, shapes, network)
        if known_pair_speed(store, key) is None:
            made = measure_pairs(
                network,
                shapes.image,
                config.kernel.dtype,
                threads=config.cluster.threads_per_worker,
                pairs_per_step=config.grid.pairs_per_step,
            )
            store.put(key, made.to_json(), overwrite=True)

    place = look_around(config, shapes, store, siblings, begun=begun)

    def plan() -> RunPlan:
        return make_run_plan(config, shapes, this_machine(config, store), place, siblings, passes=_of_each(passes))

    made = plan()
    if not measure or known_disk_speed(store) is not None or not _disk_matters(made):
        return made
    measure_disk(store)
    return plan()


def _disk_matters(plan: RunPlan) -> bool:
    assert plan.storing is not None
    large = plan.storing.held < 1 or plan.storing.nbytes > _WORTH_MEASURING
    return large or plan.config.store.gram == "auto"


def plan_given_here(config: RunConfig, shapes: Shapes, store: ObjectStore, *, dtype: str, edge: int) -> RunPlan:
    """The plan of a run on this machine with a given kernel. Arguments are those of `plan_given`."""
    place, (config, _) = Place(free_memory=free_memory()), choose(config, shapes)
    return plan_given(config, shapes, this_machine(config, store), place, dtype=dtype, edge=edge)


def plan_empirical_here(
    config: RunConfig, shapes: Shapes, store: ObjectStore, kernel: NetworkKernel | FunctionNetwork
) -> RunPlan:
    """The plan of a run on this machine with the kernels of a finite network."""
    return _plan_of(config, shapes, store, empirical_identity(config, shapes, kernel), lambda edge: kernel.cost)


def plan_features_here(config: RunConfig, shapes: Shapes, store: ObjectStore, features: GivenFeatures) -> RunPlan:
    """The plan of a run on this machine with products of given features."""
    config, _ = choose(config, shapes)
    identity = feature_identity(config, shapes, features)
    return _plan_of(config, shapes, store, identity, lambda edge: feature_cost(features, edge, config.kernel.dtype))


def _plan_of(
    config: RunConfig, shapes: Shapes, store: ObjectStore, identity: GramIdentity, cost: Callable[[int], KernelCost]
) -> RunPlan:
    """The plan of a kernel without the spec of an infinite network. An existing store of the same tiles keeps its edge,
    unless `grid.edge` is set.

    Args:
        config: of the run.
        shapes: of its points.
        store: of the tiles.
        identity: of the tiles.
        cost: returns the cost of a pair for a number of rows of a tile.
    """
    edge = config.grid.edge or stored_edge(store, identity) or identity.edge
    identity = dataclasses.replace(identity, edge=edge)
    there = usage(store, config.store.name or identity.key)
    place = Place(free_memory(), store.free_bytes(), edge=edge, stored_bytes=there)
    machine = this_machine(config, store)
    stores = [WantedStore("the kernel", identity, [])]
    return plan_of_cost(config, machine, place, shapes, cost(min(edge, shapes.n_train)), stores)


def plan_combined_here(config: RunConfig, shapes: Shapes, store: ObjectStore, parts: Combination) -> RunPlan:
    """The plan of a run on this machine with a sum or product of networks' kernels. Stored parts are reused.

    Args:
        config: of the run.
        shapes: of its images.
        store: of the Gram stores of the parts.
        parts: a combination of architectures for these images.

    Raises:
        ConfigError: with the setting to change.
        ResourceError: with the setting to change.
    """
    if config.augment == "hflip":
        check_flips([one.to_spec() for one in distinct(parts)], shapes.image)
    for one in distinct(parts):
        one.check_input(shapes.image)
    place = Place(free_memory(), store.free_bytes())
    stores = combined_stores(config, parts, shapes, place, lambda identity: stored_shares(store, identity))
    there = sum(usage(store, one.identity.key) for one in stores)
    place = dataclasses.replace(place, edge=stores[0].identity.edge, stored_bytes=there)
    cost = combined_cost(parts, shapes.image)
    return plan_of_cost(config, this_machine(config, store), place, shapes, cost, stores)


def _pair_key(config: RunConfig, shapes: Shapes, network: list) -> str:
    return pair_speed_key(
        network,
        shapes.image,
        config.kernel.dtype,
        threads=config.cluster.threads_per_worker,
        pairs_per_step=config.grid.pairs_per_step,
    )


def on_profile(
    config: RunConfig, shapes: Shapes, machine: Machine, n: int, *, stored: bool, passes: int | None = None
) -> RunPlan:
    """The plan of a run on `n` training images like those of the configuration, on the machines of a profile.

    Args:
        config: of the run.
        shapes: of its images.
        machine: of the profile.
        n: number of training images; all are used.
        stored: whether tiles are stored; otherwise they are recomputed on every pass.
        passes: passes over the tiles of each kernel; None estimates them from n.
    """
    gram = dataclasses.replace(config.store, gram="stored" if stored else "recompute")
    return make_run_plan(dataclasses.replace(config, store=gram), shapes.of_size(n), machine, passes=_of_each(passes))


def _of_each(passes: int | None) -> dict[str, int] | None:
    return None if passes is None else {"ntk": passes, "nngp": passes}
