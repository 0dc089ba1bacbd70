"""Resolves `solver=auto` and `cluster=auto` from the number of points and the time of a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ntkpipe.config import COMBINED, RunConfig, SolverConfig
from ntkpipe.gram.from_config import empirical_kernel, pair_cost
from ntkpipe.planning.combined import combined_cost, parts_for
from ntkpipe.planning.machine import assumed_machine
from ntkpipe.planning.shapes import Shapes, spec_for
from ntkpipe.planning.tiles import pair_seconds

SMALL = 2000
"""Largest number of training points for the dense solver by default: it takes 3 s of one core and 0.2 GB."""

# Ray takes 4 to 7 s to start and its workers 4 s each to import. That does not pay for tiles that one process computes
# in less time.
_SERIAL_SECONDS = 20.0
# Settings that only iterative solvers use. Setting one of them selects an iterative solver.
_ITERATIONS = ("tolerance", "max_steps", "checkpoint_every", "basis", "basis_gib", "basis_dtype")
# Arrays of n^2 numbers: the matrix, its eigenvectors, the workspace of LAPACK, and both parts of a kernel under flips.
_COPIES = 5


def choose(config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig] = ()) -> tuple[RunConfig, tuple[str, ...]]:
    """A configuration without `auto`, and a line for each choice: what was chosen, why, and how to choose the
    alternative.

    Args:
        config: of the run; explicit settings are kept.
        shapes: of its points.
        siblings: configurations of other depths, which share the evaluations.
    """
    told: list[str] = []
    if config.solver.kind == "auto":
        kind, why = _solver(config, shapes.used_train)
        config = dataclasses.replace(config, solver=dataclasses.replace(config.solver, kind=kind))
        told.append(f"solver   {kind}: {why}{_ALTERNATIVES[kind]}")
    return _with_cluster(config, shapes, siblings, told)


def _with_cluster(
    config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig], told: list[str]
) -> tuple[RunConfig, tuple[str, ...]]:
    if config.cluster.kind == "auto":
        kind, why = _cluster(config, shapes, siblings)
        other = (
            "set cluster=local to use all cores through Ray"
            if kind == "serial"
            else "set cluster=serial to use this process alone"
        )
        config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, kind=kind))
        told.append(f"cluster  {kind}: {why}; {other}")
    return config, tuple(told)


_ALTERNATIVES = {
    "flow": ", in steps of gradient flow",
    "eigh": "; set solver=krylov for the iterative solver",
    "krylov": "; set solver=eigh for the dense solver",
}


def _solver(config: RunConfig, n: int) -> tuple[str, str]:
    default, memory = SolverConfig(), config.cluster.memory_gib
    if config.predict.loss != "squared":
        return "flow", f"predict.loss={config.predict.loss}"
    for name in _ITERATIONS:
        if getattr(config.solver, name) != getattr(default, name):
            return "krylov", f"solver.{name} is set"
    if n > SMALL:
        return "krylov", f"{n:,} points"
    if memory is not None and _COPIES * 8 * n**2 > memory * 2**30:
        return "krylov", f"cluster.memory_gib={memory}"
    return "eigh", f"{n:,} points"


def _cluster(config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig]) -> tuple[str, str]:
    n = shapes.used_train
    if (config.cluster.workers or 1) > 1:
        return "local", f"cluster.workers={config.cluster.workers}"
    if n > SMALL:
        return "local", f"{n:,} points"
    if (seconds := _gram_seconds(config, shapes, siblings)) > _SERIAL_SECONDS:
        return "local", f"about {seconds:,.0f} s of one core for the kernel"
    return "serial", f"{n:,} points"


def _gram_seconds(config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig]) -> float:
    """Seconds of one core for all pairs, from assumed rates."""
    cost, n = shapes.cost, shapes.used_train
    if cost is None:
        if config.kernel.kind == "gram" or not all(shapes.image):  # given: nothing is computed
            return 0.0
        if config.kernel.kind == "empirical":
            cost = empirical_kernel(config.kernel).cost(shapes.image)
        if config.kernel.kind in COMBINED:
            cost = combined_cost(parts_for(config.kernel, shapes), shapes.image)
    if cost is None:
        deepest = max((spec_for(one.kernel, shapes) for one in (config, *siblings)), key=len)
        cost = pair_cost(deepest, shapes.image)
    pairs = n * (n + 1) / 2 + n * shapes.used_test
    return config.copies * pairs * pair_seconds(cost, assumed_machine(), config.kernel.dtype)
