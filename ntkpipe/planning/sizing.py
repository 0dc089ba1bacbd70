"""What runs of given sizes take on a given machine, as tables for people: `ntkpipe plan` with a profile or a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ntkpipe.config import RunConfig
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.plan import GramPlan, choose_edge, human_bytes, human_seconds, plan_gram
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.cost import LayerCost, input_cost, layer_costs
from ntkpipe.kernels.spec import fingerprint
from ntkpipe.planning.machine import Machine
from ntkpipe.planning.measured import Calibration, find_calibration, pair_key
from ntkpipe.planning.memory import memory_budget, solver_memory, tile_memory
from ntkpipe.planning.model import Sizes, expected_passes, pair_seconds, project
from ntkpipe.planning.plan import Planned, Shapes, spec_for
from ntkpipe.planning.roofline import Projection
from ntkpipe.storage.store import ObjectStore

_DTYPES = ("float32", "float64")


def of_this_machine(
    config: RunConfig,
    shapes: Shapes,
    planned: Planned,
    store: ObjectStore,
    *,
    prepared: bool,
    passes: Mapping[str, int] | None = None,
) -> tuple[Projection, Calibration] | None:
    """The run as planned, by what `ntkpipe calibrate` has measured here; None if it has not.

    Args:
        config: of the run.
        shapes: of its images.
        planned: its plan.
        store: that holds the calibration.
        prepared: whether the images are in the store.
        passes: by kernel, if they are known.
    """
    calibration = find_calibration(config, store)
    if calibration is None:
        return None
    plan, budget = planned.plan, memory_budget(config)
    tiles = tile_memory(config, shapes.used_train, shapes.outputs, solver_memory(plan, budget), plan.workers)
    machine = calibration.as_machine(config, tiles, cache=budget / 2)
    sizes = _sizes(config, plan, shapes, machine, calibration, passes)
    return project(config, plan, dataclasses.replace(sizes, prepared=prepared), machine), calibration


def of_profile(
    config: RunConfig, shapes: Shapes, machine: Machine, n: int, *, stored: bool, passes: int | None = None
) -> Projection:
    """A run on `n` training images like those of the configuration, on the machines of a profile.

    Args:
        config: of the run.
        shapes: of its images.
        machine: the profile's.
        n: training images, all of them used.
        stored: whether tiles are stored, or computed on every pass.
        passes: over the tiles of each kernel; None expects what n calls for.
    """
    spec = spec_for(config.kernel, shapes)
    cost = pair_cost(spec, shapes.image)

    def plan(edge: int | None) -> GramPlan:
        return plan_gram(
            n_train=n,
            n_test=shapes.used_test,
            spec=spec,
            cost=cost,
            edge=edge,
            kernel_dtype=config.kernel.dtype,
            store_dtype=config.store_dtype,
            workers=machine.all_workers,
            evaluations=config.copies,
            stored=stored,
        )

    first = plan(config.grid.edge)
    if config.grid.edge is None:
        pair = pair_seconds(first, machine, config.kernel.dtype, traffic(config, shapes))
        first = plan(choose_edge(n, cost, pair * config.copies))
    known = None if passes is None else {"ntk": passes, "nngp": passes}
    return project(config, first, _sizes(config, first, shapes, machine, None, known), machine)


def traffic(config: RunConfig, shapes: Shapes) -> float:
    """Numbers that the layers read and write for one pair, both kernels, nonlinearities fused into the layers beside them."""
    spec = spec_for(config.kernel, shapes)
    steps = architecture(spec).steps(tuple(shapes.image))

    def entries(layers: Sequence[LayerCost]) -> float:
        return sum(
            sum(entries(branch) for branch in layer.branches) if layer.branches else layer.entries for layer in layers
        )

    # Every layer's entries count both what goes in and what comes out: fused in pairs, half of it moves.
    return 2 * entries([input_cost(spec, steps), *layer_costs(spec, steps)]) / 2


def _sizes(
    config: RunConfig,
    plan: GramPlan,
    shapes: Shapes,
    machine: Machine,
    calibration: Calibration | None,
    passes: Mapping[str, int] | None,
) -> Sizes:
    spec = spec_for(config.kernel, shapes)
    n = plan.blocks[0].used.rows
    measured = calibration.pairs if calibration else {}
    pairs = {
        dtype: measured.get(pair_key(fingerprint(spec), tuple(shapes.image), dtype))
        or pair_seconds(plan, machine, dtype, traffic(config, shapes))
        for dtype in _DTYPES
    }
    known = passes or {kernel: expected_passes(kernel, n) for kernel in ("ntk", "nngp")}
    return Sizes(plan.cost.inputs, shapes.outputs, known, pairs)


def describe(projection: Projection) -> str:
    """A table of stages, and what a projection of a whole run says."""
    plan, machine = projection.plan, projection.machine
    n = plan.blocks[0].used.rows
    lines = [
        f"{n:,} images on {machine.name}, {int(machine.nodes.value)} x {int(machine.workers.value)} workers, tiles of "
        f"{plan.edge} {'stored' if plan.stored else 'recomputed on every pass'}",
        f"  {'stage':<9}{'time':>14}{'node-hours':>12}{'cost':>10}{'read':>12}{'written':>12}{'network':>12}  bottleneck",
    ]
    for stage in projection.stages:
        hours = machine.nodes.value * stage.seconds / 3600
        lines.append(
            f"  {stage.name:<9}{human_seconds(stage.seconds):>14}{hours:>12,.3g}{hours * machine.price.value:>10,.0f}"
            f"{human_bytes(stage.read):>12}{human_bytes(stage.written):>12}{human_bytes(stage.moved):>12}  {stage.bottleneck}"
        )
    lines.append(
        f"  {'all':<9}{human_seconds(projection.seconds):>14}{projection.node_hours:>12,.3g}{projection.cost:>10,.0f}"
        f"  {human_bytes(projection.stored)} stored"
    )
    return "\n".join(lines + [f"  note: {text}" for text in projection.notes])


def compare_ways(stored: Projection, recomputed: Projection) -> str:
    """One line: which way of keeping tiles is cheaper, and by how much."""
    ratio = stored.seconds / max(recomputed.seconds, 1e-9)
    faster, times = ("recomputed", ratio) if ratio > 1 else ("stored", 1 / ratio)
    said = f"{faster} are {times:.3g} times faster" if times >= 1.05 else "stored and recomputed take the same time"
    return (
        f"  tiles {said}: stored {human_seconds(stored.seconds)} and "
        f"{human_bytes(stored.stored)}, recomputed {human_seconds(recomputed.seconds)} and {human_bytes(recomputed.stored)}"
    )
