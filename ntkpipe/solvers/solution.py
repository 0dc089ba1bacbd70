"""What every solver returns: one concept, whose methods answer or say what does."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
import zlib
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
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.events.lines import Progress
from ntkpipe.predictions.points import TestPoints
from ntkpipe.predictions.schema import Predictions
from ntkpipe.solvers.new_points import predict_new
from ntkpipe.solvers.prediction import KernelPredictions, evaluate, joined
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TestKernel
from ntkpipe.sources.new_points import is_points
from ntkpipe.storage.replace import replacing
from ntkpipe.uncertainty.filters import Filters, Part
from ntkpipe.uncertainty.noise import noise_of
from ntkpipe.uncertainty.selection import held_out_count
from ntkpipe.units import counted

if TYPE_CHECKING:
    from ntkpipe.solvers.solver import Solver

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Saved:
    """What is kept of a solve besides what lies in the store.

    Args:
        facts: see `Solution`.
        arrays: as `Solution.arrays`, with or without `Solution.state`.
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
    """Errors of predictions of training points from all the others, at t = inf.

    Args:
        residuals: (R, s, c), target less prediction; NaN where none is defined.
        rows: (s,) of which points: all, or a sample.
        exact: whether of all.
    """

    residuals: np.ndarray
    rows: np.ndarray
    exact: bool


@dataclass(frozen=True)
class Sensitivity:
    """What test tiles are multiplied with besides the weights, for the estimate of errors.

    Args:
        columns: (n, q).
        values: makes sensitivities (T, R, p) and movements of the means (T, R, p, c), or 0, of the product (p, q).
    """

    columns: np.ndarray
    values: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | float]]


@dataclass(frozen=True, repr=False)
class Solution(ABC):
    """A solved problem.

    Args:
        problem: that was solved.
        solver: with its settings.
        workspace: where it was solved; methods that make passes over tiles run there, unless told otherwise.
        sample: sampled rows, stored and recomputed, times the basis; where there is none the rows themselves.
        facts: JSON-ready: steps, reason, residual, extreme eigenvalues, errors of the tiles, seconds.
        history: (block steps, vectors, bound) at every check.
    """

    problem: Problem
    solver: Solver
    workspace: Workspace
    sample: RowSample
    facts: dict[str, Any]
    history: tuple[tuple[int, int, float], ...] = field(default=(), kw_only=True)

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.problem.name

    @property
    def largest(self) -> float:
        """Largest eigenvalue of the kernel, without ridge."""
        return self.facts["largest"]

    @property
    def smallest(self) -> float:
        """Estimate of the smallest eigenvalue that is not null, without ridge; 0 if none is known."""
        return self.facts["smallest"]

    @property
    def noise(self) -> float:
        """Norm of the errors of the stored tiles."""
        return self.facts.get("noise", 0.0)

    @property
    def ceiling(self) -> float:
        """An upper bound on the smallest eigenvalue; inf of a solve that looked at no pairs of points."""
        return float(self.facts.get("ceiling", math.inf))

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """At which it answers if it is not told: those asked for, or a grid over all of training and inf."""

    @abstractmethod
    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """The same solution for other times and ridges; None leaves them as they were asked for.

        Args:
            times: in steps.
            ridges: in the scale of the problem.

        Raises:
            ConfigError: if it has no answer there; the text says what has.
        """

    @abstractmethod
    def spectrum(self) -> np.ndarray:
        """(m,) eigenvalues of the kernel, or of what it is in a Krylov space (Ritz values), ascending, without ridge.

        Raises:
            ConfigError: if the solver finds none.
        """

    @abstractmethod
    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """Weights of the training points, (n, T R c) in C order of (T, R, c), and that shape."""

    @abstractmethod
    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """Bounds on the errors of predictions, by origin.

        Args:
            tests: errors of the test-train kernel; None leaves them out.
        """

    @abstractmethod
    def disturbance(self) -> Disturbance:
        """What disturbs the equation of the weights, for the estimate of errors."""

    @abstractmethod
    def sensitivity(self) -> Sensitivity | None:
        """How predictions answer to it; None where no estimate was asked for, or it would have taken too much."""

    @abstractmethod
    def left_out(self) -> np.ndarray | None:
        """(T, R) null directions of the kernel that predictions leave out; None if the solver does not tell."""

    @abstractmethod
    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """Errors of predictions of training points from all the others at t = inf: of all, or of a sample where that is dear."""

    @abstractmethod
    def filters(self, part: Part, ridges: tuple[float, ...]) -> AbstractContextManager[Filters]:
        """What variances are made with: the solver's filters, applied to columns of a part of the kernel."""

    def ridge_groups(self) -> list[tuple[float, ...]]:
        """Ridges that are served together by `filters`: all of them, or one by one where each takes a factor of its own."""
        return [self.problem.ridges]

    def factors(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Columns (n, q) that a kernel is to be multiplied with, and what makes means (T, R, p, c) of the product (p, q)."""
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
        """Means of test points, bounds on their errors, and variances: as a run exports them.

        Args:
            test: the kernel between p test points and the training points, as `Gram.test` gives it; or p new points, an array or a
                frame like that of the training points: they are prepared as these were, and their kernel is computed now, in memory.
                Of a kernel that was given, their rows of it, (p, n).
            times: T in steps, one or several; None are `times`.
            ridges: R, likewise, in the scale of the problem; None are those that were solved for.
            covariance: `none`, `diagonal` (variances) or `full`.
            noise: with variances, that of the targets besides: a number in the units of the data, `likelihood` or `held_out`; see
                `uncertainty.noise`.
            held_out: of `noise="held_out"`, a share of the training points, or a number of them.
            batch: test points whose variances are made together; None is chosen from the memory.
            workspace: where it runs; None is where it was solved.
            progress: see `Solver.solve`.
            diagonal: (p,) `k(x, x)` of new points of a kernel that was given: variances need it, and bounds are estimates without it.

        Warns:
            UserWarning: for what makes predictions doubtful, such as directions that are left out.

        Raises:
            ConfigError: if it has no answer at a time or ridge.
            NumericalError: if a prediction is no number.
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
        """Predictions with the variances of the noise; arguments as of `predict`.

        Raises:
            ConfigError: for classes, or without variances.
        """
        if part.variance is None:
            raise ConfigError("noise is added to variances: ask for covariance=diagonal")
        if points is not None and (points.classes or points.label is not None):
            raise ConfigError("noise is that of real targets, and these are classes: leave it out")
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
        """As `predict`, in the order of the test kernel's rows, with the bounds by origin; warnings are among the results."""
        one = self.at(self.times if times is None else times, ridges)
        return evaluate(one, test, covariance=covariance, batch=batch, workspace=workspace or self.workspace)

    def attributes(self, part: KernelPredictions) -> dict[str, Any]:
        """What is kept beside predictions: sizes, dynamics, and how they were solved for."""
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
        """What `Solver.restore` needs besides the workspace's store."""
        sample = self.sample
        return {
            "indices": sample.indices,
            "stored": sample.stored,
            "exact": sample.stored if sample.exact is None else sample.exact,
            "history": np.array(self.history, dtype=np.float64).reshape(-1, 3),
            "spectrum": np.zeros(0),
        }

    def state(self) -> dict[str, np.ndarray]:
        """What `Solver.restore` needs instead of the workspace's store."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write everything to one `.npz` that `Solver.load` reads; variances may need the workspace's store besides."""
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
        """Without ridge a point is predicted from those that equal it alone: their targets' mean. Residuals (R, s, c) of `rows`."""
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
    """A grid over all of training of all these kernels, and inf."""
    largest = max(one.largest + max(one.problem.ridges) for one in solutions)
    smallest = min(one.smallest + min(one.problem.ridges) for one in solutions)
    return default_times(solutions[0].problem.filter, largest, smallest)


def write_arrays(target: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as one `.npz`, whole or not at all."""
    with replacing(target) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` that a solution has written.

    Raises:
        IncompleteError: if it is gone or damaged.
    """
    try:
        # Opened here, because np.load leaves its own file open when it fails.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if missing := {"indices", "stored", "exact", "history", "spectrum"} - set(arrays):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IncompleteError(f"{path} cannot be read: {error}") from error
    return arrays
