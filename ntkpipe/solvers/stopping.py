"""The stopping rule of a Krylov solve, and its lines of progress."""

from __future__ import annotations

import math

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.enough import EstimateRule, OtherErrors
from ntkpipe.dynamics.movement import TestMeans
from ntkpipe.dynamics.stopping import StopRule, stop_rule
from ntkpipe.solvers.probing import row_facts
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.units import counted

TEST_POINTS = 64
"""Largest number of test points whose means the rule follows."""


def rule_of(
    problem: Problem, measured: KernelSample, workspace: Workspace, settings: SolverConfig, ceiling: float
) -> StopRule | EstimateRule:
    """The rule of `solver.stop`. Without test points, or with a basis on the workers, it is the rule of `bound`.

    Args:
        problem: the problem.
        measured: sampled rows of its kernel.
        workspace: the environment.
        settings: settings of the solver.
        ceiling: an upper bound on the smallest eigenvalue.
    """
    kernel = problem.kernel
    bound = stop_rule(
        problem.filter,
        problem.times,
        problem.ridges,
        largest_test_diagonal=kernel.largest_test_diagonal,
        tolerance=settings.tolerance,
        scales=problem.scales,
        noise=measured.noise,
        ceiling=ceiling,
    )
    if settings.stop == "bound":
        return bound
    if settings.basis == "workers":
        workspace.tell(f"{problem.name}: stops by the bound on errors, because the basis is on the workers", force=True)
        return bound
    tests = kernel.test_rows(TEST_POINTS, workspace.executor)
    if tests is None:
        workspace.tell(f"{problem.name}: stops by the bound on errors, because it has no test points", force=True)
        return bound
    root = np.sqrt(np.maximum(kernel.diagonal()[measured.indices], np.finfo(np.float64).tiny))
    relative = (measured.stored - measured.exact) / root[:, None]
    spread = float(np.sqrt(np.mean(relative**2))) if relative.size else 0.0
    facts = row_facts(problem, measured.indices, measured.noise, settings.products)
    watched = np.concatenate([measured.stored, measured.exact])
    means = TestMeans(tests.rows, watched, bound.spectral_filter, bound.times, bound.ridges, problem.scales)
    return EstimateRule(bound, means, OtherErrors(measured.plain(), facts, spread, tests.diagonal))


def waiting(rule: StopRule | EstimateRule) -> str:
    """Part of a progress line: the present error, the wanted error, and the remaining passes. It is empty before the first check."""
    if isinstance(rule, EstimateRule) and rule.estimates:
        _, reached, wanted = rule.estimates[-1]
        text = f"error estimate {reached:.1e}, wanted {wanted:.0e}, "
    elif rule.history:
        tolerance = rule.bound.tolerance if isinstance(rule, EstimateRule) else rule.tolerance
        text = f"error bound {rule.history[-1][2]:.1e}, wanted {tolerance:.0e}, "
    else:
        return ""
    left = rule.steps_to_go()
    return text if left is None else f"{text}about {counted(left, 'pass', 'passes')} to go, "


def estimates_of(rule: StopRule | EstimateRule) -> dict[str, list[list[float]]]:
    """The estimates of the rule, JSON-ready, for the convergence figure; empty for a rule that uses the bound.

    Each estimate is (passes, remaining movement of predictions, wanted movement).
    """
    if not isinstance(rule, EstimateRule):
        return {}
    return {"estimates": [[float(x) for x in row] for row in rule.estimates if all(map(math.isfinite, row))]}


def reached(rule: StopRule | EstimateRule) -> str:
    """Part of an error message: the accuracy that a solve reached before `max_steps`."""
    if isinstance(rule, EstimateRule) and rule.estimates:
        return f"further steps would move predictions by about {rule.estimates[-1][1]:.1e} of the largest target"
    return f"its error bound is {rule.history[-1][2] if rule.history else 0.0:.1e} of the largest target"
