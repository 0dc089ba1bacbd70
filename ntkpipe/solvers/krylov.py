"""Block Lanczos: one basis for every time, ridge and filter, or restarted where it outgrows its memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ntkpipe.dynamics import variance
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.dynamics.stopping import StopRule, resolved, stop_rule
from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.linalg.pool_basis import PoolBasis
from ntkpipe.linalg.recurrence import StepRecord
from ntkpipe.linalg.restarted import LEAST_BLOCKS, restarted_lanczos
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import basis_capacity, held_memory
from ntkpipe.solvers.facts import error_facts, relative_residual, spectrum_facts
from ntkpipe.solvers.probing import ProbeSolve
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.restarted import Restarts
from ntkpipe.solvers.solution import LeaveOneOut, Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.spectral import SpectralSolution
from ntkpipe.solvers.stochastic import sampled_leave_one_out
from ntkpipe.solvers.workspace import Workspace, exclusive
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.uncertainty.filters import Filters, Part, SpaceFilters
from ntkpipe.units import human_seconds

# Stopping is asked at steps that grow so much: each time an eigendecomposition of the projected kernel, of some hundred
# to some thousand rows, is made. They cost 1.6 times the last together, and a tenth of the steps may be wasted.
_GROWTH = 0.2


@dataclass(frozen=True)
class Krylov(Solver):
    """Block Lanczos: every time and ridge from one basis, which is kept in the store and grows when more is asked.

    Args:
        tolerance: largest acceptable error bound of a prediction, in units of the largest target, before rounding terms.
        max_steps: block steps after which it stops and says that it has not converged.
        products: `float64` (exact on the stored tiles) or `float32` (about 1.6 times faster, accurate to 1e-7 of the matrix).
        checkpoint_every: block steps between checkpoints.
        basis: where its vectors are: `driver`, or in slices over the `workers`; then the times have to be given.
        basis_gib: memory for the basis; one that outgrows it is restarted, and answers the times and ridges of this solve alone. None is
            half of what the processes leave of the memory.
        sample_rows: rows of the matrix recomputed in float64 to measure rounding; None is 64, or fewer where they take long.
    """

    kind: ClassVar[str] = "krylov"
    spectrum_kind: ClassVar[str] = "Ritz values"

    tolerance: float = 1e-4
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    basis: str = "driver"
    basis_gib: float | None = None
    sample_rows: int | None = None

    @property
    def pass_products(self) -> str:
        """See `Solver.pass_products`."""
        return self.products

    @property
    def stops_at(self) -> float:
        """See `Solver.stops_at`."""
        return self.tolerance

    def tightened(self, scale: float) -> Krylov:
        """See `Solver.tightened`."""
        return replace(self, tolerance=self.tolerance / scale)

    def answer(self, problem: Problem, workspace: Workspace) -> BasisSolution:
        """See `Solver.answer`; a basis large enough for every time and ridge.

        Raises:
            IncompleteError: if it runs out of steps; what it has is kept.
        """
        key, kernel, settings = problem.solve_key(self.products), problem.kernel, self.config()
        held_bytes = held_memory(settings, *problem.shape, problem.answers, workspace.room)
        with exclusive(workspace, f"krylov/{key}") as held:
            tiles = tile_operator(kernel.matrix, held.executor, products=self.products, memory_bytes=held_bytes)
            with tiles:
                operator = merged(tiles, kernel.copies)
                rows = kernel.sample_size(self.sample_rows)
                held.tell(f"{problem.name}: measuring the rounding of tiles on {rows} rows", force=True)
                measured = kernel.measure(operator, held.executor, self.sample_rows)
                ceiling = operator.pair_bound()
                rule = stop_rule(
                    problem.filter,
                    problem.times,
                    problem.ridges,
                    largest_test_diagonal=kernel.largest_test_diagonal,
                    tolerance=self.tolerance,
                    scales=problem.scales,
                    noise=measured.noise,
                    ceiling=ceiling,
                )
                found = _Solve(self, problem, held, key, operator, measured, rule, ceiling).run()
                found = self._probed(found, operator, held)
        return replace(found, workspace=workspace)

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> BasisSolution:
        """See `Solver.restore`."""
        space, probed = self._restored(problem, saved, workspace), self._restored_probes(problem, saved, workspace)
        found = BasisSolution(problem, self, workspace, saved.sample, saved.facts, space, history=saved.history)
        return replace(found, probed=probed)

    def _probed(self, found: BasisSolution, operator: AnyOperator, workspace: Workspace) -> BasisSolution:
        """With the space of the random vectors that errors are estimated from."""
        problem = found.problem
        solve = ProbeSolve(problem, workspace, found.facts["key"], found.noise, found.ceiling)
        capacity = basis_capacity(self.config(), *problem.shape, problem.answers, workspace.room)
        steps = found.facts["steps"]
        made = solve.run(operator, steps, problem.shape[1], capacity, checkpoint_every=self.checkpoint_every)
        return replace(found, probed=made.space, facts={**found.facts, **made.facts})

    def _restored_probes(self, problem: Problem, saved: Saved, workspace: Workspace) -> KrylovSolution | None:
        facts, arrays = saved.facts, saved.arrays
        if "probed_basis" in arrays:
            kept = {name.removeprefix("probed_"): a for name, a in arrays.items() if name.startswith("probed_")}
            return KrylovSolution.loaded(kept, facts.get("noise", 0.0), float(facts.get("ceiling", math.inf)))
        ceiling = float(facts.get("ceiling", math.inf))
        solve = ProbeSolve(problem, workspace, facts["key"], facts.get("noise", 0.0), ceiling)
        return solve.restore(facts, lambda text: _Finished(problem.kernel.n, text))

    def _restored(self, problem: Problem, saved: Saved, workspace: Workspace) -> KrylovSolution | RestartedSolution:
        facts, arrays, sample = saved.facts, saved.arrays, saved.sample
        noise, ceiling, name = facts.get("noise", 0.0), float(facts.get("ceiling", math.inf)), problem.name
        if facts.get("restarted"):
            restarts = Restarts(
                problem, self.tolerance, facts["key"], sample, noise, problem.kernel.sample_size(self.sample_rows)
            )
            kept = {k.removeprefix("answer_"): v for k, v in arrays.items() if k.startswith("answer_")}
            if not kept:
                records = restarts.checkpoint(workspace.store).restore()
                if not records or not records[0]["done"][0]:
                    raise IncompleteError(f"the weights of {name} are gone: solve again")
                kept = {k.removeprefix("answer_"): v for k, v in records[0].items() if k.startswith("answer_")}
            return replace(restarts.restored(kept), ceiling=ceiling)
        if "basis" in arrays:
            return KrylovSolution.loaded(arrays, noise, ceiling)
        checkpoint = StoreCheckpoint(workspace.store, f"krylov/{facts['key']}", facts["key"])
        stub = _Finished(problem.kernel.n, f"the basis of {name} is incomplete: solve again")
        result = block_lanczos(stub, problem.targets, max_steps=facts["steps"], checkpoint=checkpoint)
        if len(result.basis) != sample.stored.shape[1]:
            # Another run has taken more steps on the shared basis, which the rows sampled here have not seen.
            raise IncompleteError(f"the basis of {name} has grown since it was solved: solve again")
        return KrylovSolution.from_lanczos(result, noise, ceiling)


@dataclass(frozen=True, repr=False)
class BasisSolution(SpectralSolution):
    """A Krylov basis with its small problem, or what restarts have added up."""

    solver: Krylov

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`: of a sample."""
        return sampled_leave_one_out(self, workspace or self.workspace)

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`: a space of its own for every batch."""
        yield SpaceFilters(self._spaces(part, ridges), self.problem.filter, part.times, ridges, part.rows)

    def state(self) -> dict[str, np.ndarray]:
        """See `Solution.state`."""
        probed = {} if self.probed is None else self.probed.state()
        return self.space.state() | {f"probed_{name}": array for name, array in probed.items()}

    def _spaces(self, part: Part, ridges: tuple[float, ...]) -> Callable[[np.ndarray, bool], KrylovSolution]:
        settings, trained = self.solver, self.problem.filter

        def space(columns: np.ndarray, quadratic: bool) -> KrylovSolution:
            worst = math.inf

            def stop(result: LanczosResult) -> bool:
                nonlocal worst
                solution = KrylovSolution.from_lanczos(result, part.noise, resolved(part.ceiling, part.noise))
                worst = 0.0
                if quadratic and not part.full:
                    for ridge in ridges:
                        found = variance.quadratic_truncation(solution, trained, part.times, ridge)
                        worst = max(worst, float(found.max(initial=0.0)))
                else:
                    kappa = variance.ensemble_truncation(solution, trained, part.times, ridges)
                    worst = float((2.0 * math.sqrt(part.largest_prior) * kappa + kappa**2).max(initial=0.0))
                return worst <= settings.tolerance

            result = block_lanczos(
                part.operator,
                columns,
                max_steps=settings.max_steps,
                stop=stop,
                check_every=lambda step: step + max(1, math.ceil(_GROWTH * step)),
            )
            if result.reason is Reason.MAX_STEPS:
                raise IncompleteError(
                    f"krylov has made {result.steps} passes for variances of {self.name} and their bound is {worst:.1e}, above "
                    f"solver.tolerance={settings.tolerance:g} of the largest prior variance, {part.largest_prior:.2g}: run with a "
                    "larger solver.max_steps or tolerance, in a run_dir of its own, or add a ridge. Batches that are finished are "
                    "kept."
                )
            return KrylovSolution.from_lanczos(result, part.noise, part.ceiling)

        return space


@dataclass
class _Solve:
    """One solve at work.

    Args:
        solver: with its settings.
        problem: that is solved.
        workspace: held by this solve alone.
        key: names the basis.
        operator: the kernel.
        measured: sampled rows of it, and the errors of its tiles.
        rule: when to stop.
        ceiling: an upper bound on the smallest eigenvalue.
        clock: seconds by what they were spent on.
    """

    solver: Krylov
    problem: Problem
    workspace: Workspace
    key: str
    operator: AnyOperator
    measured: KernelSample
    rule: StopRule
    ceiling: float
    clock: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "orthogonalise": 0.0})

    def run(self) -> BasisSolution:
        """A basis, or restarted weights, and what a report says of them."""
        n, c = self.problem.shape
        began = time.monotonic()
        capacity = basis_capacity(self.solver.config(), n, c, self.problem.answers, self.workspace.room)
        with contextlib.ExitStack() as stack:
            basis = None
            if self.solver.basis == "workers":
                basis = PoolBasis(n, self.workspace.executor, memory_bytes=8 * n * capacity)
                stack.callback(basis.close)
            found = self._first_cycle(capacity, basis)
            if found is not None and basis is None and found.reason is not Reason.FULL:
                return self._of_basis(found, began)
            return self._of_restarts(found, capacity, basis, began)

    def _first_cycle(self, capacity: int, basis: PoolBasis | None) -> LanczosResult | None:
        """A basis until it is good, or full; None if another process has restarted it already."""
        if next(self._restarts().checkpoint(self.workspace.store).replay(), None) is not None:
            return None
        return block_lanczos(
            self.operator,
            self.problem.targets,
            max_steps=self.solver.max_steps,
            max_vectors=capacity if basis is None else None,  # what the workers' memory does not hold, their disks do
            stop=self.rule,
            checkpoint=StoreCheckpoint(self.workspace.store, f"krylov/{self.key}", self.key),
            checkpoint_every=self.solver.checkpoint_every,
            on_step=self._on_step,
            basis=basis,
        )

    def _of_basis(self, result: LanczosResult, began: float) -> BasisSolution:
        found = self.rule.solution
        if found is None or len(found.values) < result.tridiagonal.size:
            found = KrylovSolution.from_lanczos(result, self.measured.noise)
        found = replace(found, ceiling=self.ceiling)
        sample = self.measured.in_basis(found.basis)
        residual = _true_residual(self.problem, found, self.operator)
        return self._solution(found, sample, result.reason, result.steps, residual, began)

    def _of_restarts(
        self, first: LanczosResult | None, capacity: int, basis: PoolBasis | None, began: float
    ) -> BasisSolution:
        """Go on within a basis of `capacity` vectors.

        A finished basis over the workers is one cycle: weights are taken from it, and its vectors stay where they are.
        """
        restarts, solver = self._restarts(), self.solver
        restarts.require_times(first, capacity)
        start = np.zeros((0, self.problem.shape[1])) if first is None else first.start
        answer = restarts.weights(self.rule, start)
        if basis is None:
            self._tell(f"the basis is restarted, {capacity} vectors fit (solver.basis_gib)", force=True)
        elif first is not None:
            capacity = max(len(basis), LEAST_BLOCKS * first.start.shape[1])
        reason, steps = restarted_lanczos(
            self.operator,
            answer,
            capacity=capacity,
            max_steps=solver.max_steps,
            ridge=min(self.problem.ridges),
            first=first,
            basis=basis,
            checkpoint=restarts.checkpoint(self.workspace.store),
            checkpoint_every=solver.checkpoint_every,
            on_step=self._on_step,
        )
        found = replace(answer.solution, ceiling=self.ceiling)
        residual = restarts.true_residual(found, self.operator)
        return self._solution(found, self.measured.plain(), reason, steps, residual, began)

    def _solution(
        self,
        space: KrylovSolution | RestartedSolution,
        sample: RowSample,
        reason: Reason,
        steps: int,
        residual: float,
        began: float,
    ) -> BasisSolution:
        seconds, history = time.monotonic() - began, self.rule.history
        facts = {
            "solver": "krylov",
            "steps": steps,
            "vectors": len(space.values),
            "reason": reason.name,
            "key": self.key,
            "restarted": space.is_restarted,
            "products": self.solver.products,
            "true_residual": residual,
            "bound": history[-1][2] if history else 0.0,
            "seconds": seconds,
            **{f"seconds_{k}": v for k, v in self.clock.items()},
            **spectrum_facts(self.problem, space.largest, space.smallest),
            **error_facts(self.measured, self.ceiling),
        }
        if reason is Reason.MAX_STEPS:
            raise IncompleteError(
                f"krylov has made {steps} passes for {self.problem.name} and its error bound is {facts['bound']:.1e} of the largest "
                f"target, above solver.tolerance={self.solver.tolerance:g}. What it has is kept: run with a larger solver.max_steps "
                "or tolerance, in a run_dir of its own, or add a ridge."
            )
        self._tell(f"done, {steps} passes in {human_seconds(seconds)}, true residual {residual:.1e}", force=True)
        return BasisSolution(self.problem, self.solver, self.workspace, sample, facts, space, history=tuple(history))

    def _restarts(self) -> Restarts:
        rows = self.problem.kernel.sample_size(self.solver.sample_rows)
        return Restarts(self.problem, self.solver.tolerance, self.key, self.measured.plain(), self.measured.noise, rows)

    def _on_step(self, record: StepRecord) -> None:
        self.clock["products"] += record.product_seconds
        self.clock["orthogonalise"] += record.orthogonalise_seconds
        bound = self.rule.history[-1][2] if self.rule.history else math.nan
        self._tell(
            f"{record.step} passes, {record.vectors} vectors, "
            + (f"error bound {bound:.1e}, wanted {self.solver.tolerance:.0e}, " if self.rule.history else "")
            + f"{record.product_seconds:.2g} s a pass",
            kernel=self.problem.name,
            steps=record.step,
            bound=None if math.isnan(bound) else bound,
        )

    def _tell(self, line: str, **facts: Any) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}", **facts)


def _true_residual(problem: Problem, solution: KrylovSolution, operator: AnyOperator) -> float:
    """Largest `|b - u' - A u| / |b|` over the outputs, from one more pass, at the last time and the smallest ridge."""
    at = math.inf if problem.times is None else problem.times[-1]
    ridge = min(problem.ridges)
    values, cutoff = solution.shifted(ridge)
    phi = problem.filter.weights(values, at, cutoff=cutoff)[:, None] * solution.targets
    learnt = 1.0 - problem.filter.decay(values, at, cutoff=cutoff)
    asked = solution.basis.T @ solution.rotate(learnt[:, None] * solution.targets)
    weights = solution.basis.T @ solution.rotate(phi)
    residual = asked - operator.matmul(weights, products="float64") - ridge * weights
    return relative_residual(residual, problem.targets)


@dataclass(frozen=True)
class _Finished:
    """Stands for an operator where a finished basis is restored: no pass is to be made."""

    n: int
    otherwise: str

    def matmul(self, x: np.ndarray) -> np.ndarray:
        raise IncompleteError(self.otherwise)
