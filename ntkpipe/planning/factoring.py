"""What factors of a run take: their share of the memory, the plan of one, and its lines."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan, human_bytes, human_seconds
from ntkpipe.linalg.factor.plan import FactorPlan, choose_edge
from ntkpipe.planning.memory import factor_memory

# Flops per second of one thread in a tiled factorisation (docs/performance.md).
_RATE = {"float32": 8e10, "float64": 4.5e10}


def plan_factors(config: RunConfig, plan: GramPlan, n: int, budget: int) -> FactorPlan:
    """What a factor takes.

    Args:
        config: of the run.
        plan: of the tiles of the kernel.
        n: training images in use.
        budget: bytes for all processes together while solving.

    Raises:
        ResourceError: if not even small tiles fit.
    """
    dtype = "float64" if config.solver.precision == "float64" else "float32"
    memory = factor_memory(budget, plan.workers)
    edge = config.solver.factor_edge or choose_edge(
        n,
        dtype=dtype,
        workers=plan.workers,
        source_edge=plan.edge,
        source_dtype=plan.store_dtype,
        memory_bytes=memory,
    )
    return FactorPlan(n, min(edge, n), dtype, plan.workers, min(plan.edge, n), plan.store_dtype, memory)


def describe_factors(config: RunConfig, plan: FactorPlan, threads: int) -> str:
    """Lines for the plan of a run."""
    kernels, ridges = len(config.predict.kernels), len(config.predict.ridges)
    count = kernels * ridges
    seconds = plan.flops / (_RATE[plan.dtype] * plan.workers * threads)
    loo = " and as much again for exact leave-one-out errors" if config.solver.leave_one_out else ""
    fallback = (
        "; a float64 one of twice the size where float32 does not do" if config.solver.precision == "mixed" else ""
    )
    return (
        f"solver      cholesky: {count} factor{'s' if count > 1 else ''} in {config.solver.precision} ({kernels} kernels, "
        f"{ridges} ridges), each {plan.flops:.3g} flops, about {human_seconds(seconds)}{loo}\n"
        f"            {plan.tasks:,} tiles of edge {plan.edge}, {human_bytes(plan.stored_bytes)} stored for each{fallback}; "
        f"{human_bytes(int(plan.read_bytes))} read, {human_bytes(plan.peak_bytes)} of memory for tiles"
    )
