"""Gradient flow of losses other than the squared one: integrated in function space, one pass over the tiles per stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.bounds import ErrorBudget, error_of_test_rows, scaled
from ntkpipe.dynamics.estimates import Disturbance
from ntkpipe.dynamics.filters import EPS
from ntkpipe.dynamics.gains import ESTIMATE, time_gain
from ntkpipe.dynamics.loss_flow import FlowState, LossFlow
from ntkpipe.dynamics.losses import make_loss
from ntkpipe.dynamics.sampling import RowSample, TestErrors, independent_share, norm_safety
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import ConfigError, IdentityError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import TileOperator, tile_operator
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import held_memory
from ntkpipe.solvers.facts import error_facts, spectrum_facts
from ntkpipe.solvers.prediction import KernelPredictions
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.solution import LeaveOneOut, Saved, Shape, Solution
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.workspace import Workspace, exclusive
from ntkpipe.sources.kernels import TestKernel
from ntkpipe.storage.checksum import digest
from ntkpipe.uncertainty.filters import Filters, Part

# Block steps of Lanczos for the largest eigenvalue, and room above what they find: it sets the stable step.
_LARGEST_STEPS, _ROOM = 12, 1.02
# Of rounding, in units of eps per product.
_ROUNDING = 4.0
_MEANS_ONLY = "losses other than the squared one have no closed form for {}: means alone"


@dataclass(frozen=True)
class Flow(Solver):
    """Gradient flow of any loss from zero, by explicit steps whose length follows an estimate of their error.

    Args:
        loss: `cross_entropy` (classes; outputs are logits), `logistic` (one class against the rest), `huber` or `squared`.
        huber_delta: residual from which `huber` is linear, in the units of the targets.
        tolerance: largest acceptable estimate of the error of a prediction, in units of the largest target; of logits absolute.
        products: `float64` or `float32`.
        checkpoint_every: steps between checkpoints.
        sample_rows: rows of the matrix recomputed in float64 to measure rounding; None is 64, or fewer where they take long.
    """

    kind: ClassVar[str] = "flow"

    tolerance: float = 1e-4
    products: str = "float64"
    checkpoint_every: int = 10
    sample_rows: int | None = None
    loss: str = "cross_entropy"
    huber_delta: float = 1.0

    def __post_init__(self) -> None:
        make_loss(self.loss, delta=self.huber_delta)
        super().__post_init__()

    def config(self) -> SolverConfig:
        """See `Solver.config`; the loss is a setting of predictions."""
        shared = ("tolerance", "products", "checkpoint_every", "sample_rows")
        return SolverConfig(kind=self.kind, **{name: getattr(self, name) for name in shared})

    @classmethod
    def of(cls, config: SolverConfig, loss: str = "cross_entropy", huber_delta: float = 1.0) -> Self:
        """See `Solver.of`."""
        known = {"tolerance": config.tolerance, "products": config.products, "sample_rows": config.sample_rows}
        return cls(checkpoint_every=config.checkpoint_every, loss=loss, huber_delta=huber_delta, **known)  # type: ignore[arg-type]

    def answer(self, problem: Problem, workspace: Workspace) -> FlowSolution:
        """See `Solver.answer`: dual weights at every time and ridge that are asked for.

        Raises:
            ConfigError: for t = inf, or without times.
            DataError: for targets that are none of the loss.
        """
        times = self._checked(problem)
        make_loss(self.loss, delta=self.huber_delta).targets(problem.own_targets)  # refused before any pass
        began, kernel = time.monotonic(), problem.kernel
        held_bytes = held_memory(self.config(), *problem.shape, problem.answers, workspace.room)
        key = self._key(problem)
        with exclusive(workspace, f"flow/{key}") as held:
            tiles = tile_operator(kernel.matrix, held.executor, products=self.products, memory_bytes=held_bytes)
            with tiles as operator:
                measured = kernel.measure(operator, held.executor, self.sample_rows)
                largest, smallest = _ends(operator, problem)
                states = [
                    self._states(problem, held, operator, key, times, ridge, largest, smallest)
                    for ridge in problem.ridges
                ]
        weights = np.stack([[state.weights for state in row] for row in states], axis=1)  # (T, R, n, c)
        errors = np.array([[state.error for state in row] for row in states]).T
        passes = sum(row[-1].passes for row in states)
        facts = {
            "solver": self.kind,
            "loss": self.loss,
            "steps": passes,
            "vectors": 2 * problem.shape[1],
            "reason": Reason.CONVERGED.name,
            "key": key,
            "true_residual": 0.0,
            "seconds": time.monotonic() - began,
            **spectrum_facts(problem, largest, smallest),
            **error_facts(measured),
        }
        sample = RowSample(measured.indices, measured.stored, measured.exact, measured.systematic)
        return FlowSolution(problem, self, workspace, sample, facts, weights, errors)

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> FlowSolution:
        """See `Solver.restore`."""
        if saved.facts["loss"] != self.loss:
            raise IdentityError(f"this was solved for loss={saved.facts['loss']}, and not for {self.loss}: solve again")
        weights, errors = saved.arrays["weights"], saved.arrays["errors"]
        return FlowSolution(problem, self, workspace, saved.sample, saved.facts, weights, errors, history=saved.history)

    def _checked(self, problem: Problem) -> tuple[float, ...]:
        loss = make_loss(self.loss, delta=self.huber_delta)
        if problem.dynamics.name != "gradient_flow":
            raise ConfigError(
                f"loss={self.loss} is integrated as gradient flow: dynamics={problem.dynamics.name} is for squared loss"
            )
        if problem.times is None:
            raise ConfigError(f"loss={self.loss} is integrated up to given times: give times, such as [10,100,1000]")
        if math.isinf(problem.times[-1]):
            why = loss.no_end or "is integrated up to finite times: solver=krylov or eigh has t = inf of squared loss"
            raise ConfigError(f"t = inf: loss={self.loss} {why}. Give finite times")
        return problem.times

    def _key(self, problem: Problem) -> str:
        settings = [
            self.loss,
            self.huber_delta,
            self.tolerance,
            problem.dynamics.learning_rate,
            list(problem.times or ()),
        ]
        return digest({"solve": problem.solve_key(self.products), "flow": settings, "ridges": list(problem.ridges)})

    def _states(
        self,
        problem: Problem,
        workspace: Workspace,
        operator: TileOperator,
        key: str,
        times: tuple[float, ...],
        ridge: float,
        largest: float,
        smallest: float,
    ) -> list[FlowState]:
        """At every time, with one ridge; taken up where an earlier process stopped."""
        del smallest
        loss = make_loss(self.loss, delta=self.huber_delta)
        # Not the means of equal points: each has a loss of its own.
        targets = loss.targets(problem.own_targets)
        unit = 1.0 if loss.classes else float(problem.scales.max())
        root = math.sqrt(max(problem.kernel.largest_test_diagonal, np.finfo(np.float64).tiny))
        rho = loss.curvature * largest * _ROOM + ridge
        flow = LossFlow(operator.matmul, loss, targets, ridge, rho, self.tolerance * unit / root)
        ends = [problem.filter.scaled_time(t) for t in times]
        own = digest({"key": key, "ridge": ridge})
        checkpoint = StoreCheckpoint(workspace.store, f"flow/{own}", own)
        done, state = _restored(checkpoint) or ([], flow.start())
        if state.steps:
            workspace.tell(f"{problem.name}: going on at step {state.steps}, pass {state.passes}", force=True)
        kept_at = state.steps

        def told(now: FlowState) -> None:
            nonlocal kept_at
            t = times[-1] * now.time / ends[-1] if ends[-1] else 0.0
            workspace.tell(
                f"{problem.name}: {now.passes} passes, t = {t:.4g} of {times[-1]:g}, error about {now.error * root:.1e}, "
                f"about {flow.passes_left(now, ends[-1])} passes more"
            )
            if now.steps - kept_at >= self.checkpoint_every:
                kept_at = now.steps
                checkpoint.append(0, 1, _arrays(done, now))

        for end in ends[len(done) :]:
            state = flow.advance(state, end, ends[-1], told)
            done = [*done, state]
            checkpoint.append(0, 1, _arrays(done, state))
        workspace.tell(
            f"{problem.name}, ridge {ridge:.3g}: {state.steps} steps, {state.passes} passes, error about {state.error * root:.1e}",
            force=True,
        )
        return done


@dataclass(frozen=True)
class FlowSolution(Solution):
    """Dual weights at the times and ridges that were solved for.

    Args:
        weights: (T, R, n, c).
        errors: (T, R) estimates of their error in the norm of the kernel's function space.
    """

    solver: Flow
    weights: np.ndarray
    errors: np.ndarray

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solution.times`."""
        assert self.problem.times is not None  # `Flow` refuses to solve without
        return self.problem.times

    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """See `Solution.at`."""
        problem = self.problem.at(times, ridges)
        own = self.problem
        if unknown := [t for t in problem.times or () if t not in self.times]:
            raise ConfigError(f"times={unknown} were not integrated to, but {list(self.times)}: solve with them")
        if unknown := [r for r in problem.ridges if r not in own.ridges]:
            raise ConfigError(
                f"ridges={unknown} (absolute) were not solved for, but {list(own.ridges)}: solve with them"
            )
        picked = np.ix_(
            [self.times.index(t) for t in problem.times or ()], [own.ridges.index(r) for r in problem.ridges]
        )
        return replace(self, problem=problem, weights=self.weights[picked], errors=self.errors[picked])

    def evaluate(
        self,
        test: TestKernel,
        times: Numbers | None = None,
        ridges: Numbers | None = None,
        *,
        covariance: str = "none",
        batch: int | None = None,
        workspace: Workspace | None = None,
    ) -> KernelPredictions:
        """See `Solution.evaluate`; without covariances."""
        if covariance != "none":
            raise ConfigError(_MEANS_ONLY.format("variances"))
        return super().evaluate(test, times, ridges, batch=batch, workspace=workspace)

    def spectrum(self) -> np.ndarray:
        """See `Solution.spectrum`."""
        raise ConfigError("integrating a loss finds no spectrum: ntkpipe spectrum does, or solver=krylov and eigh")

    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """See `Solution.dual_weights`."""
        t, r, n, c = self.weights.shape
        return self.weights.transpose(2, 0, 1, 3).reshape(n, t * r * c), (t, r, c)

    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """See `Solution.budget`: all estimates."""
        t, r, n, c = self.weights.shape
        sample, problem = self.sample, self.problem
        scale = norm_safety(len(sample.indices), n) * math.sqrt(n / max(len(sample.indices), 1))
        product, storage = (np.zeros((t, r, c)) for _ in range(2))
        for j, ridge in enumerate(problem.ridges):
            for i, at in enumerate(self.times):
                u = self.weights[i, j]
                size = np.linalg.norm(u, axis=0)
                # A convex loss flattens what squared loss of the same curvature would do.
                gain = time_gain(problem.filter, at, ridge, 0.0, self.largest)
                rounded = scale * np.linalg.norm((sample.stored - sample.exact) @ u, axis=0)
                storage[i, j] = scaled(gain, rounded * independent_share(n) + sample.systematic * size)
                product[i, j] = _ROUNDING * EPS * math.sqrt(self.facts["steps"]) * math.sqrt(self.largest) * size
        local = np.repeat(self.errors[..., None], c, axis=2)
        test = error_of_test_rows(self.weights, self.largest, tests, None if tests is None else tests.rows)
        return ErrorBudget(local, product, storage, test, np.full((t, r), ESTIMATE, dtype="<U12"))

    def disturbance(self) -> Disturbance:
        """Refused; see `Solution.disturbance`."""
        raise ConfigError(_MEANS_ONLY.format("estimates of what rounding does"))

    def sensitivity(self) -> None:
        """See `Solution.sensitivity`: bounds alone tell of errors."""
        return

    def left_out(self) -> None:
        """See `Solution.left_out`."""
        return

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """Refused; see `Solution.leave_one_out`."""
        raise ConfigError(_MEANS_ONLY.format("leave-one-out errors"))

    @contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """Refused; see `Solution.filters`."""
        raise ConfigError(_MEANS_ONLY.format("variances"))
        yield  # a generator, as everywhere

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Solution.arrays`."""
        return {**super().arrays(), "weights": self.weights, "errors": self.errors}


def _ends(operator: TileOperator, problem: Problem) -> tuple[float, float]:
    """Largest eigenvalue, and the smallest Ritz value: a block of a random vector and the targets, a few steps."""
    n = problem.shape[0]
    block = np.concatenate([np.random.default_rng(0).standard_normal((n, 1)), problem.targets], axis=1)
    found = block_lanczos(operator, block, max_steps=min(_LARGEST_STEPS, max(2, n // block.shape[1])))
    values = np.linalg.eigvalsh(found.tridiagonal.dense())
    return float(values[-1]), float(max(values[0], 0.0))


def _arrays(done: Sequence[FlowState], now: FlowState) -> dict[str, np.ndarray]:
    states = [*done, now]
    numbers = [[s.time, s.error, s.accurate, s.share, s.steps, s.passes] for s in states]
    found = {"numbers": np.array(numbers, dtype=np.float64), "x": np.stack([s.x for s in states])}
    return found if now.slope is None else {**found, "slope": now.slope}


def _restored(checkpoint: StoreCheckpoint) -> tuple[list[FlowState], FlowState] | None:
    """The times that were reached, and where it stopped."""
    records = checkpoint.restore()
    if not records:
        return None
    kept = records[0]
    states = [
        FlowState(float(t), x, None, float(e), float(a), float(s), int(steps), int(passes))
        for (t, e, a, s, steps, passes), x in zip(kept["numbers"], kept["x"], strict=True)
    ]
    return states[:-1], replace(states[-1], slope=kept.get("slope"))
