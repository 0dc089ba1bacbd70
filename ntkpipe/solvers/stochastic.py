"""Leave-one-out errors of a random sample of training points, if those of all points cost too much."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.dynamics.variance import KernelRows
from ntkpipe.linalg.assemble import unit_vectors
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.solvers.solution import LeaveOneOut, Solution
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.uncertainty.filters import Part

# Number of sampled points, which are solved in one block. The standard error of an accuracy near one half is then 6%.
ROWS = 64


def own_weights(solution: Solution) -> np.ndarray:
    """The weights (R, n, c) at t = inf for every point's own target."""
    problem, last = solution.problem, solution.at((math.inf,))
    weights, (_, ridges, c) = last.dual_weights()
    weights = weights.reshape(problem.kernel.n, ridges, c).transpose(1, 0, 2)
    return np.stack([problem.with_own_targets(w, r) for w, r in zip(weights, problem.ridges, strict=True)])


def sampled_leave_one_out(solution: Solution, workspace: Workspace) -> LeaveOneOut:
    """Leave-one-out residuals of `ROWS` points: their weights divided by their entries of the diagonal of the inverse.

    The filters of the solver give these entries.

    Args:
        solution: a solution at any times.
        workspace: store, executor and memory of the computation.
    """
    problem, kernel, n = solution.problem, solution.problem.kernel, solution.problem.kernel.n
    weights = own_weights(solution)
    rows = sample_indices(n, ROWS, seed=1)
    with tile_operator(kernel.matrix, workspace.executor, products=solution.solver.pass_products) as operator:
        workspace.tell(f"{problem.name}: leave-one-out of {len(rows)} points, drawn at random")
        # [A^-1]_ii is at least 1 / A_ii, so the tolerance is relative to this.
        scale = float(operator.diagonal().max()) + max(problem.ridges)
        tight = replace(solution, solver=solution.solver.tightened(scale))
        sampled = KernelRows(rows[:1], operator.rows(rows[:1]), None)
        part = Part(kernel, True, (math.inf,), operator, sampled, 1.0, False, 0.0, math.inf, workspace)
        with tight.filters(part, problem.ridges) as filters:
            inverse = filters.posterior(unit_vectors(rows, n)).value[0]
    return LeaveOneOut(solution.of_copies(weights[:, rows] / inverse[:, :, None], rows), rows, exact=False)
