"""From sizes to a plan: which Gram stores a run needs, how they are cut into tiles, and what that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.config import KernelConfig, RunConfig
from ntkpipe.errors import ResourceError
from ntkpipe.gram.from_config import kernel_spec, pair_cost
from ntkpipe.gram.plan import GramPlan, Rate, choose_edge, human_bytes, plan_gram
from ntkpipe.gram.symmetry import check_flips
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.spec import FORMULA_VERSION, fingerprint
from ntkpipe.kernels.truncation import expanded_layers, with_degrees
from ntkpipe.planning.factoring import plan_factors
from ntkpipe.planning.measured import find_calibration, pair_key
from ntkpipe.planning.memory import driver_memory, memory_budget, solver_memory
from ntkpipe.planning.pair_speed import Tuning, circumstances, measure
from ntkpipe.planning.storing import Storing, compare
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tiles.catalogue import stored_edge, usage
from ntkpipe.tiles.identity import GramIdentity, Symmetry

# A run whose tiles should take less than this (all workers together) is not worth the seconds that measuring takes.
_WORTH_MEASURING = 60.0


@dataclass(frozen=True)
class Shapes:
    """Sizes of a data set, which is all that a plan needs of it, but for networks with expansions.

    Args:
        extremes: gives a few images of the whole data set, `(n, height, width, channels)`, that span its variances; None if
            there is no data set yet: expansions then have their usual degree.
        layers: of the network, where the configuration does not name them.
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


@dataclass(frozen=True)
class WantedStore:
    """A Gram store that a run needs.

    Args:
        text: what it is, for people.
        identity: of the store.
        spec: layers of its network.
    """

    text: str
    identity: GramIdentity
    spec: list[dict[str, Any]]


@dataclass(frozen=True)
class Planned:
    """A plan, the Gram stores that it fills, the one to solve with first, and what storing their tiles is worth."""

    wanted: tuple[WantedStore, ...]
    plan: GramPlan
    storing: Storing


def spec_for(kernel: KernelConfig, shapes: Shapes) -> list[dict[str, Any]]:
    """The layers for a data set: every expansion as long as its variances call for, unless the user said how long.

    Raises:
        ConfigError: see `kernel_spec`.
    """
    spec = kernel_spec(kernel, shapes.image) if shapes.layers is None else shapes.layers
    if shapes.extremes is None or all(layer["degree"] is not None for _, layer in expanded_layers(spec)):
        return spec
    return with_degrees(spec, shapes.extremes(), kernel.dtype)


def make_plan(
    config: RunConfig,
    shapes: Shapes,
    store: ObjectStore,
    siblings: Sequence[RunConfig] = (),
    *,
    may_measure: bool = True,
    chosen: bool | None = None,
) -> Planned:
    """The frozen plan of the run's tiles, checked against memory and disk.

    Args:
        config: of the run.
        shapes: of its images.
        store: where the Gram stores lie.
        siblings: configurations of the same images and precision, with networks of other depths, which share the
            run's evaluations.
        may_measure: if not, what earlier runs have measured must do.
        chosen: whether this run has begun to store tiles, if it has begun; `store.gram=auto` stays with it.

    Raises:
        ConfigError, ResourceError: naming the setting to change.
    """
    specs = [spec_for(one.kernel, shapes) for one in (config, *siblings)]
    architecture(*specs).check_input(shapes.image)
    if config.augment == "hflip":
        check_flips(specs, shapes.image)
    deepest = max(specs, key=len)
    cost, memory, workers = pair_cost(deepest, shapes.image), memory_budget(config), config.cluster.worker_count()
    wanted = _wanted_stores(config, siblings, specs, shapes, config.grid.edge or choose_edge(shapes.n_train, cost))

    def plan(**settings: Any) -> GramPlan:
        return plan_gram(
            n_train=shapes.n_train,
            n_test=shapes.n_test,
            spec=deepest,
            cost=cost,
            kernel_dtype=config.kernel.dtype,
            store_dtype=config.store_dtype,
            train_rows=shapes.used_train,
            test_rows=shapes.used_test,
            workers=workers,
            stores=[one.text for one in wanted],
            evaluations=config.copies,
            **settings,
        )

    tuning = None
    # Networks that flatten their images are as fast as the machine's matrix products: nothing is to be chosen.
    given = config.grid.edge is not None and config.grid.pairs_per_step is not None
    if cost.input_entries > 1 and not given and plan(edge=wanted[0].identity.edge).seconds >= _WORTH_MEASURING:
        tuning = _tuning(config, deepest, shapes, store, may_measure=may_measure)
    if config.grid.edge is None:
        # A store of the same tiles is used as it was cut, by whatever machine.
        edge = stored_edge(store, wanted[0].identity)
        if edge is None and tuning is not None:
            edge = choose_edge(shapes.n_train, cost, tuning.seconds_per_pair * config.copies)
        if edge is not None:
            wanted = [dataclasses.replace(one, identity=dataclasses.replace(one.identity, edge=edge)) for one in wanted]
    names = [config.store.name or wanted[0].identity.key, *(one.identity.key for one in wanted[1:])]
    known: dict[str, Any] = {
        "edge": wanted[0].identity.edge,
        "rate": _calibrated(config, deepest, cost, shapes, store)
        if tuning is None
        else Rate(cost.flops_per_pair / tuning.seconds_per_pair, _measured(tuning)),
        "pairs_per_step": config.grid.pairs_per_step if tuning is None else tuning.pairs_per_step,
        "process_bytes": None if tuning is None else tuning.process_bytes,
        "memory_bytes": memory,
    }
    free: dict[str, Any] = {
        "free_bytes": store.free_bytes(),
        "stored_bytes": sum(usage(store, name) for name in names),
    }
    first = plan(**known)
    _check_solver(config, first, shapes.used_train, memory)  # before anything is measured, and kept in the store
    storing = compare(config, first, shapes.outputs, memory, store, **free, chosen=chosen, may_measure=may_measure)
    chosen_plan = plan(**known, **free, stored=storing.stored)
    _check_solver(config, chosen_plan, shapes.used_train, memory)
    return Planned(tuple(wanted), chosen_plan, storing)


def plan_given(config: RunConfig, shapes: Shapes, dtype: str, edge: int) -> GramPlan:
    """The plan of a run whose kernel was given: nothing is computed, and every pair costs nothing.

    Args:
        config: of the run.
        shapes: of the given kernel.
        dtype: of its tiles.
        edge: rows of a tile.
    """
    memory = memory_budget(config)
    made = plan_gram(
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        spec=(),
        cost=KernelCost(0.0, 0.0, 1, 1, 0, 0),
        edge=edge,
        kernel_dtype=dtype,
        store_dtype=dtype,
        train_rows=shapes.used_train,
        test_rows=shapes.used_test,
        workers=config.cluster.worker_count(),
        rate=Rate(1.0, "given"),
    )
    _check_solver(config, made, shapes.used_train, memory)
    return made


def _wanted_stores(
    config: RunConfig, siblings: Sequence[RunConfig], specs: Sequence[list[dict[str, Any]]], shapes: Shapes, edge: int
) -> list[WantedStore]:
    symmetries: tuple[Symmetry, ...] = ("none",)
    if config.augment == "hflip":
        # Means are those of the even part alone; the odd one adds its variance.
        symmetries = ("even",) if config.predict.covariance == "none" else ("even", "odd")
    found = []
    for one, spec in zip((config, *siblings), specs, strict=True):
        depth = [f"depth {one.kernel.depth}"] if siblings else []
        for symmetry in symmetries:
            part = [f"{symmetry} part under flips"] if symmetry != "none" else []
            identity = GramIdentity(
                data=shapes.fingerprint,
                architecture=fingerprint(spec),
                formula_version=str(FORMULA_VERSION),
                dtype=one.kernel.dtype,
                stored_dtype=one.store_dtype,
                edge=edge,
                n_train=shapes.n_train,
                n_test=shapes.n_test,
                symmetry=symmetry,
                spec=spec,
            )
            found.append(WantedStore(" ".join([*depth, *part]) or "the kernel", identity, spec))
    return found


def _tuning(
    config: RunConfig, spec: list[dict[str, Any]], shapes: Shapes, store: ObjectStore, *, may_measure: bool
) -> Tuning | None:
    """What was measured of this network on this machine, now or by an earlier run."""
    asked = {
        "spec": fingerprint(spec),
        "image": list(shapes.image),
        "dtype": config.kernel.dtype,
        "pairs_per_step": config.grid.pairs_per_step,
        **circumstances(config.cluster.threads_per_worker),
    }
    key = f"tuning/{digest(asked)}.json"
    try:
        return Tuning.from_json(store.get(key))
    except (MissingObjectError, ValueError):
        pass
    if not may_measure:
        return None
    made = measure(
        spec,
        shapes.image,
        config.kernel.dtype,
        threads=config.cluster.threads_per_worker,
        pairs_per_step=config.grid.pairs_per_step,
    )
    store.put(key, made.to_json(), overwrite=True)
    return made


def _calibrated(
    config: RunConfig, spec: list[dict[str, Any]], cost: KernelCost, shapes: Shapes, store: ObjectStore
) -> Rate | None:
    """What `ntkpipe calibrate` has measured of this network on this machine; None if it has not."""
    calibration = find_calibration(config, store)
    if calibration is None:
        return None
    seconds = calibration.pairs.get(pair_key(fingerprint(spec), tuple(shapes.image), config.kernel.dtype))
    return Rate(cost.flops_per_pair / seconds, f"by ntkpipe calibrate, {calibration.made}") if seconds else None


def _measured(tuning: Tuning) -> str:
    tried = ", ".join(f"{seconds * 1e3:.3g} ms with {pairs} at a time" for pairs, seconds in tuning.tried.items())
    return f"measured on {tuning.device}, per pair: {tried}"


def _check_solver(config: RunConfig, plan: GramPlan, n: int, memory: int) -> None:
    """Refuse a solver that would not fit: tiles of a factor; a dense matrix, its eigenvectors and LAPACK's workspace."""
    if config.solver.kind == "cholesky":
        plan_factors(config, plan, n, solver_memory(plan, memory))
    if config.solver.kind != "eigh":
        return
    copies = 3
    copies += config.copies if config.predict.covariance != "none" else 0  # with flips both parts have eigenvectors
    need, memory = copies * 8 * n * n, driver_memory(config, memory)  # in the driver alone
    if need > memory:
        where = "the driver's machine has" if config.cluster.kind == "ray" else "the budget is"
        raise ResourceError(
            f"solver={config.solver.kind} needs {human_bytes(need)} for {n:,} training images and {where} "
            f"{human_bytes(memory)}: use solver=krylov, a smaller data.train_size, or more cluster.memory_gib"
        )
