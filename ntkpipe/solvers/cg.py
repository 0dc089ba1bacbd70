"""Preconditioned block conjugate gradients with checkpoints. They need little memory and support only t = inf."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import held_memory, product_memory
from ntkpipe.solvers.converged import ConvergedSolution, require_the_end
from ntkpipe.solvers.correcting import Inverse, cg_inverse
from ntkpipe.solvers.facts import error_facts, spectrum_facts
from ntkpipe.solvers.probing import ProbeSolve
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.sketch import ROUNDING, Sketch
from ntkpipe.solvers.solution import LeaveOneOut, Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.stochastic import sampled_leave_one_out
from ntkpipe.solvers.workspace import Workspace, exclusive
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.storage.checksum import digest
from ntkpipe.uncertainty.filters import BatchWeights, Filters, Part, WeightFilters, residuals
from ntkpipe.units import human_seconds

# Share of the memory that the Krylov space of the random vectors may take.
_PROBE_SHARE = 0.1
# Residual relative to the errors of the tiles, both in the equation of the weights, at which iterations may stop. The root of the sum of
# their squares is then 5% above the errors of the tiles.
_BESIDE = 1 / 3
# Largest relative residual that is accepted, whatever the tolerance of a variance or the errors of the tiles allow.
_LOOSEST = 1e-2


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Conjugate gradients: they support only t = inf, solve once for each ridge, and keep no basis.

    Args:
        residual: largest acceptable `|y - A u| / |y|` of any output, in float64.
        stop: `estimate` stops at a third of the residual that errors of the tiles cause, if that is larger than `residual`;
            `bound` stops at `residual`.
        tolerance: largest acceptable error bound of a variance.
        preconditioner: `cholesky` (pivoted, from rows), `nystrom` (randomised, from products), `float32_factor` (of the whole
            matrix, in tiles) or `none`.
        rank: rank of `cholesky` and `nystrom`; None lets it grow as the smallest ridge requires, as long as this saves time.
        max_steps: number of passes after which the solver stops and raises an error.
        products: `float64` (exact on the stored tiles) or `float32`.
        checkpoint_every: number of passes between checkpoints.
        sample_rows: number of rows that are recomputed in float64 to measure rounding; None is 64, or fewer if they are slow.
        factor_edge: number of rows of a tile of `float32_factor`; None chooses it.
    """

    kind: ClassVar[str] = "cg"

    residual: float = 1e-8
    stop: str = "estimate"
    tolerance: float = 1e-4
    preconditioner: str = "cholesky"
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
        """See `Solver.answer`. The weights of every ridge have converged.

        Raises:
            IncompleteError: if `max_steps` is reached; the vectors are stored, so a later solve continues.
            NumericalError: if the kernel is indefinite, or rounding prevents the requested residual; the text gives remedies.
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
            measured = kernel.measure(operator, workspace.executor, self.sample_rows)
            solve = _Solve(self, problem, workspace, key, operator, measured)
            weights, found = solve.every_ridge()
            # Image kernels have one eigenvalue far above the others, so this takes a few passes with one vector.
            largest = largest_eigenvalue(operator, tolerance=1e-4)
            ceiling = operator.pair_bound()
            room = workspace.room
            capacity = int(_PROBE_SHARE * room.budget / (8 * kernel.n))
            # Nothing is left out that errors of the tiles may have made: the weights have these directions too.
            probing = ProbeSolve(problem, workspace, key, 0.0, ceiling)
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
            lost = probed.space.unlearnt(problem.filter, (math.inf,), problem.ridges)[0]
            facts["unresolved_ridges"] = [one for one, k in zip(problem.ridges, lost, strict=True) if k]
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
        """See `Solution.leave_one_out`. It uses a random sample of points."""
        return sampled_leave_one_out(self, workspace or self.workspace)

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """See `Solution.inverse`. It uses the preconditioner of the solve, which is in the store."""
        settings, problem = self.solver, self.problem
        sketch = Sketch(settings.config(), problem, problem.kernel, replace(workspace, tell=tell_nobody))
        make, _ = sketch.preconditioner(operator, min(problem.ridges))
        return cg_inverse(self.name, self.facts["key"], operator, workspace, settings.products, make)

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`."""
        settings = self.solver
        sketch = Sketch(settings.config(), self.problem, part.kernel, replace(part.workspace, tell=tell_nobody))
        # The solve has stored this preconditioner. The odd part under flips has none yet, so it is computed here.
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
                # If the iteration stagnates, the bound contains the residual that it has reached.
                weights[ridge], start = found.value, found.value
                seen = max(found.smallest - ridge, 0.0)  # the value of the smallest ridge, which is last, is used
            stacked = np.stack([weights[ridge] for ridge in ridges])
            least = min((one for one in (known, seen) if one > 0), default=0.0)
            smallest = max(min(least, part.ceiling) - part.noise, 0.0)
            return BatchWeights(stacked, residuals(part.operator, stacked, columns, ridges), smallest)

        largest = self.largest if part.own else largest_eigenvalue(part.operator, tolerance=1e-2)
        yield WeightFilters(solve, ridges, part.rows, largest)

    def _wanted(self, part: Part, columns: np.ndarray, smallest: float, *, quadratic: bool) -> float:
        """The relative residual at which the error of a variance is within the tolerance."""
        sizes = float(np.linalg.norm(columns, axis=0).max(initial=0.0))
        # The error of a quadratic form is |r|^2 / l_min. The error of other variances is 2 sqrt(v) |r| / sqrt(l_min).
        floor, tolerance = math.sqrt(max(smallest, np.finfo(np.float64).tiny)), self.solver.tolerance
        second = quadratic and not part.full
        room = math.sqrt(tolerance) if second else tolerance / (2 * math.sqrt(part.largest_prior))
        wanted = room * floor / sizes if sizes > 0 else 1.0
        return float(np.clip(wanted, self.solver.residual, _LOOSEST))

    def _require(self, found: CgSolution, part: Part, ridge: float) -> None:
        if found.reason is Reason.MAX_STEPS:
            raise IncompleteError(
                f"cg has not converged for variances of {self.name} after {found.iterations} passes: their residual is "
                f"{found.residual:.1e}. Run with a larger solver.max_steps or solver.residual in a new run_dir, or "
                "add a ridge. Finished batches are kept."
            )
        if found.reason is Reason.INDEFINITE:
            raise NumericalError(found.explain(ridge, float(part.operator.diagonal().mean())))


def _as_bounds(
    problem: Problem, history: list[tuple[int, int, float]], smallest: float
) -> tuple[tuple[int, int, float], ...]:
    """The history with error bounds of predictions instead of residuals, for the convergence figure."""
    gain = final_gain(min(problem.ridges), smallest).value * math.sqrt(problem.kernel.largest_test_diagonal)
    if not math.isfinite(gain):
        return ()
    size = float(np.linalg.norm(problem.targets, axis=0).max(initial=0.0))
    return tuple((step, vectors, gain * size * residual) for step, vectors, residual in history)


@dataclass
class _Solve:
    """A running solve.

    Args:
        settings: settings of the solver.
        problem: the problem to solve.
        workspace: the environment; this solve holds its lease.
        key: key of the kernel, its images, labels and the precision of products.
        operator: the kernel.
        measured: sampled rows of the kernel, which give the errors of the tiles.
        history: (passes, directions, largest relative residual) of every new step for the smallest ridge.
        clock: seconds spent on products and on other work.
        wanted: the residual at which the present step would stop.
    """

    settings: ConjugateGradients
    problem: Problem
    workspace: Workspace
    key: str
    operator: AnyOperator
    measured: KernelSample
    history: list[tuple[int, int, float]] = field(default_factory=list)
    clock: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "other": 0.0})
    wanted: float = 0.0

    def say(self, line: str, **facts: Any) -> None:
        """Report a line of progress, with facts."""
        self.workspace.tell(f"{self.problem.name}: {line}", kernel=self.problem.name, **facts)

    def every_ridge(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Solve for every ridge, the largest first. Each solve starts from the solution of the ridge before.

        An interrupted solve continues from its checkpoint, also after a change of the ridges or of the residual.

        Returns:
            Weights (R, n, c), and facts.
        """
        ridges, mean = self.problem.ridges, float(self.operator.diagonal().mean())
        sketch = Sketch(self.settings.config(), self.problem, self.problem.kernel, self.workspace)
        began = time.monotonic()
        make, described = sketch.preconditioner(self.operator, min(ridges))
        prepared = time.monotonic() - began
        name, start = sketch.name(min(ridges)), None
        solutions: dict[float, CgSolution] = {}
        for ridge in sorted(ridges, reverse=True):
            self.history.clear()
            self.wanted = self.settings.residual
            part = digest({"preconditioner": name, "ridge": repr(ridge)})
            found = block_cg(
                self.operator,
                self.problem.targets,
                ridge=ridge,
                start=start,
                preconditioner=make(ridge),
                tolerance=self.settings.residual,
                settle_for=self._beside_tiles if self.settings.stop == "estimate" else None,
                max_steps=self.settings.max_steps,
                exact=lambda x: self.operator.matmul(x, products="float64"),
                rounding=ROUNDING[self.settings.products],
                checkpoint=StoreCheckpoint(self.workspace.store, f"cg/{self.key}/{part}", part),
                checkpoint_every=self.settings.checkpoint_every,
                on_step=lambda record, ridge=ridge: self._on_step(record, ridge),
            )
            _require(found, ridge, mean, self.settings)
            solutions[ridge], start = found, found.value
        # A solve that takes no step, or whose ridge hides the eigenvalue, says nothing of it.
        smallest = min((s.smallest - ridge for ridge, s in solutions.items() if s.smallest > ridge), default=0.0)
        facts = {
            "steps": sum(s.iterations for s in solutions.values()),
            "passes": [solutions[ridge].iterations for ridge in ridges],
            "reason": Reason.CONVERGED.name,
            "true_residual": max(s.residual for s in solutions.values()),
            "smallest": max(described.get("smallest_factored", 0.0), smallest),
            "seconds_preconditioner": prepared,
            **{f"seconds_{k}": v for k, v in self.clock.items()},
            **described,
        }
        return np.stack([solutions[ridge].value for ridge in ridges]), facts

    @cached_property
    def _tile_errors(self) -> np.ndarray:
        """(k, n) errors of the sampled rows. They are cached because every step uses them."""
        return self.measured.stored - self.measured.exact

    def _beside_tiles(self, weights: np.ndarray) -> float:
        """The relative residual that is negligible beside errors of the tiles. Both affect predictions in the same way."""
        targets = self.problem.targets
        errors = np.sqrt(np.mean((self._tile_errors @ weights) ** 2, axis=0) * len(targets))
        sizes = np.linalg.norm(targets, axis=0)
        known = sizes > 0
        settled = float((_BESIDE * errors[known] / sizes[known]).min(initial=_LOOSEST))
        self.wanted = max(self.settings.residual, settled)
        return self.wanted

    def _on_step(self, record: CgStep, ridge: float) -> None:
        self.clock["products"] += record.product_seconds
        self.clock["other"] += record.other_seconds
        self.history.append((record.step, record.directions, record.residual))
        self.say(
            f"ridge {ridge:.3g}: {record.step} passes, residual {record.residual:.1e}, wanted {self.wanted:.0e}, "
            f"{record.product_seconds:.2g} s a pass",
            steps=record.step,
            residual=record.residual,
        )


# Error messages do not suggest to accept a relative residual above this, because such weights are no solution.
_WORTH_HAVING = 0.01


def _or_precondition(settings: ConjugateGradients) -> str:
    return "set solver.preconditioner=cholesky, " if settings.preconditioner == "none" else ""


def _require(found: CgSolution, ridge: float, mean: float, settings: ConjugateGradients) -> None:
    """Raise the error of a solve that has not converged."""
    if found.reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"cg has not converged for ridge {ridge:.3g} after {found.iterations} passes: its residual is {found.residual:.1e}, above "
            f"solver.residual={settings.residual:g}. Its vectors are kept: run with a larger solver.max_steps or "
            f"solver.residual in a new run_dir, {_or_precondition(settings)}or add a ridge."
        )
    if found.reason is Reason.STAGNATED:
        remedies = ["add a ridge (predict.ridges)"]
        if settings.preconditioner == "none":
            remedies.append("set solver.preconditioner=cholesky: without one, rounding makes directions dependent")
        if settings.products != "float64":
            remedies.append("set solver.products=float64")
        remedies.append("use float64 tiles if they are float32 (kernel.dtype=float64)")
        remedies.append("set solver=krylov in a new run_dir")
        if found.residual < _WORTH_HAVING:
            remedies.append(f"accept the residual that was reached (solver.residual={2 * found.residual:.0e})")
        raise NumericalError(
            f"cg stagnates for ridge {ridge:.3g} at a residual of {found.residual:.1e}, above solver.residual="
            f"{settings.residual:g}: {', or '.join(remedies)}"
        )
    if not found.reason.ok:
        raise NumericalError(
            f"{found.explain(ridge, mean)}; or set solver=krylov in a new run_dir: it leaves such directions out"
        )
