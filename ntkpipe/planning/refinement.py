"""The cost of refinement (`solver.refine`): tiles recomputed in float64, and solves for corrections.

- tiles        Each step evaluates all pairs of training points once in float64, for all kernels together. Predictions
               evaluate the pairs with test points once.
- corrections  krylov and cg need about as many passes as the solve, for each ridge. With deflation by the eigenvectors of
               the basis they were 23 of 30 (NTK) and 28 of 38 (NNGP) on 2,000 CIFAR-10 images. The estimate of what is
               left took 7 and 8 more. Direct solvers have their factors and multiply twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkpipe.planning.model import Work
from ntkpipe.planning.roofline import Phase
from ntkpipe.units import counted, human_seconds

if TYPE_CHECKING:
    from ntkpipe.planning.plan import RunPlan

_SHARE = 1.0
_DIRECT = 2


def train_phase(work: Work) -> Phase:
    """The phase that evaluates all pairs of training points in float64, for all steps."""
    return work.computing(work.config.solver.refine * _pairs(work, 0) * _pair(work))


def test_phase(work: Work) -> Phase:
    """The phase that evaluates all pairs with test points in float64."""
    return work.computing(_pairs(work, 1) * _pair(work))


def correction_passes(work: Work, kernel: str) -> int:
    """Passes over the stored tiles for corrections, for all ridges and steps."""
    solver, passes = work.config.solver, work.sizes.passes[kernel]
    if solver.kind not in ("krylov", "cg"):
        return _DIRECT * solver.refine * len(work.config.predict.ridges)
    ridges = len(work.config.predict.ridges) if solver.kind == "krylov" else 1  # the passes of cg are for all ridges
    return round(_SHARE * passes * ridges * solver.refine)


def describe_refinement(plan: RunPlan) -> list[str]:
    """The lines of a plan about refinement; empty without refinement."""
    work, steps = plan.work, plan.config.solver.refine
    if not steps:
        return []
    train, test = train_phase(work).seconds, test_phase(work).seconds
    passes = ", ".join(
        f"{correction_passes(work, kernel):,} ({kernel if plan.stores else 'gram'})" for kernel in work.kernels
    )
    pair = human_seconds(_pair(work) * plan.tiles.edge**2)
    return [
        f"refine      {counted(steps, 'step')} at t = inf: tiles again in float64, {pair} each on one worker, {human_seconds(train)} for "
        f"training and {human_seconds(test)} for test points, none stored; passes more for corrections: {passes}"
    ]


def _pairs(work: Work, block: int) -> float:
    if block >= len(work.plan.blocks):
        return 0.0
    used = work.plan.blocks[block].used
    return used.rows * (used.rows + 1) / 2 if used.symmetric else float(used.rows * used.cols)


def _pair(work: Work) -> float:
    """Seconds of one worker for both kernels of a pair."""
    return work.plan.evaluations * work.sizes.pair_seconds["float64"]
