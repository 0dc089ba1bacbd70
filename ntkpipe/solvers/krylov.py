"""Block Lanczos. One basis serves every time, ridge and filter. A basis that exceeds its memory is restarted."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ntkpipe.dynamics.enough import EstimateRule
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.dynamics.stopping import StopRule
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.linalg.pool_basis import PoolBasis
from ntkpipe.linalg.recurrence import StepRecord
from ntkpipe.linalg.restarted import LEAST_BLOCKS, restarted_lanczos
from ntkpipe.linalg.rounded_basis import RoundedBasis
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import basis_capacity, held_memory
from ntkpipe.solvers.basis_solution import BasisSolution
from ntkpipe.solvers.facts import error_facts, spectrum_facts, true_residual
from ntkpipe.solvers.probing import ProbeSolve
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.restarted import Restarts
from ntkpipe.solvers.solution import Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.stopping import estimates_of, reached, rule_of, waiting
from ntkpipe.solvers.workspace import Workspace, exclusive
from ntkpipe.sources.kernels import KernelSample
from ntkpipe.storage.checksum import digest
from ntkpipe.units import human_seconds


@dataclass(frozen=True)
class Krylov(Solver):
    """Block Lanczos. One basis serves every time and ridge. The store keeps it, and later solves extend it.

    Args:
        tolerance: how much further steps may still move a prediction, in units of the largest target, without errors of the tiles and of
            rounding (see `stop`).
        stop: `estimate` stops when the means of up to 64 test points move by less than the tolerance, or by less than a tenth of the
            errors of the tiles and of rounding. Without test points, with `basis=workers`, or after a restart of the basis, it acts as
            `bound`. `bound` stops when no prediction of any point can be off by more than the tolerance.
        max_steps: number of block steps after which the solver raises an error.
        products: `float64` (exact on the stored tiles) or `float32` (about 1.6 times faster, accurate to 1e-7 of the matrix).
        checkpoint_every: number of block steps between checkpoints.
        basis: `driver` keeps the basis in the driver, `workers` divides it into slices over the workers. With `workers` the times must be
            given.
        basis_gib: memory of the basis in GiB. A basis in the driver that exceeds it is restarted, and then serves only the times and ridges
            of this solve. None is half of the memory that the processes leave.
        basis_dtype: `float32` rounds the basis, which needs `basis=driver` and cannot be restarted. `auto` is `float64`.
        sample_rows: number of rows that are recomputed in float64 to measure rounding; None is 64, or fewer if they are slow.
    """

    kind: ClassVar[str] = "krylov"
    spectrum_kind: ClassVar[str] = "Ritz values"

    tolerance: float = 1e-4
    stop: str = "estimate"
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    basis: str = "driver"
    basis_gib: float | None = None
    basis_dtype: str = "auto"
    sample_rows: int | None = None

    @property
    def pass_products(self) -> str:
        """See `Solver.pass_products`."""
        return self.products

    @property
    def rounds(self) -> bool:
        """Whether the basis is in float32."""
        return self.config().basis_item == 4

    def key_of(self, problem: Problem) -> str:
        """Key of the basis."""
        key = problem.solve_key(self.products)
        return digest({"basis": key, "dtype": "float32"}) if self.rounds else key

    def empty(self, n: int, c: int) -> RoundedBasis | None:
        """An empty basis for n rows and c outputs in float32; None if the basis is in float64."""
        return RoundedBasis(n, min(n, c * (self.max_steps + 1))) if self.rounds else None

    @property
    def stops_at(self) -> float | None:
        """See `Solver.stops_at`."""
        return self.tolerance if self.stop == "bound" else None

    def tightened(self, scale: float) -> Krylov:
        """See `Solver.tightened`."""
        return replace(self, tolerance=self.tolerance / scale)

    def answer(self, problem: Problem, workspace: Workspace) -> BasisSolution:
        """See `Solver.answer`. The basis is large enough for every time and ridge.

        Raises:
            ConfigError: if the basis exceeds its memory, and it is in float32, or the solve has no times.
            IncompleteError: if `max_steps` is reached; the basis is stored, so a later solve continues.
        """
        key, kernel, settings = self.key_of(problem), problem.kernel, self.config()
        held_bytes = held_memory(settings, *problem.shape, problem.answers, workspace.room)
        with exclusive(workspace, f"krylov/{key}") as held:
            tiles = tile_operator(kernel.matrix, held.executor, products=self.products, memory_bytes=held_bytes)
            with tiles:
                operator = merged(tiles, kernel.copies)
                rows = kernel.sample_size(self.sample_rows)
                held.tell(f"{problem.name}: measuring the rounding of tiles on {rows} rows", force=True)
                measured = kernel.measure(operator, held.executor, self.sample_rows)
                ceiling = operator.pair_bound()
                rule = rule_of(problem, measured, held, self.config(), ceiling)
                found = _Solve(self, problem, held, key, operator, measured, rule, ceiling).run()
                found = self._probed(found, operator, held)
        return replace(found, workspace=workspace)

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> BasisSolution:
        """See `Solver.restore`."""
        space, probed = self._restored(problem, saved, workspace), self._restored_probes(problem, saved, workspace)
        found = BasisSolution(problem, self, workspace, saved.sample, saved.facts, space, history=saved.history)
        return replace(found, probed=probed)

    def _probed(self, found: BasisSolution, operator: AnyOperator, workspace: Workspace) -> BasisSolution:
        """The solution with the Krylov space of the random vectors for error estimates."""
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
        result = block_lanczos(
            stub,
            problem.targets,
            max_steps=facts["steps"],
            checkpoint=checkpoint,
            basis=self.empty(*problem.shape),
        )
        if len(result.basis) != sample.stored.shape[1]:
            # Another run has extended the shared basis. The saved products of the sampled rows do not contain the new vectors.
            raise IncompleteError(f"the basis of {name} has grown since this solution was saved: solve again")
        return KrylovSolution.from_lanczos(result, noise, ceiling)


@dataclass
class _Solve:
    """A running solve.

    Args:
        solver: the solver with its settings.
        problem: the problem to solve.
        workspace: the environment; this solve holds its lease.
        key: key of the basis.
        operator: the kernel.
        measured: sampled rows of the kernel, and the errors of its tiles.
        rule: the stopping rule.
        ceiling: an upper bound on the smallest eigenvalue.
        clock: seconds spent on products and on orthogonalisation.
    """

    solver: Krylov
    problem: Problem
    workspace: Workspace
    key: str
    operator: AnyOperator
    measured: KernelSample
    rule: StopRule | EstimateRule
    ceiling: float
    clock: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "orthogonalise": 0.0})

    def run(self) -> BasisSolution:
        """Solve with one basis, or with restarts if the basis exceeds its memory or is on the workers."""
        n, c = self.problem.shape
        began = time.monotonic()
        capacity = basis_capacity(self.solver.config(), n, c, self.problem.answers, self.workspace.room)
        with contextlib.ExitStack() as stack:
            basis = None
            if self.solver.basis == "workers":
                basis = PoolBasis(n, self.workspace.executor, memory_bytes=8 * n * capacity)
                stack.callback(basis.close)
            found = self._first_cycle(capacity, basis)
            if found is not None and (found.is_empty or (basis is None and found.reason is not Reason.FULL)):
                return self._of_basis(found, began)
            if self.solver.rounds:
                raise ConfigError(
                    f"the basis of {self.problem.name} exceeds its memory ({capacity:,} vectors), and a float32 basis cannot be "
                    "restarted: set solver.basis_dtype=float64, or raise solver.basis_gib or cluster.memory_gib"
                )
            return self._of_restarts(found, capacity, basis, began)

    def _first_cycle(self, capacity: int, basis: PoolBasis | None) -> LanczosResult | None:
        """The basis until the rule stops it or it is full; None if the store holds a checkpoint of a restarted solve."""
        if next(self._restarts().checkpoint(self.workspace.store).replay(), None) is not None:
            return None
        return block_lanczos(
            self.operator,
            self.problem.targets,
            max_steps=self.solver.max_steps,
            max_vectors=capacity if basis is None else None,  # workers store on disk what exceeds their memory
            stop=self.rule,
            check_every=self.rule.check_every,
            checkpoint=StoreCheckpoint(self.workspace.store, f"krylov/{self.key}", self.key),
            checkpoint_every=self.solver.checkpoint_every,
            on_step=self._on_step,
            basis=basis or self.solver.empty(*self.problem.shape),
        )

    def _of_basis(self, result: LanczosResult, began: float) -> BasisSolution:
        found = self.rule.solution
        if found is None or len(found.values) < result.tridiagonal.size:
            found = KrylovSolution.from_lanczos(result, self.measured.noise)
        found = replace(found, ceiling=self.ceiling)
        sample = self.measured.in_basis(found.basis)
        residual = true_residual(self.problem, found, self.operator)
        reason = Reason.ROUNDING if result.reason is Reason.CONVERGED and self.rule.rounding else result.reason
        return self._solution(found, sample, reason, result.steps, residual, began)

    def _of_restarts(
        self, first: LanczosResult | None, capacity: int, basis: PoolBasis | None, began: float
    ) -> BasisSolution:
        """Continue with restarts of a basis of `capacity` vectors.

        A finished basis on the workers is a single cycle. The weights are computed from it, and its vectors stay on the workers.
        """
        restarts, solver = self._restarts(), self.solver
        restarts.require_times(first, capacity)
        start = np.zeros((0, self.problem.shape[1])) if first is None else first.start
        if isinstance(self.rule, EstimateRule):
            self.rule = self.rule.bound
        answer = restarts.weights(self.rule, start)
        if basis is None:
            self._tell(
                f"the basis is full with {capacity} vectors (solver.basis_gib) and is restarted: from now on the solver stops by the bound "
                "on errors",
                force=True,
            )
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
            "bound": history[-1][2] if history and reason is not Reason.INVARIANT else 0.0,
            "seconds": seconds,
            **{f"seconds_{k}": v for k, v in self.clock.items()},
            **spectrum_facts(self.problem, space.largest, space.smallest),
            **error_facts(self.measured, self.ceiling),
            **estimates_of(self.rule),
        }
        if reason is Reason.MAX_STEPS:
            raise IncompleteError(
                f"krylov has not converged for {self.problem.name} after {steps} passes: {reached(self.rule)}, above "
                f"solver.tolerance={self.solver.tolerance:g}. The basis is kept: run with a larger solver.max_steps or solver.tolerance in "
                "a new run_dir, or add a ridge."
            )
        why = "; rounding and errors of the tiles remain" if reason is Reason.ROUNDING else ""
        self._tell(f"done, {steps} passes in {human_seconds(seconds)}, true residual {residual:.1e}{why}", force=True)
        return BasisSolution(self.problem, self.solver, self.workspace, sample, facts, space, history=tuple(history))

    def _restarts(self) -> Restarts:
        rows = self.problem.kernel.sample_size(self.solver.sample_rows)
        return Restarts(self.problem, self.solver.tolerance, self.key, self.measured.plain(), self.measured.noise, rows)

    def _on_step(self, record: StepRecord) -> None:
        self.clock["products"] += record.product_seconds
        self.clock["orthogonalise"] += record.orthogonalise_seconds
        self._tell(
            f"{record.step} passes, {record.vectors} vectors, {waiting(self.rule)}{record.product_seconds:.2g} s a pass",
            kernel=self.problem.name,
            steps=record.step,
            bound=self.rule.history[-1][2] if self.rule.history else None,
            estimate=self.rule.estimates[-1][1]
            if isinstance(self.rule, EstimateRule) and self.rule.estimates
            else None,
        )

    def _tell(self, line: str, **facts: Any) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}", **facts)


@dataclass(frozen=True)
class _Finished:
    """A placeholder operator for a finished basis that is restored. It raises `IncompleteError` instead of making a pass."""

    n: int
    otherwise: str

    def matmul(self, x: np.ndarray) -> np.ndarray:
        raise IncompleteError(self.otherwise)
