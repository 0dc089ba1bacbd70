"""Preconditioned block conjugate gradients, from one checkpoint to the next: t = inf only, in little memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ntkpipe.dynamics.gains import final_gain
from ntkpipe.errors import IncompleteError, NumericalError
from ntkpipe.events.event import tell_nobody
from ntkpipe.linalg.cg import CgSolution, block_cg
from ntkpipe.linalg.cg_recurrence import CgStep
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.linalg.preconditioner import Identity, LowRank, Preconditioner, nystrom, pivoted_cholesky
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import held_memory, product_memory
from ntkpipe.solvers.converged import ConvergedSolution, require_the_end
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.facts import error_facts, spectrum_facts
from ntkpipe.solvers.probing import ProbeSolve
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.solution import LeaveOneOut, Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.stochastic import sampled_leave_one_out
from ntkpipe.solvers.workspace import Workspace, exclusive
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import digest
from ntkpipe.uncertainty.filters import BatchWeights, Filters, Part, WeightFilters, residuals
from ntkpipe.units import human_seconds

# Of the products' kinds, what one rounds by.
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
# Of the memory, what the space of random vectors may take.
_PROBE_SHARE = 0.1
# Residuals of variances need be no smaller than this.
_LOOSEST = 1e-2


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Conjugate gradients: t = inf alone, a solve for each ridge, and no basis to keep.

    Args:
        residual: largest acceptable `|y - A u| / |y|` of any output, in float64.
        tolerance: largest acceptable error bound of a variance.
        preconditioner: `nystrom` (randomised, from products), `cholesky` (pivoted, from rows), `float32_factor` (of the whole
            matrix, in tiles) or `none`.
        rank: of `nystrom` and `cholesky`; None looks for what the smallest ridge calls for, at most 256.
        max_steps: passes after which it stops and says that it has not converged.
        products: `float64` (exact on the stored tiles) or `float32`.
        checkpoint_every: passes between checkpoints.
        sample_rows: rows of the matrix recomputed in float64 to measure rounding; None is 64, or fewer where they take long.
        factor_edge: rows of a tile of `float32_factor`; None is chosen.
    """

    kind: ClassVar[str] = "cg"

    residual: float = 1e-8
    tolerance: float = 1e-4
    preconditioner: str = "nystrom"
    rank: int | None = None
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    sample_rows: int | None = None
    factor_edge: int | None = None

    @property
    def pass_products(self) -> str:
        """See `Solver.pass_products`."""
        return self.products

    @property
    def preconditioned_by(self) -> list[str | int | None]:
        """See `Solver.preconditioned_by`."""
        return [self.preconditioner, self.rank]

    def tightened(self, scale: float) -> ConjugateGradients:
        """See `Solver.tightened`."""
        return replace(self, tolerance=self.tolerance / scale)

    def answer(self, problem: Problem, workspace: Workspace) -> IterativeSolution:
        """See `Solver.answer`; converged weights for every ridge.

        Raises:
            IncompleteError: if it runs out of steps; its vectors are kept.
            NumericalError: for an indefinite kernel, or a residual that is not to be had; the text says what to do.
        """
        require_the_end(problem, self.kind)
        key = problem.solve_key(self.products)
        with exclusive(workspace, f"cg/{key}") as held:
            found = self._answer(problem, held, key)
        return replace(found, workspace=workspace)

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> IterativeSolution:
        """See `Solver.restore`."""
        arrays = saved.arrays
        found = IterativeSolution(problem, self, workspace, saved.sample, saved.facts, arrays["weights"])
        return replace(found, history=saved.history, probed=arrays.get("probed"))

    def _answer(self, problem: Problem, workspace: Workspace, key: str) -> IterativeSolution:
        kernel, began = problem.kernel, time.monotonic()
        with tile_operator(
            kernel.matrix,
            workspace.executor,
            products=self.products,
            memory_bytes=self._tile_memory(problem, workspace),
        ) as held:
            operator = merged(held, kernel.copies)
            solve = _Solve(self, problem, workspace, key, operator)
            weights, found = solve.every_ridge()
            # Image kernels have one eigenvalue far above the others: a few passes with one vector.
            largest = largest_eigenvalue(operator, tolerance=1e-4)
            measured = kernel.measure(operator, workspace.executor, self.sample_rows)
            ceiling = operator.pair_bound()
            room = workspace.room
            capacity = int(_PROBE_SHARE * room.budget / (8 * kernel.n))
            probing = ProbeSolve(problem, workspace, key, measured.noise, ceiling)
            probed = probing.run(operator, found["steps"], problem.shape[1], capacity)
        seconds = time.monotonic() - began
        smallest = max(0.0, min(found.pop("smallest"), ceiling) - measured.noise)
        facts = {
            "solver": "cg",
            "key": key,
            "products": self.products,
            "seconds": seconds,
            **spectrum_facts(problem, largest, smallest),
            **found,
            **probed.facts,
            **error_facts(measured, ceiling),
        }
        solve.say(
            f"done, {facts['steps']} passes and {facts['sketch_passes']} for the preconditioner in {human_seconds(seconds)}, "
            f"true residual {facts['true_residual']:.1e}",
            force=True,
        )
        history = _as_bounds(problem, solve.history, smallest)
        probes = None
        if probed.space is not None:
            columns = probed.facts["estimate_factor"] * probed.space.dual_weights(
                problem.filter, (math.inf,), problem.ridges
            )
            probes = columns.reshape(kernel.n, len(problem.ridges), -1).transpose(1, 0, 2)
        found = IterativeSolution(problem, self, workspace, measured.plain(), facts, weights, history=history)
        return replace(found, probed=probes)

    def _tile_memory(self, problem: Problem, workspace: Workspace) -> int:
        room = workspace.room
        if self.preconditioner == "float32_factor":
            return product_memory(room.budget, room.workers)
        return held_memory(self.config(), *problem.shape, problem.answers, room)


@dataclass(frozen=True, repr=False)
class IterativeSolution(ConvergedSolution):
    """Weights of conjugate gradients."""

    solver: ConjugateGradients

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`: of a sample."""
        return sampled_leave_one_out(self, workspace or self.workspace)

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`."""
        settings = self.solver
        sketch = Sketch(settings, self.problem, part.kernel, replace(part.workspace, tell=tell_nobody))
        # The one that the solve has left in the store; of an odd part under flips it is made here.
        make, _ = sketch.preconditioner(part.operator, min(ridges))
        made = {ridge: make(ridge) for ridge in ridges}
        known = self.smallest if part.own else 0.0

        def solve(columns: np.ndarray, quadratic: bool) -> BatchWeights:
            weights, seen, start = {}, 0.0, None
            for ridge in sorted(ridges, reverse=True):
                found = block_cg(
                    part.operator,
                    columns,
                    ridge=ridge,
                    start=start,
                    preconditioner=made[ridge],
                    tolerance=self._wanted(part, columns, known + ridge, quadratic=quadratic),
                    max_steps=settings.max_steps,
                    exact=lambda x: part.operator.matmul(x, products="float64"),
                    rounding=ROUNDING[settings.products],
                )
                self._require(found, part, ridge)
                # Where it stagnates the residual that it has is in the bound.
                weights[ridge], start = found.value, found.value
                seen = max(found.smallest - ridge, 0.0)  # the last, of the smallest ridge, counts
            stacked = np.stack([weights[ridge] for ridge in ridges])
            least = min((one for one in (known, seen) if one > 0), default=0.0)
            smallest = max(min(least, part.ceiling) - part.noise, 0.0)
            return BatchWeights(stacked, residuals(part.operator, stacked, columns, ridges), smallest)

        largest = self.largest if part.own else largest_eigenvalue(part.operator, tolerance=1e-2)
        yield WeightFilters(solve, ridges, part.rows, largest)

    def _wanted(self, part: Part, columns: np.ndarray, smallest: float, *, quadratic: bool) -> float:
        """The relative residual that keeps a variance within the tolerance."""
        sizes = float(np.linalg.norm(columns, axis=0).max(initial=0.0))
        # A quadratic form is off by |r|^2 / l_min; otherwise by 2 sqrt(v) |r| / sqrt(l_min).
        floor, tolerance = math.sqrt(max(smallest, np.finfo(np.float64).tiny)), self.solver.tolerance
        second = quadratic and not part.full
        room = math.sqrt(tolerance) if second else tolerance / (2 * math.sqrt(part.largest_prior))
        wanted = room * floor / sizes if sizes > 0 else 1.0
        return float(np.clip(wanted, self.solver.residual, _LOOSEST))

    def _require(self, found: CgSolution, part: Part, ridge: float) -> None:
        if found.reason is Reason.MAX_STEPS:
            raise IncompleteError(
                f"cg has made {found.iterations} passes for variances of {self.name} and their residual is "
                f"{found.residual:.1e}: run with a larger solver.max_steps or solver.residual, in a run_dir of its own, or "
                "add a ridge. Batches that are finished are kept."
            )
        if found.reason is Reason.INDEFINITE:
            raise NumericalError(found.explain(ridge, float(part.operator.diagonal().mean())))


def _as_bounds(
    problem: Problem, history: list[tuple[int, int, float]], smallest: float
) -> tuple[tuple[int, int, float], ...]:
    """What residuals let a prediction be wrong by, as in the bound, for the convergence figure."""
    gain = final_gain(min(problem.ridges), smallest).value * math.sqrt(problem.kernel.largest_test_diagonal)
    if not math.isfinite(gain):
        return ()
    size = float(np.linalg.norm(problem.targets, axis=0).max(initial=0.0))
    return tuple((step, vectors, gain * size * residual) for step, vectors, residual in history)


@dataclass
class _Solve:
    """One solve at work.

    Args:
        settings: of the solver.
        problem: that is solved.
        workspace: held by this solve alone.
        key: names the kernel, its images, labels and products.
        operator: the kernel.
        history: (passes, directions, largest relative residual) of every new step for the smallest ridge.
        clock: seconds by what they were spent on.
    """

    settings: ConjugateGradients
    problem: Problem
    workspace: Workspace
    key: str
    operator: AnyOperator
    history: list[tuple[int, int, float]] = field(default_factory=list)
    clock: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "other": 0.0})

    def say(self, line: str, **facts: Any) -> None:
        """A line for people and facts."""
        self.workspace.tell(f"{self.problem.name}: {line}", kernel=self.problem.name, **facts)

    def every_ridge(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Solve for every ridge, the largest first: each starts from the one before. Weights (R, n, c) and facts.

        What a killed solve has left is taken up, also that of other ridges and residuals.
        """
        ridges, mean = self.problem.ridges, float(self.operator.diagonal().mean())
        sketch = Sketch(self.settings, self.problem, self.problem.kernel, self.workspace)
        began = time.monotonic()
        make, described = sketch.preconditioner(self.operator, min(ridges))
        prepared = time.monotonic() - began
        name, start = sketch.name(min(ridges)), None
        solutions: dict[float, CgSolution] = {}
        for ridge in sorted(ridges, reverse=True):
            self.history.clear()
            part = digest({"preconditioner": name, "ridge": repr(ridge)})
            found = block_cg(
                self.operator,
                self.problem.targets,
                ridge=ridge,
                start=start,
                preconditioner=make(ridge),
                tolerance=self.settings.residual,
                max_steps=self.settings.max_steps,
                exact=lambda x: self.operator.matmul(x, products="float64"),
                rounding=ROUNDING[self.settings.products],
                checkpoint=StoreCheckpoint(self.workspace.store, f"cg/{self.key}/{part}", part),
                checkpoint_every=self.settings.checkpoint_every,
                on_step=lambda record, ridge=ridge: self._on_step(record, ridge),
            )
            _require(found, ridge, mean, self.settings)
            solutions[ridge], start = found, found.value
        facts = {
            "steps": sum(s.iterations for s in solutions.values()),
            "passes": [solutions[ridge].iterations for ridge in ridges],
            "reason": Reason.CONVERGED.name,
            "true_residual": max(s.residual for s in solutions.values()),
            "smallest": max(0.0, min(s.smallest - ridge for ridge, s in solutions.items())),
            "seconds_preconditioner": prepared,
            **{f"seconds_{k}": v for k, v in self.clock.items()},
            **described,
        }
        return np.stack([solutions[ridge].value for ridge in ridges]), facts

    def _on_step(self, record: CgStep, ridge: float) -> None:
        self.clock["products"] += record.product_seconds
        self.clock["other"] += record.other_seconds
        self.history.append((record.step, record.directions, record.residual))
        self.say(
            f"ridge {ridge:.3g}: {record.step} passes, residual {record.residual:.1e}, wanted {self.settings.residual:.0e}, "
            f"{record.product_seconds:.2g} s a pass",
            steps=record.step,
            residual=record.residual,
        )


# A residual of the size of the targets is no solution.
_WORTH_HAVING = 0.01


def _require(found: CgSolution, ridge: float, mean: float, settings: ConjugateGradients) -> None:
    """Raise what a solve that has not converged calls for."""
    if found.reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"cg has made {found.iterations} passes for ridge {ridge:.3g} and its residual is {found.residual:.1e}, above "
            f"solver.residual={settings.residual:g}. Its vectors are kept: run with a larger solver.max_steps or "
            "solver.residual, in a run_dir of its own, or add a ridge."
        )
    if found.reason is Reason.STAGNATED:
        remedies = ["add a ridge (predict.ridges)"]
        if settings.products != "float64":
            remedies.append("set solver.products=float64")
        remedies.append("give float64 tiles where they are float32 (kernel.dtype=float64)")
        if found.residual < _WORTH_HAVING:
            remedies.append(f"ask for what can be had (solver.residual={2 * found.residual:.0e})")
        raise NumericalError(
            f"cg stagnates for ridge {ridge:.3g} at a residual of {found.residual:.1e}, above solver.residual="
            f"{settings.residual:g}: {', or '.join(remedies)}"
        )
    if not found.reason.ok:
        raise NumericalError(found.explain(ridge, mean))


@dataclass(frozen=True)
class Sketch:
    """Preconditioners of one kernel, kept in the store.

    Args:
        settings: of the solver.
        problem: that is solved.
        kernel: the problem's, or another part of it.
        workspace: where they are made and kept.
    """

    settings: ConjugateGradients
    problem: Problem
    kernel: TrainKernel
    workspace: Workspace

    def name(self, ridge: float) -> str:
        """Of the one for ridges from `ridge` up."""
        return f"{self.settings.preconditioner}, rank {self.settings.rank}, ridge {ridge!r}"

    def preconditioner(
        self, operator: AnyOperator, ridge: float
    ) -> tuple[Callable[[float], Preconditioner], dict[str, Any]]:
        """What makes the preconditioner of a ridge, and facts about it.

        Args:
            operator: the kernel.
            ridge: the smallest that it is for.
        """
        settings = self.settings
        key = self.problem.solve_key(settings.products, self.kernel)
        prefix = f"cg/{key}/{digest(self.name(ridge))}"
        facts: dict[str, Any] = {"preconditioner": settings.preconditioner, "vectors": 0, "sketch_passes": 0}
        if settings.preconditioner == "none":
            return lambda _: Identity(), facts
        if settings.preconditioner == "float32_factor":
            self._say(f"float32 factor of {operator.n:,} x {operator.n:,}", force=True)
            factors = Factors(self.kernel, self.workspace, edge=settings.factor_edge)
            return factors.preconditioner, {**facts, "vectors": operator.n}
        checkpoint = StoreCheckpoint(self.workspace.store, prefix, prefix)
        if kept := checkpoint.restore():
            arrays = kept[0]
            tail, passes, columns = arrays["scalars"].tolist()
            found = LowRank(arrays["vectors"], arrays["values"], tail, int(passes), int(columns))
            self._say(
                f"{settings.preconditioner} preconditioner of rank {len(found.values)} found in the store", force=True
            )
        else:
            self._say(f"{settings.preconditioner} preconditioner: looking at the kernel", force=True)
            if settings.preconditioner == "nystrom":
                found = nystrom(operator, ridge=ridge, rank=settings.rank, rounding=ROUNDING[settings.products])
            else:
                found = pivoted_cholesky(operator, ridge=ridge, rank=settings.rank)
            scalars = np.array([found.tail, found.passes, found.columns], dtype=np.float64)
            checkpoint.append(0, 1, {"vectors": found.vectors, "values": found.values, "scalars": scalars})
            self._say(f"{settings.preconditioner} preconditioner: {found.at(ridge).cost()}", force=True)
        return found.at, {
            **facts,
            "vectors": len(found.values),
            "sketch_passes": found.passes,
            "sketch_columns": found.columns,
        }

    def _say(self, line: str, **facts: Any) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}", kernel=self.problem.name, **facts)
