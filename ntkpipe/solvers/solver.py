"""The base class of solvers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import IdentityError, IncompleteError
from ntkpipe.events.lines import Progress
from ntkpipe.solvers.problem import Dynamics, Problem, make_problem
from ntkpipe.solvers.refining import refine, require_refinable, restored
from ntkpipe.solvers.saved_arrays import read_arrays
from ntkpipe.solvers.solution import Saved, Solution
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.arrays import ArrayKernel
from ntkpipe.sources.kernels import TrainKernel


@dataclass(frozen=True)
class Solver(ABC):
    """The base class of solvers. The fields are settings (see `SolverConfig`, which checks them).

    Args:
        refine: number of steps of iterative refinement at t = inf, with tiles that are recomputed in float64.
    """

    kind: ClassVar[str]
    spectrum_kind: ClassVar[str] = "eigenvalues"
    """Description of `Solution.spectrum`, for the user."""

    refine: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        self.config()

    def config(self) -> SolverConfig:
        """The settings as part of a run's configuration.

        Raises:
            ConfigError: if a setting is invalid.
        """
        return SolverConfig(kind=self.kind, **{one.name: getattr(self, one.name) for one in fields(self)})

    @property
    def pass_products(self) -> str:
        """Precision of products with the train-train kernel for variances."""
        return "float64"

    @property
    def preconditioned_by(self) -> list[str | int | None] | None:
        """The preconditioner and its rank, on which variances depend; None without one."""
        return None

    @property
    def stops_at(self) -> float | None:
        """The error bound, in units of the largest target, at which the solver stops; None for another stopping rule."""
        return None

    def tightened(self, scale: float) -> Solver:
        """The solver with a smaller tolerance of variances, by this factor; the same solver if variances are exact to rounding."""
        del scale
        return self

    @classmethod
    def of(cls, config: SolverConfig) -> Self:
        """The solver with the settings of a run's configuration."""
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
        """Solve for the given targets. An interrupted solve with the same store continues.

        Args:
            kernel: the train-train kernel: a result of `Gram.train`, or an (n, n) array of float32 or float64.
            targets: (n, c) or (n,), real.
            times: one or several training times in steps, which may be `inf`; None chooses them from the spectrum.
            ridges: one or several numbers that are added to the diagonal.
            ridge_scale: `relative` to the mean of the kernel's diagonal, or `absolute`.
            dynamics: the training dynamics; None is gradient flow.
            error_estimate: whether to estimate errors of predictions beside the bounds: `auto` (if it is cheap), `true`
                or `false`.
            workspace: environment of the solve; None is this process, which stores nothing.
            progress: a function of one `Event`, or whether to show a line of progress; None shows it in a terminal or a
                notebook, unless the workspace has a listener.

        Raises:
            ConfigError: if the solver does not support one of the times, or a setting is invalid.
            DataError: if the targets do not fit the kernel.
            IncompleteError: if the solver reaches its largest number of steps; the workspace's store keeps its state.
            NumericalError: if the kernel is indefinite.
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
        if self.refine:
            require_refinable(problem)
        with place.telling("solve", progress) as told:
            found = self.answer(problem, told)
            if self.refine:
                (found,) = refine([found], told, self.refine)
        return replace(found, workspace=place)  # later passes do not belong to the stage of `told`

    @abstractmethod
    def answer(self, problem: Problem, workspace: Workspace) -> Solution:
        """Solve a checked problem; see `solve`."""

    @abstractmethod
    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> Solution:
        """The solution of an earlier process, from its saved state and the workspace's store, without any pass.

        Raises:
            IncompleteError: if a part of it is missing or damaged.
        """

    def load(
        self,
        path: str | Path,
        kernel: TrainKernel | np.ndarray,
        targets: np.ndarray,
        *,
        workspace: Workspace | None = None,
    ) -> Solution:
        """Load a solution that `Solution.save` has written.

        Args:
            path: path of the file.
            kernel: the kernel of the solve.
            targets: the targets of the solve.
            workspace: environment of later computations with the solution.

        Raises:
            IncompleteError: if the file cannot be read.
            IdentityError: if the file belongs to another kernel, other targets or another solver.
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
        return restored(self, problem, Saved(about["facts"], arrays), workspace or Workspace())


def as_kernel(kernel: TrainKernel | np.ndarray) -> TrainKernel:
    """The kernel; an array is wrapped as a kernel.

    Raises:
        DataError: if the array is not square, not float32 or float64, or not finite.
    """
    return ArrayKernel(kernel) if isinstance(kernel, np.ndarray) else kernel
