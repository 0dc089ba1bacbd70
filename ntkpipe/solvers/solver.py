"""What every solver is: settings, and one verb."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import IdentityError, IncompleteError
from ntkpipe.events.lines import Progress
from ntkpipe.solvers.problem import Dynamics, Problem, make_problem
from ntkpipe.solvers.solution import Saved, Solution, read_arrays
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.arrays import ArrayKernel
from ntkpipe.sources.kernels import TrainKernel


@dataclass(frozen=True)
class Solver(ABC):
    """A way to do the linear algebra; its fields are its settings (see `SolverConfig`, which checks them)."""

    kind: ClassVar[str]
    spectrum_kind: ClassVar[str] = "eigenvalues"
    """What `Solution.spectrum` holds, for people."""

    def __post_init__(self) -> None:
        self.config()

    def config(self) -> SolverConfig:
        """The settings as a run's configuration has them.

        Raises:
            ConfigError: on an impossible one.
        """
        return SolverConfig(kind=self.kind, **{one.name: getattr(self, one.name) for one in fields(self)})

    @property
    def pass_products(self) -> str:
        """Precision in which the train-train kernel is multiplied while variances are made."""
        return "float64"

    @property
    def preconditioned_by(self) -> list[str | int | None] | None:
        """What variances depend on besides the tolerances: the preconditioner and its rank; None without one."""
        return None

    @property
    def stops_at(self) -> float | None:
        """The bound on errors of predictions, in units of the largest target, below which it stops; None if it stops otherwise."""
        return None

    def tightened(self, scale: float) -> Solver:
        """With a tolerance of variances of so many times less; itself where they are exact to rounding."""
        del scale
        return self

    @classmethod
    def of(cls, config: SolverConfig) -> Self:
        """With the settings of a run's configuration."""
        return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})

    def solve(
        self,
        kernel: TrainKernel | np.ndarray,
        targets: np.ndarray,
        *,
        times: Numbers | None = None,
        ridges: Numbers = (0.0,),
        ridge_scale: str = "relative",
        dynamics: Dynamics | None = None,
        error_estimate: str = "auto",
        workspace: Workspace | None = None,
        progress: Progress = None,
    ) -> Solution:
        """Solve, or take up a solve where it stopped.

        Args:
            kernel: among the n training points: as `Gram.train` gives it, or a plain (n, n) array.
            targets: (n, c) or (n,), real.
            times: training times in steps, one or several, `inf` allowed; None decides later, from the spectrum.
            ridges: added to the diagonal, one or several.
            ridge_scale: of them, `relative` to the mean of the kernel's diagonal, or `absolute`.
            dynamics: of training; None is gradient flow.
            error_estimate: of predictions, beside the bounds on their errors: `auto` (where it is cheap), `true` or `false`.
            workspace: where it runs; None is this process, which keeps nothing.
            progress: a function of one `Event`, or whether a line of progress is shown; None shows it in a terminal or a notebook,
                unless the workspace is told.

        Raises:
            ConfigError: if the solver has no answer at one of the times, or a setting is impossible.
            DataError: on targets that do not fit.
            IncompleteError: if it runs out of steps; what it has is kept in the workspace's store.
            NumericalError: for an indefinite kernel.
        """
        problem = make_problem(
            as_kernel(kernel),
            targets,
            times=times,
            ridges=ridges,
            ridge_scale=ridge_scale,
            dynamics=dynamics,
            error_estimate=error_estimate,
        )
        place = workspace or Workspace()
        with place.telling("solve", progress) as told:
            found = self.answer(problem, told)
        return replace(found, workspace=place)  # whose next pass is no part of this stage

    @abstractmethod
    def answer(self, problem: Problem, workspace: Workspace) -> Solution:
        """Solve a checked problem; see `solve`."""

    @abstractmethod
    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> Solution:
        """What an earlier process solved, from what it saved and from the workspace's store; no pass is made.

        Raises:
            IncompleteError: if some of it is gone or damaged.
        """

    def load(
        self,
        path: str | Path,
        kernel: TrainKernel | np.ndarray,
        targets: np.ndarray,
        *,
        workspace: Workspace | None = None,
    ) -> Solution:
        """A solution that `Solution.save` has written.

        Args:
            path: of the file.
            kernel: that was solved.
            targets: likewise.
            workspace: for what is asked of it next.

        Raises:
            IncompleteError: if the file cannot be read.
            IdentityError: if it is of another kernel, other targets or another solver.
        """
        arrays = read_arrays(Path(path))
        if "about" not in arrays:
            raise IncompleteError(f"{path} does not say what was solved: save the solution again")
        about = json.loads(arrays.pop("about").tobytes())
        asked = {"ridges": about["ridges"], "ridge_scale": about["ridge_scale"], "times": about["times"]}
        problem = make_problem(as_kernel(kernel), targets, dynamics=Dynamics(**about["dynamics"]), **asked)
        if about["solver"] != self.kind:
            raise IdentityError(f"{path} was solved by {about['solver']}: load it with that solver")
        if about["problem"] != problem.solve_key(""):
            raise IdentityError(f"{path} is the solution for another kernel or other targets: solve again")
        return self.restore(problem, Saved(about["facts"], arrays), workspace or Workspace())


def as_kernel(kernel: TrainKernel | np.ndarray) -> TrainKernel:
    """The kernel itself; a plain array is wrapped.

    Raises:
        DataError: if it is no square array of finite floats.
    """
    return ArrayKernel(kernel) if isinstance(kernel, np.ndarray) else kernel
