"""The solution that every solver returns. If a solver does not support a method, its error names solvers that do."""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import ntkpipe
from ntkpipe.dynamics.bounds import ErrorBudget
from ntkpipe.dynamics.estimates import Disturbance
from ntkpipe.dynamics.krylov import means_from_weights
from ntkpipe.dynamics.sampling import RowSample, TestErrors
from ntkpipe.dynamics.times import Numbers, default_times
from ntkpipe.errors import ConfigError
from ntkpipe.events.lines import Progress
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.predictions.points import TestPoints
from ntkpipe.predictions.schema import Predictions
from ntkpipe.solvers.correcting import Inverse
from ntkpipe.solvers.new_points import predict_new
from ntkpipe.solvers.prediction import KernelPredictions, evaluate, joined
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.saved_arrays import write_arrays
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TestKernel
from ntkpipe.sources.new_points import is_points
from ntkpipe.uncertainty.filters import Filters, Part
from ntkpipe.uncertainty.noise import noise_of
from ntkpipe.uncertainty.selection import held_out_count
from ntkpipe.units import counted

if TYPE_CHECKING:
    from ntkpipe.solvers.solver import Solver

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Saved:
    """The saved part of a solution. The rest is in the workspace's store.

    Args:
        facts: see `Solution`.
        arrays: the arrays of `Solution.arrays`, with or without those of `Solution.state`.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def sample(self) -> RowSample:
        """See `Solution.sample`."""
        systematic, rounding = self.facts.get("systematic", 0.0), self.facts.get("rounding", 0.0)
        return RowSample(self.arrays["indices"], self.arrays["stored"], self.arrays["exact"], systematic, rounding)

    @property
    def history(self) -> tuple[tuple[int, int, float], ...]:
        """See `Solution.history`."""
        return tuple((int(a), int(b), float(c)) for a, b, c in self.arrays["history"])


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out errors at t = inf: every training point is predicted from all others.

    Args:
        residuals: (R, s, c), target minus prediction; NaN if it is undefined.
        rows: (s,) indices of the points, which are all points or a sample.
        exact: whether the residuals cover all points.
    """

    residuals: np.ndarray
    rows: np.ndarray
    exact: bool


@dataclass(frozen=True)
class Sensitivity:
    """Further columns that test tiles are multiplied with, for error estimates.

    Args:
        columns: (n, q).
        values: computes from the product (p, q) the sensitivities (T, R, p) and the movements of the means (T, R, p, c), or 0.
    """

    columns: np.ndarray
    values: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | float]]


@dataclass(frozen=True, repr=False)
class Solution(ABC):
    """The solution of a problem.

    Args:
        problem: the problem.
        solver: the solver with its settings.
        workspace: the environment of the solve. Methods that make passes over tiles use it, unless they get another one.
        sample: sampled rows, stored and recomputed, times the basis; without a basis, the rows themselves.
        facts: facts about the solve, JSON-ready: steps, reason, residual, extreme eigenvalues, errors of the tiles, seconds.
        history: (block steps, vectors, bound) at every check of the stopping rule.
    """

    problem: Problem
    solver: Solver
    workspace: Workspace
    sample: RowSample
    facts: dict[str, Any]
    history: tuple[tuple[int, int, float], ...] = field(default=(), kw_only=True)

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self.problem.name

    @property
    def largest(self) -> float:
        """Largest eigenvalue of the kernel, without ridge."""
        return self.facts["largest"]

    @property
    def smallest(self) -> float:
        """Estimate of the smallest eigenvalue that is not null, without ridge; 0 if it is unknown."""
        return self.facts["smallest"]

    @property
    def noise(self) -> float:
        """Norm of the errors of the stored tiles."""
        return self.facts.get("noise", 0.0)

    @property
    def ceiling(self) -> float:
        """An upper bound on the smallest eigenvalue, from pairs of points; inf if the solve computed none."""
        return float(self.facts.get("ceiling", math.inf))

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """The default times of predictions: the times of the solve, or a grid that covers training and ends with inf."""

    @abstractmethod
    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """The same solution at other times and ridges.

        Args:
            times: times in steps; None keeps the present ones.
            ridges: ridges in the scale of the problem; None keeps the present ones.

        Raises:
            ConfigError: if the solver does not support a time or ridge; the text names solvers that do.
        """

    @abstractmethod
    def spectrum(self) -> np.ndarray:
        """Eigenvalues (m,) of the kernel, or of its projection on a Krylov space (Ritz values), ascending, without ridge.

        Raises:
            ConfigError: if the solver computes none.
        """

    @abstractmethod
    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """Weights of the training points (n, T R c), with columns in C order of (T, R, c), and the shape (T, R, c)."""

    @abstractmethod
    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """Bounds on the errors of predictions, by origin.

        Args:
            tests: errors of the test-train kernel; None leaves them out.
        """

    @abstractmethod
    def disturbance(self) -> Disturbance:
        """The errors in the equation of the weights, for error estimates."""

    @abstractmethod
    def sensitivity(self) -> Sensitivity | None:
        """The sensitivity of predictions to these errors; None if estimates were not requested, or would have cost too much."""

    @abstractmethod
    def left_out(self) -> np.ndarray | None:
        """Number (T, R) of null directions of the kernel that predictions leave out; None if the solver does not know it."""

    @abstractmethod
    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """Leave-one-out errors at t = inf of all training points, or of a sample if all would cost too much."""

    @abstractmethod
    def filters(self, part: Part, ridges: tuple[float, ...]) -> AbstractContextManager[Filters]:
        """Context manager: the solver's filters, which are applied to columns of a part of the kernel to compute variances.

        Args:
            part: the part of the kernel.
            ridges: the absolute ridges, one of `ridge_groups`.

        Raises:
            ConfigError: if the solver does not support variances.
        """

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """A function that solves with the stored kernel for other right-hand sides at t = inf. Refinement uses it.

        Args:
            operator: the kernel, with equal points merged.
            workspace: the environment.

        Raises:
            ConfigError: if the solver does not support t = inf.
        """
        del operator, workspace
        raise ConfigError(f"{self.solver.kind} does not support t = inf, which alone can be refined: leave refine out")

    def ridge_groups(self) -> list[tuple[float, ...]]:
        """Groups of absolute ridges that `filters` can serve together: one group, or one for each ridge if each needs a factor."""
        return [self.problem.ridges]

    def factors(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Columns (n, q) to multiply with a test-train kernel, and a function from the product (p, q) to means (T, R, p, c)."""
        weights, shape = self.dual_weights()
        return weights, lambda product: means_from_weights(product, shape)

    def predict(
        self,
        test: Any,
        times: Numbers | None = None,
        ridges: Numbers | None = None,
        *,
        covariance: str = "none",
        noise: float | str | None = None,
        held_out: float = 0.1,
        batch: int | None = None,
        workspace: Workspace | None = None,
        progress: Progress = None,
        diagonal: Any = None,
    ) -> Predictions:
        """Predict test points: means, bounds on their errors, and variances, as a run exports them.

        Args:
            test: the kernel between p test points and the training points, a result of `Gram.test`; or p new points, an array or frame
                in the format of the training points. New points are prepared like the training points, and their kernel is computed
                in memory. For a kernel that was given, pass its rows (p, n) for the new points.
            times: one or several (T) times in steps; None is the property `times`.
            ridges: one or several (R) ridges in the scale of the problem; None takes those of the solution.
            covariance: `none`, `diagonal` (variances) or `full`.
            noise: also compute the noise variance of the targets: a number in the units of the data, `likelihood` or `held_out`; see
                `uncertainty.noise`. It needs variances.
            held_out: for `noise="held_out"`, a share of the training points, or a number of them.
            batch: number of test points whose variances are computed together; None chooses it from the memory.
            workspace: environment of the computation; None is that of the solve.
            progress: see `Solver.solve`.
            diagonal: (p,) `k(x, x)` of new points, only for a kernel that was given. Variances need it. Without it, bounds are estimates.

        Warns:
            UserWarning: if predictions are doubtful, for example because directions are left out.

        Raises:
            ConfigError: if the solution does not support a time or ridge.
            NumericalError: if a prediction is not finite.
        """
        if is_points(test):
            settings = {"covariance": covariance, "noise": noise, "held_out": held_out, "batch": batch}
            settings |= {"workspace": workspace, "progress": progress}
            return predict_new(self, test, times, ridges, diagonal, **settings)
        with (workspace or self.workspace).telling("predict", progress) as place:
            part = self.evaluate(test, times, ridges, covariance=covariance, batch=batch, workspace=place)
            if noise is not None:
                part = self.with_noise(part, str(noise), test.points, held_out=held_out, workspace=place)
        for text in part.warnings:
            warnings.warn(text, stacklevel=2)
        return joined([part], test.points, self.attributes(part))

    def with_noise(
        self,
        part: KernelPredictions,
        noise: str,
        points: TestPoints | None,
        *,
        held_out: float,
        workspace: Workspace | None = None,
    ) -> KernelPredictions:
        """Add noise variances to predictions. Arguments are those of `predict`.

        Raises:
            ConfigError: if targets are classes, or `part` has no variances.
        """
        if part.variance is None:
            raise ConfigError("noise is added to variances: set covariance=diagonal")
        if points is not None and (points.classes or points.label is not None):
            raise ConfigError("noise needs real targets, but these targets are classes: leave it out")
        scale = None if points is None else points.scale
        count = held_out_count(held_out, self.problem.kernel.n)
        one, where = self.at(part.times, part.ridges), workspace or self.workspace
        found = noise_of(noise, one, part.times, part.variance, count=count, scale=scale, workspace=where)
        return replace(part, noise=found)

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
        """Predict like `predict`, with points in the order of the test kernel, bounds by origin, and warnings as part of the result."""
        one = self.at(self.times if times is None else times, ridges)
        return evaluate(one, test, covariance=covariance, batch=batch, workspace=workspace or self.workspace)

    def attributes(self, part: KernelPredictions) -> dict[str, Any]:
        """Attributes of exported predictions: sizes, dynamics, and facts about the solve."""
        dynamics = self.problem.dynamics
        return {
            "ntkpipe": ntkpipe.__version__,
            "n_train": self.problem.kernel.n,
            "learning_rate": dynamics.learning_rate,
            "dynamics": dynamics.name,
            **({"loss": self.facts["loss"]} if self.facts.get("loss", "squared") != "squared" else {}),
            "solver": {self.name: self.facts},
            "absolute_ridges": {self.name: list(part.absolute_ridges)},
            "warnings": list(part.warnings),
            "target_mean": self.problem.own_targets.mean(axis=0).tolist(),
        }

    def __repr__(self) -> str:
        problem, (n, c) = self.problem, self.problem.shape
        ridges = ", ".join(f"{ridge:g}" for ridge in problem.asked_ridges)
        times = "all times" if problem.times is None else f"times {', '.join(f'{time:g}' for time in problem.times)}"
        size = f"{counted(n, 'training point')}, {counted(c, 'output')}"
        return f"{type(self).__name__}({self.name} of {size}; {times}; ridges {ridges} ({problem.ridge_scale}))"

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that `Solver.restore` needs in addition to the workspace's store."""
        sample = self.sample
        return {
            "indices": sample.indices,
            "stored": sample.stored,
            "exact": sample.stored if sample.exact is None else sample.exact,
            "history": np.array(self.history, dtype=np.float64).reshape(-1, 3),
            "spectrum": np.zeros(0),
        }

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that replace the workspace's store in `Solver.restore`."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write the solution to one `.npz` file, which `Solver.load` reads. Variances may also need the workspace's store."""
        about = {
            "solver": self.solver.kind,
            "problem": self.problem.solve_key(""),
            "facts": self.facts,
            "times": None if self.problem.times is None else [float(t) for t in self.problem.times],
            "ridges": list(self.problem.asked_ridges),
            "ridge_scale": self.problem.ridge_scale,
            "dynamics": vars(self.problem.dynamics),
        }
        packed = np.frombuffer(json.dumps(about).encode(), np.uint8)
        write_arrays(Path(path), {**self.arrays(), **self.state(), "about": packed})

    def of_copies(self, residuals: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Leave-one-out residuals (R, s, c) of `rows`, corrected for equal points.

        Without a ridge, the prediction of a point that has equal points is the mean of their targets.
        """
        problem, copies = self.problem, self.problem.kernel.copies
        if not copies.count:
            return residuals
        own, sizes = problem.own_targets, copies.sizes
        several = sizes[rows] > 1
        picked = rows[several]
        # A mean without one of its m members is off by m / (m - 1) times as much as the mean with it.
        share = sizes[picked] / (sizes[picked] - 1.0)
        for j, ridge in enumerate(problem.ridges):
            if ridge == 0:
                residuals[j][several] = (own[picked] - problem.targets[picked]) * share[:, None]
        return residuals


def grid_of_times(solutions: Sequence[Solution]) -> tuple[float, ...]:
    """A grid of times that covers the training of all these kernels and ends with inf."""
    largest = max(one.largest + max(one.problem.ridges) for one in solutions)
    smallest = min(one.smallest + min(one.problem.ridges) for one in solutions)
    return default_times(solutions[0].problem.filter, largest, smallest)
