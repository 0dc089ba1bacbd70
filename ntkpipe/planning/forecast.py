"""What solving will take, for the plan: arithmetic, memory and whether tiles stay in it."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan, human_bytes, human_seconds
from ntkpipe.linalg.factor.plan import FactorPlan
from ntkpipe.linalg.preconditioner import largest_rank
from ntkpipe.planning.factoring import describe_factors, plan_factors
from ntkpipe.planning.memory import (
    Peak,
    basis_vectors,
    cg_bytes,
    driver_memory,
    memory_budget,
    processes_peak,
    product_memory,
    solver_memory,
    solving_peak,
    tile_memory,
)
from ntkpipe.planning.plan import Shapes
from ntkpipe.planning.storing import PASSES, PRODUCT_RATE


def _describe_preconditioner(config: RunConfig, n: int, c: int) -> str:
    kind, held = config.solver.preconditioner, human_bytes(cg_bytes(config.solver, n, c))
    if kind == "none":
        return f"no preconditioner, {held} of vectors"
    if kind == "float32_factor":
        return f"a float32 factor for each of {len(config.predict.ridges)} ridges, {n**3 / 3:.3g} flops each, {held} with vectors"
    if config.solver.rank is None:
        rank, most = largest_rank(n), "at most "
    else:
        rank, most = min(config.solver.rank, n), ""
    product = 2 * n * n * rank if kind == "nystrom" else n * rank * rank
    return f"{kind} preconditioner of rank {most}{rank:,}: {product:.3g} flops to find it, {held} with vectors"


def describe_solver(config: RunConfig, shapes: Shapes, plan: GramPlan) -> str:
    """Lines like those of `GramPlan.describe`."""
    n, c = shapes.used_train, shapes.outputs
    kernels = len(config.predict.kernels)
    # Variances under flips need the odd part of a kernel as well.
    each = "per kernel" if config.copies == 1 or config.predict.covariance == "none" else "per kernel and part"
    if config.solver.kind == "eigh":
        peak = _describe_peak(config, peaks(config, shapes, plan))
        return f"solver      eigh: {9 * n**3:.3g} flops {each}, {kernels} kernels\n            {peak}"
    if config.solver.kind == "cholesky":
        budget = solver_memory(plan, memory_budget(config))
        factors = plan_factors(config, plan, n, budget)
        peak = _describe_peak(config, factoring_peaks(config, factors, plan, shapes, memory_budget(config)))
        lines = describe_factors(config, factors, config.cluster.threads_per_worker)
        return f"{lines}\n            {peak}"
    item = 4 if plan.store_dtype == "float32" or config.solver.products == "float32" else 8
    tiles = n * (n + plan.edge) // 2 * item
    room = tile_memory(config, n, c, solver_memory(plan, memory_budget(config)), plan.workers)
    flops = 2 * n * n * c
    seconds = flops / (PRODUCT_RATE[config.solver.products] * plan.workers)
    held = (
        "all held in memory"
        if tiles <= room
        else f"{room / tiles:.0%} held in memory, the rest {'read' if plan.stored else 'computed'} on every pass"
    )
    pass_ = (
        f"a pass takes {flops:.3g} flops, about {human_seconds(seconds)} in {config.solver.products}, over "
        f"{human_bytes(tiles)} of tiles per kernel ({held})"
    )
    peak = f"            {_describe_peak(config, peaks(config, shapes, plan))}"
    if config.solver.kind == "cg":
        return f"solver      cg: {pass_}\n            {_describe_preconditioner(config, n, c)}\n{peak}"
    vectors = basis_vectors(config, n, c, solver_memory(plan, memory_budget(config)), plan.workers)
    basis = f"basis {human_bytes(8 * n * min(c * PASSES, vectors))}"
    if vectors < c * PASSES:
        basis += f", restarted every {vectors:,} vectors"
    return (
        f"solver      krylov: {pass_}\n"
        f"            for {PASSES} passes, a usual number: {basis}, "
        f"{human_seconds(seconds * PASSES * kernels)} for {kernels} kernel{'s' if kernels > 1 else ''}\n{peak}"
    )


def _describe_peak(config: RunConfig, peak: Peak) -> str:
    """Of each machine, where they are several."""
    if config.cluster.kind != "ray":
        return f"{human_bytes(peak.together)} of memory at most, all processes together"
    own = driver_memory(config, memory_budget(config))
    said = (
        f"{human_bytes(peak.driver)} of memory at most in the driver, of {human_bytes(own)} that it may take on this machine; "
        f"{human_bytes(peak.workers)} in the workers, all nodes together"
    )
    return said + (
        "" if peak.driver <= own else ": MORE THAN THIS MACHINE HAS: run it on a larger node, or set solver.basis_gib"
    )


def factoring_peaks(config: RunConfig, factors: FactorPlan, plan: GramPlan, shapes: Shapes, budget: int) -> Peak:
    """Peaks while factors are made, in bytes: their tiles, and those kept for products.

    Args:
        config: of the run.
        factors: plan of one of them; they are made one after the other.
        plan: of the kernel's tiles.
        shapes: of the data set.
        budget: for all processes together.
    """
    n, edge = shapes.used_train, min(plan.edge, shapes.used_train)
    item = 4 if plan.store_dtype == "float32" else 8
    held = min(n * (n + edge) // 2 * item, product_memory(solver_memory(plan, budget), plan.workers))
    # The driver reads the factor's tiles for its solves, and keeps them while there is room.
    own = min(factors.stored_bytes, factors.memory_bytes) + 12 * 8 * n * shapes.outputs
    fixed = processes_peak(config, plan.workers, plan.memory_per_worker)
    return Peak(fixed.driver + own, fixed.workers + factors.peak_bytes + held)


def peaks(config: RunConfig, shapes: Shapes, plan: GramPlan, passes: int = PASSES) -> Peak:
    """Peaks while krylov, cg or eigh solves; see `solving_peak`."""
    item = 4 if plan.store_dtype == "float32" or config.solver.products == "float32" else 8
    n, edge = shapes.used_train, min(plan.edge, shapes.used_train)
    return solving_peak(
        config,
        n,
        shapes.outputs,
        tiles=n * (n + edge) // 2 * item,
        tile=edge * edge * item,
        passes=passes,
        budget=solver_memory(plan, memory_budget(config)),
        workers=plan.workers,
        worker_bytes=plan.memory_per_worker,
    )
