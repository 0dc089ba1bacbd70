"""Iterative refinement at t = inf: float64 accuracy from tiles of any precision.

A step computes the residual `r = y - A u` with entries of A that are recomputed in float64, solves `A d = r` with the stored tiles, and
replaces `u` by `u + d`. Each step adds as many correct digits as the first solution had. Kernels of the same points share the passes over
recomputed tiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ntkpipe.dynamics.filters import EPS
from ntkpipe.dynamics.movement import summed
from ntkpipe.dynamics.refined import LOOSE, RefinedWeights
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.errors import ConfigError, NumericalError
from ntkpipe.predictions.refinement import describe_refinement
from ntkpipe.solvers.probing import wanted
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.refined import RefinedSolution, stored_operator
from ntkpipe.solvers.solution import Saved, Solution
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.exact_products import exact_products, why_not
from ntkpipe.units import human_seconds

if TYPE_CHECKING:
    from ntkpipe.solvers.solver import Solver

# Refinement has failed if a correction is larger than this share of the weights, or leaves more than this share of the residual, and
# more than rounding explains.
_CONVERGING = 0.5


def require_refinable(problem: Problem) -> None:
    """Check before a solve that the problem can be refined.

    Raises:
        ConfigError: if it cannot; the text gives the reason.
    """
    if (why := why_not(problem.kernel)) is not None:
        raise ConfigError(f"refine: {why}")
    if problem.times is not None and not math.isinf(problem.times[-1]):
        raise ConfigError(
            "refine works only at t = inf, but all requested times are finite: add inf, or leave refine out"
        )


def refine(solutions: Sequence[Solution], workspace: Workspace, steps: int) -> list[Solution]:
    """Refine every solution at t = inf.

    Refinement does not converge if the tiles do not resolve the smallest eigenvalues. The solution is then returned unchanged, its facts
    contain the reason (`refinement`), and its predictions warn.

    Args:
        solutions: solutions for kernels that can be recomputed (`require_refinable`).
        workspace: the environment.
        steps: number of steps, above 0. Each takes a pass over tiles computed in float64, and a solve.
    """
    works = [_Work(one) for one in solutions]
    for step in range(steps):
        going = [work for work in works if work.failed is None]
        if not going:
            break
        asked = [(work.kernel, work.columns) for work in going]
        began = time.monotonic()
        products = exact_products(asked, workspace.executor, workspace.store, workspace.tell)
        share = (time.monotonic() - began) / len(going)
        for work, product in zip(going, products, strict=True):
            work.seconds_tiles += share
            work.step(product, workspace, last=step == steps - 1)
    return [work.finish(workspace) for work in works]


def restored(solver: Solver, problem: Problem, saved: Saved, workspace: Workspace) -> Solution:
    """The solution of an earlier process, refined if it was refined there; see `Solver.restore`."""
    base, arrays = solver.restore(problem, saved, workspace), saved.arrays
    if "refined_weights" not in arrays:
        return base
    parts = {name.removeprefix("refined_"): one for name, one in arrays.items() if name.startswith("refined_")}
    return _refined(base, RefinedWeights(**parts))


def _refined(base: Solution, refined: RefinedWeights) -> RefinedSolution:
    return RefinedSolution(
        base.problem, base.solver, base.workspace, base.sample, base.facts, base, refined, history=base.history
    )


@dataclass
class _Work:
    """A solution that is being refined.

    Attributes:
        failed: the reason why refinement failed; None if it has not.
        corrections: largest `|d| / |u|` of every step.
    """

    solution: Solution

    def __post_init__(self) -> None:
        self.problem, self.kernel = self.solution.problem, self.solution.problem.kernel
        self.failed: str | None = None
        self.corrections: list[float] = []
        self.seconds_tiles = self.seconds_solve = 0.0
        last = self.solution.at((math.inf,))
        lost, n = last.left_out(), self.kernel.n
        if lost is not None and lost.max(initial=0) > 0:
            self.failed = "the stored tiles cannot tell some directions from null directions, so these are left out"
        weights, (_, r, c) = last.dual_weights()
        # Rounding makes the weights of equal points differ if the tiles are factored without merging these points.
        weights = self.kernel.copies.average(weights).reshape(n, r, c).transpose(1, 0, 2)
        # A block of targets leaves rounding errors as the weights of an output without targets, and no correction is small beside them.
        self.weights = np.where(self.problem.targets.any(axis=0), weights, 0.0)
        self.left = np.zeros_like(self.weights)
        self.before: np.ndarray | None = None
        self.aside: np.ndarray | None = None
        if not np.isfinite(self.weights).all():
            self.failed = "the weights are not finite"

    @property
    def columns(self) -> np.ndarray:
        """The weights as columns (n, R c)."""
        r, n, c = self.weights.shape
        return np.ascontiguousarray(self.weights.transpose(1, 0, 2).reshape(n, r * c))

    def step(self, product: np.ndarray, workspace: Workspace, *, last: bool) -> None:
        """Correct the weights.

        Args:
            product: (n, R c), the kernel times the weights.
            workspace: the environment.
            last: whether this is the last step, which also solves for the columns that error estimates need.
        """
        began, (r, n, c) = time.monotonic(), self.weights.shape
        copies, problem = self.kernel.copies, self.problem
        images = product.reshape(n, r, c).transpose(1, 0, 2)
        made, left = np.empty_like(self.weights), np.empty_like(self.weights)
        try:
            with stored_operator(self.solution, workspace) as operator:
                inverse = self.solution.inverse(operator, workspace)
                for j, ridge in enumerate(problem.ridges):
                    residual = copies.average(problem.targets - images[j] - ridge * self.weights[j])
                    made[j] = inverse(residual, ridge)
                    left[j] = residual - operator.matmul(made[j], products="float64") - ridge * made[j]
                if last and wanted(problem) and not summed(c):
                    both = np.concatenate([self.weights + made, left], axis=2)
                    ridges = problem.ridges
                    self.aside = np.stack([inverse(x, ridge, LOOSE) for x, ridge in zip(both, ridges, strict=True)])
        except NumericalError as error:
            self.failed = str(error)
            return
        sizes, moved = (np.linalg.norm(one, axis=1) for one in (self.weights, made))
        correction = float((moved / np.where(sizes > 0, sizes, 1.0)).max(initial=0.0))
        self.seconds_solve += time.monotonic() - began
        if not correction < _CONVERGING:
            self.failed = f"a correction is {correction:.1g} times as large as the weights"
            return
        self.corrections.append(correction)
        self.before = problem.targets - images - np.array(problem.ridges)[:, None, None] * self.weights
        self.weights, self.left = self.weights + made, left

    def finish(self, workspace: Workspace) -> Solution:
        """The refined solution, or the original solution if refinement failed."""
        problem, solution = self.problem, self.solution
        refined = None if self.before is None or self.failed is not None else self._measured(workspace)
        if refined is not None:
            rows = refined.rows
            assert self.before is not None
            was, now = np.linalg.norm(self.before[:, rows], axis=1), np.linalg.norm(refined.residual, axis=1)
            if not (now <= _CONVERGING * was + self._rounding()).all():
                self.failed = f"a step leaves {float((now / np.where(was > 0, was, 1.0)).max()):.1g} of the residual"
        if refined is None or self.failed is not None:
            workspace.tell(f"{problem.name}: not refined: {self.failed}", force=True)
            return replace(solution, facts={**solution.facts, "refinement": {"failed": self.failed}})
        facts = {
            "steps": len(self.corrections),
            "corrections": self.corrections,
            "seconds_tiles": self.seconds_tiles,
            "seconds_solve": self.seconds_solve,
        }
        workspace.tell(
            f"{problem.name}: {describe_refinement(facts)}; tiles {human_seconds(self.seconds_tiles)}, corrections "
            f"{human_seconds(self.seconds_solve)}",
            force=True,
        )
        return _refined(replace(solution, facts={**solution.facts, "refinement": facts}), refined)

    def _rounding(self) -> np.ndarray:
        """Bound (R, c) on the norm of a residual that rounding in float64 leaves. Further steps do not reduce it."""
        problem, sizes = self.problem, np.linalg.norm(self.weights, axis=1)
        largest = self.solution.largest + np.array(problem.ridges)[:, None]
        return ROUNDING * EPS * (largest * sizes + np.linalg.norm(problem.targets, axis=0))

    def _measured(self, workspace: Workspace) -> RefinedWeights:
        """The refined weights with their residual on sampled rows, from entries computed in float64."""
        problem, kernel = self.problem, self.kernel
        asked = self.solution.solver.config().sample_rows
        rows, exact = kernel.blocks.exact_rows("train", workspace.executor, asked, kernel.part)  # type: ignore[attr-defined]
        images = exact[kernel.source] @ self.weights  # (R, k, c)
        ridges = np.array(problem.ridges)[:, None, None]
        residual = problem.targets[rows] - images - ridges * self.weights[:, rows]
        left = np.linalg.norm(self.left, axis=1)
        return RefinedWeights(self.weights, rows, residual, self.left[:, rows], left, self.aside)
