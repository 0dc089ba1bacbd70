"""Tiled Cholesky factorisation with one factor for each ridge. It supports only t = inf."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.direct import DirectSolution
from ntkpipe.linalg.factor.posterior import leave_one_out, log_determinant, log_marginal_likelihood
from ntkpipe.linalg.factor.refine import refine
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.linalg.operator import TileOperator, tile_operator
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import product_memory
from ntkpipe.solvers.converged import ConvergedSolution, require_the_end
from ntkpipe.solvers.correcting import Inverse
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.facts import error_facts, spectrum_facts
from ntkpipe.solvers.probing import probes, wanted
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.solution import LeaveOneOut, Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.stochastic import own_weights
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.uncertainty.filters import BatchWeights, Filters, Part, WeightFilters, residuals


@dataclass(frozen=True)
class Cholesky(Solver):
    """A tiled Cholesky factor for each ridge. It solves exactly at t = inf, with the likelihood and leave-one-out errors.

    Args:
        precision: `float64`, `mixed` or `float32`. `mixed` refines float32 factors: it is as accurate as `float64`, in half the time and
            memory, and uses float64 factors if it does not converge. `float32` has a residual of about 1e-5 times the square root of
            the condition.
        factor_edge: number of rows of a tile of a factor; None chooses it from the rows, the workers and the memory.
        leave_one_out: whether to compute exact leave-one-out errors, which takes as much arithmetic as a factor.
        products: precision of products with test kernels, `float64` or `float32`.
        sample_rows: number of rows that are recomputed in float64 to measure rounding; None is 64, or fewer if they are slow.
    """

    kind: ClassVar[str] = "cholesky"

    precision: str = "float64"
    factor_edge: int | None = None
    leave_one_out: bool = True
    products: str = "float64"
    sample_rows: int | None = None

    def answer(self, problem: Problem, workspace: Workspace) -> FactorSolution:
        """See `Solver.answer`. An interrupted solve continues after the tiles that it has finished.

        Raises:
            NumericalError: if the kernel is indefinite, or the factor is not accurate enough.
        """
        require_the_end(problem, self.kind)
        began, kernel, room = time.monotonic(), problem.kernel, workspace.room
        with tile_operator(
            kernel.matrix,
            workspace.executor,
            products="float64",
            memory_bytes=product_memory(room.budget, room.workers),
        ) as operator:
            each = [self._one(problem, workspace, operator, ridge) for ridge in problem.ridges]
            # Image kernels have one eigenvalue far above the others, so this takes a few passes with one vector.
            largest = largest_eigenvalue(operator, tolerance=1e-4)
            measured = kernel.measure(operator, workspace.executor, self.sample_rows)
            ceiling = operator.pair_bound()
            probed = self._probed(problem, workspace, operator)
        made = [facts for _, facts in each]
        smallest = max(0.0, min(ceiling, *(one.pop("smallest") for one in made)) - measured.noise)
        facts = {
            "solver": "cholesky",
            "steps": 1,
            "vectors": kernel.n,
            "reason": Reason.CONVERGED.name,
            "true_residual": max(one["residual"] for one in made),
            "seconds": time.monotonic() - began,
            **spectrum_facts(problem, largest, smallest),
            "factors": made,
            **error_facts(measured, ceiling),
        }
        weights = np.stack([weights for weights, _ in each])
        return FactorSolution(problem, self, workspace, measured.plain(), facts, weights, probed=probed)

    def _probed(self, problem: Problem, workspace: Workspace, operator: TileOperator) -> np.ndarray | None:
        """(R, n, q) weights of the random vectors for error estimates, from the stored factors; None without estimates."""
        if not wanted(problem):
            return None
        factors, vectors = self.factors(problem.kernel, workspace), probes(problem)
        found = [factors.solve(vectors, operator, ridge) for ridge in problem.ridges]
        return np.stack([one.value for one in found]) if all(one.reason.ok for one in found) else None

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> FactorSolution:
        """See `Solver.restore`."""
        arrays = saved.arrays
        found = FactorSolution(problem, self, workspace, saved.sample, saved.facts, arrays["weights"])
        return replace(found, history=saved.history, probed=arrays.get("probed"))

    def factors(self, kernel: TrainKernel, workspace: Workspace) -> Factors:
        """The factors of a kernel, for any ridge."""
        return Factors(kernel, workspace, self.precision, self.factor_edge)

    def _one(
        self, problem: Problem, workspace: Workspace, operator: TileOperator, ridge: float
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Weights (n, c) of one ridge, and facts about it."""

        def say(line: str, **facts: Any) -> None:
            workspace.tell(f"{problem.name}: {line}", kernel=problem.name, **facts)

        def on_tile(dtype: str, done: int, of: int) -> None:
            say(f"ridge {ridge:.3g}: {done:,} of {of:,} tiles of the {dtype} factor", tiles=done)

        say(f"Cholesky of {problem.kernel.n:,} rows, ridge {ridge:.3g}, {self.precision}", force=True)
        found = self.factors(problem.kernel, workspace).solve(problem.targets, operator, ridge, on_tile)
        if found.story:
            say(f"ridge {ridge:.3g}: {found.story}; answered by {found.method}, {found.run.factor.dtype}", force=True)
        if not found.reason.ok:
            other = ", or solver.precision=mixed" if self.precision == "float32" else ""
            raise NumericalError(
                f"{problem.name}, ridge {ridge:.3g}: residual {found.residual:.1e}; {found.reason}{other}"
            )
        return found.value, self._facts(problem, found, operator, ridge)

    def _facts(self, problem: Problem, found: DirectSolution, operator: TileOperator, ridge: float) -> dict[str, Any]:
        """Facts about one ridge, JSON-ready: how the factor was computed, and its likelihood and leave-one-out errors."""
        run = found.run
        y, weights = problem.own_targets, problem.with_own_targets(found.value, ridge)
        facts: dict[str, Any] = {
            "ridge": ridge,
            "precision": run.factor.dtype,
            "method": found.method,
            "refinements": found.iterations,
            "residual": found.residual,
            "story": found.story,
            "edge": run.plan.edge,
            "tiles": run.plan.tasks,
            "computed": run.computed,
            "seconds": run.seconds,
            "flops_per_second": run.rate,
            "bytes_read": run.read_bytes,
            "smallest": run.factor.smallest_eigenvalue() - ridge - found.raised,
        }
        if found.method == "cg":
            return facts  # the factor belongs to a nearby matrix, so its likelihood is not the one of this kernel
        logdet = log_determinant(run.factor, operator)
        facts |= {
            "logdet": logdet.value,
            "logdet_standard_error": logdet.standard_error,
            "log_marginal_likelihood": log_marginal_likelihood(y, weights, logdet.value).tolist(),
        }
        if self.leave_one_out:
            out = leave_one_out(run.factor, operator, weights)
            right = np.argmax(y - out.residuals, axis=1) == np.argmax(y, axis=1)
            facts |= {
                "leave_one_out_mse": float(np.mean(out.residuals**2)),
                "leave_one_out_accuracy": float(right.mean()) if y.shape[1] > 1 else None,
                "leave_one_out_relative_error": out.error,
            }
        return facts


@dataclass(frozen=True, repr=False)
class FactorSolution(ConvergedSolution):
    """Weights that were computed with factors, which are in the store."""

    solver: Cholesky

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`. It is exact for all points."""
        where, kernel = workspace or self.workspace, self.problem.kernel
        weights, rows = own_weights(self), np.arange(kernel.n)
        factors, out = self.solver.factors(kernel, where), np.empty_like(weights)
        with tile_operator(kernel.matrix, where.executor, products="float64") as operator:
            for j, ridge in enumerate(self.problem.ridges):
                where.tell(f"{self.name}: leave-one-out, ridge {ridge:.3g}")
                out[j] = leave_one_out(factors.factor(operator, ridge), operator, weights[j]).residuals
        return LeaveOneOut(self.of_copies(out, rows), rows, exact=True)

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """See `Solution.inverse`. It uses the factors that the solve has stored."""
        kernel, factors = self.problem.kernel, self.solver.factors(self.problem.kernel, workspace)

        def solve(columns: np.ndarray, ridge: float, tolerance: float = 0.0) -> np.ndarray:
            del tolerance
            return kernel.copies.average(factors.solve(columns, operator, ridge).value)

        return solve

    def ridge_groups(self) -> list[tuple[float, ...]]:
        """See `Solution.ridge_groups`. Each ridge has its own factor, so each is a group."""
        return [(ridge,) for ridge in self.problem.ridges]

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`."""
        (ridge,) = ridges
        # The solve has stored this factor. The odd part under flips has none yet, so it is computed here.
        factor = self.solver.factors(part.kernel, part.workspace).factor(part.operator, ridge)
        smallest = max(min(factor.smallest_eigenvalue() - ridge, part.ceiling) - part.noise, 0.0)
        rough = factor.dtype == "float32" and self.solver.precision == "mixed"

        def solve(columns: np.ndarray, quadratic: bool) -> BatchWeights:
            if rough and (part.full or not quadratic):
                weights = refine(factor, columns, part.operator).value[None]
            else:
                weights = factor.apply_inverse(columns)[None]
            return BatchWeights(weights, residuals(part.operator, weights, columns, ridges), smallest)

        largest = self.largest if part.own else largest_eigenvalue(part.operator, tolerance=1e-2)
        yield WeightFilters(solve, ridges, part.rows, largest)
