"""Gradient flow of losses other than the squared one, integrated in function space. Each stage takes one pass over the tiles."""

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
from ntkpipe.dynamics.losses import Huber, make_loss
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

# Block steps of Lanczos for the largest eigenvalue, and a safety factor on it, because it limits the stable step.
_LARGEST_STEPS, _ROOM = 12, 1.02
# Rounding error of one product, in units of eps.
_ROUNDING = 4.0
_MEANS_ONLY = "losses other than the squared one have no closed form for {}: only means are available"


@dataclass(frozen=True)
class Flow(Solver):
    """Gradient flow of any loss from outputs of zero. Explicit steps adapt their length to an estimate of their error.

    Args:
        loss: `cross_entropy` (classes; outputs are logits), `logistic` (one class against the rest), `huber` or `squared`.
        huber_delta: residual above which `huber` is linear, in the units of the targets.
        tolerance: largest acceptable estimate of the error of a prediction, in units of the largest target; for losses of classes,
            absolute.
        products: precision of products, `float64` or `float32`.
        checkpoint_every: number of steps between checkpoints.
        sample_rows: number of rows that are recomputed in float64 to measure rounding; None is 64, or fewer if they are slow.
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
        """See `Solver.config`. The loss is not part of it, because it is a setting of predictions."""
        shared = ("tolerance", "products", "checkpoint_every", "sample_rows", "refine")
        return SolverConfig(kind=self.kind, **{name: getattr(self, name) for name in shared})

    @classmethod
    def of(cls, config: SolverConfig, loss: str = "cross_entropy", huber_delta: float = 1.0) -> Self:
        """See `Solver.of`."""
        known = {"tolerance": config.tolerance, "products": config.products, "sample_rows": config.sample_rows}
        return cls(checkpoint_every=config.checkpoint_every, loss=loss, huber_delta=huber_delta, **known)  # type: ignore[arg-type]

    def answer(self, problem: Problem, workspace: Workspace) -> FlowSolution:
        """See `Solver.answer`. The result holds dual weights for the requested times and ridges.

        Raises:
            ConfigError: if no times are given, or one is inf, or the dynamics are not gradient flow.
            DataError: if the targets do not fit the loss.
        """
        times = self._checked(problem)
        make_loss(self.loss, delta=self.huber_delta).targets(problem.own_targets)  # raises before the first pass
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
            **({"huber_delta": self.huber_delta} if self.loss == Huber.name else {}),
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
            raise IdentityError(f"this solution is for loss={saved.facts['loss']}, not for {self.loss}: solve again")
        if (delta := saved.facts.get("huber_delta", self.huber_delta)) != self.huber_delta:
            raise IdentityError(f"this solution is for huber_delta={delta}, not for {self.huber_delta}: solve again")
        weights, errors = saved.arrays["weights"], saved.arrays["errors"]
        return FlowSolution(problem, self, workspace, saved.sample, saved.facts, weights, errors, history=saved.history)

    def _checked(self, problem: Problem) -> tuple[float, ...]:
        loss = make_loss(self.loss, delta=self.huber_delta)
        if problem.dynamics.name != "gradient_flow":
            raise ConfigError(
                f"loss={self.loss} supports only gradient flow; dynamics={problem.dynamics.name} needs squared loss"
            )
        if problem.times is None:
            raise ConfigError(f"loss={self.loss} needs training times: give times, such as [10,100,1000]")
        if math.isinf(problem.times[-1]):
            why = loss.no_end or "supports only finite times: solver=krylov or eigh supports t = inf for squared loss"
            raise ConfigError(f"t = inf: loss={self.loss} {why}. Give finite times")
        return problem.times

    def _key(self, problem: Problem) -> str:
        settings = [
            self.loss,
            [self.huber_delta, "kinks"] if self.loss == Huber.name else self.huber_delta,  # since errors include kinks
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
        """The states at every time for one ridge. It continues from the checkpoint of an earlier process."""
        del smallest
        loss = make_loss(self.loss, delta=self.huber_delta)
        # Equal points keep their own targets, because the loss of a mean is not the mean of losses.
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
            workspace.tell(f"{problem.name}: continues from step {state.steps}, pass {state.passes}", force=True)
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
    """Dual weights at the times and ridges of the solve.

    Args:
        weights: dual weights (T, R, n, c).
        errors: (T, R) estimates of their integration error in the norm of the kernel's function space.
    """

    solver: Flow
    weights: np.ndarray
    errors: np.ndarray

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solution.times`."""
        assert self.problem.times is not None  # `Flow` requires times
        return self.problem.times

    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """See `Solution.at`."""
        problem = self.problem.at(times, ridges)
        own = self.problem
        if unknown := [t for t in problem.times or () if t not in self.times]:
            raise ConfigError(f"the solution has no times={unknown}, only {list(self.times)}: solve again with them")
        if unknown := [r for r in problem.ridges if r not in own.ridges]:
            raise ConfigError(
                f"the solution has no ridges={unknown} (absolute), only {list(own.ridges)}: solve again with them"
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
        """See `Solution.evaluate`. Covariances are not supported."""
        if covariance != "none":
            raise ConfigError(_MEANS_ONLY.format("variances"))
        return super().evaluate(test, times, ridges, batch=batch, workspace=workspace)

    def spectrum(self) -> np.ndarray:
        """See `Solution.spectrum`."""
        raise ConfigError("solver=flow computes no spectrum: use ntkpipe spectrum, or solver=krylov or eigh")

    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """See `Solution.dual_weights`."""
        t, r, n, c = self.weights.shape
        return self.weights.transpose(2, 0, 1, 3).reshape(n, t * r * c), (t, r, c)

    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """See `Solution.budget`. All its terms are estimates."""
        t, r, n, c = self.weights.shape
        sample, problem = self.sample, self.problem
        scale = norm_safety(len(sample.indices), n) * math.sqrt(n / max(len(sample.indices), 1))
        product, storage = (np.zeros((t, r, c)) for _ in range(2))
        for j, ridge in enumerate(problem.ridges):
            for i, at in enumerate(self.times):
                u = self.weights[i, j]
                size = np.linalg.norm(u, axis=0)
                # The gain of squared loss with the same curvature also covers a convex loss.
                gain = time_gain(problem.filter, at, ridge, 0.0, self.largest)
                rounded = scale * np.linalg.norm((sample.stored - sample.exact) @ u, axis=0)
                storage[i, j] = scaled(gain, rounded * independent_share(n) + sample.systematic * size)
                product[i, j] = _ROUNDING * EPS * math.sqrt(self.facts["steps"]) * math.sqrt(self.largest) * size
        local = np.repeat(self.errors[..., None], c, axis=2)
        test = error_of_test_rows(self.weights, self.largest, tests, None if tests is None else tests.rows)
        return ErrorBudget(local, product, storage, test, np.full((t, r), ESTIMATE, dtype="<U12"))

    def disturbance(self) -> Disturbance:
        """Raises `ConfigError`, because this solver has no error estimates; see `Solution.disturbance`."""
        raise ConfigError(_MEANS_ONLY.format("estimates of rounding errors"))

    def sensitivity(self) -> None:
        """See `Solution.sensitivity`. It returns None, because this solver has only bounds."""
        return

    def left_out(self) -> None:
        """See `Solution.left_out`."""
        return

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """Raises `ConfigError`, because this solver has no leave-one-out errors; see `Solution.leave_one_out`."""
        raise ConfigError(_MEANS_ONLY.format("leave-one-out errors"))

    @contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """Raises `ConfigError`, because this solver has no variances; see `Solution.filters`."""
        raise ConfigError(_MEANS_ONLY.format("variances"))
        yield  # `contextmanager` needs a generator

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Solution.arrays`."""
        return {**super().arrays(), "weights": self.weights, "errors": self.errors}


def _ends(operator: TileOperator, problem: Problem) -> tuple[float, float]:
    """The largest and the smallest Ritz value of a few block steps from a random vector and the targets."""
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
    """The states at the times that were reached, and the last state; None without a checkpoint."""
    records = checkpoint.restore()
    if not records:
        return None
    kept = records[0]
    states = [
        FlowState(float(t), x, None, float(e), float(a), float(s), int(steps), int(passes))
        for (t, e, a, s, steps, passes), x in zip(kept["numbers"], kept["x"], strict=True)
    ]
    return states[:-1], replace(states[-1], slope=kept.get("slope"))
