"""The spectrum of a train-train kernel with its targets, from its tiles: no factorisation, and no n^3 beyond small matrices."""

from __future__ import annotations

import numpy as np

from ntkpipe.dynamics.spectral_measure import SpectralMeasure, dense_measure, lanczos_measure
from ntkpipe.dynamics.spectrum import Spectrum
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import ConfigError
from ntkpipe.events.lines import Progress
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import merged
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.planning.memory import free_share
from ntkpipe.solvers.problem import Dynamics, Problem, make_problem
from ntkpipe.solvers.solver import as_kernel
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import digest

DENSE = 2000
"""Rows up to which every eigenvalue is found: 8 n^2 bytes and seconds of LAPACK."""

# Rows whose leave-one-out errors are sampled where products alone are affordable.
_ROWS = 16


def spectrum(
    kernel: TrainKernel | np.ndarray,
    targets: np.ndarray,
    *,
    probes: int = 32,
    top: int = 200,
    ridges: Numbers = (0.0,),
    ridge_scale: str = "relative",
    dynamics: Dynamics | None = None,
    seed: int = 0,
    dense: int = DENSE,
    workspace: Workspace | None = None,
    progress: Progress = None,
) -> Spectrum:
    """Leading eigenvalues, density of states, label energy, and what learning-curve theory makes of them.

    Up to `dense` rows all eigenvalues are found. Beyond, the kernel is multiplied some 20 to 40 times with `probes` random vectors,
    the targets and 16 unit vectors: leading eigenvalues are found, and sums over the others are estimated with standard errors.

    Args:
        kernel: among the n training points: as `Gram.train` gives it, or a plain (n, n) array.
        targets: (n, c) or (n,), as they are trained on (one-hot targets centred).
        probes: random vectors, at least 2.
        top: leading eigenvalues wanted.
        ridges: added to the diagonal.
        ridge_scale: of them, `relative` to the mean of the kernel's diagonal, or `absolute`.
        dynamics: of training, for the times at which modes are learnt; None is gradient flow with rate 1.
        seed: of the random vectors.
        dense: rows up to which all eigenvalues are found.
        workspace: where it runs; None is this process.
        progress: as of `Solver.solve`.

    Raises:
        ConfigError: if a number is out of range.
        DataError: on targets that do not fit.

    Examples:
        >>> made = spectrum(np.diag([3.0, 1.0]), np.array([1.0, 1.0]))
        >>> made.eigenvalues.tolist(), made.label_energy.tolist()
        ([3.0, 1.0], [0.5, 0.5])
    """
    problem = make_problem(as_kernel(kernel), targets, ridges=ridges, ridge_scale=ridge_scale, dynamics=dynamics)
    with (workspace or Workspace()).telling("spectrum", progress) as place:
        return spectrum_of(problem, place, probes=probes, top=top, seed=seed, dense=dense)


def spectrum_of(
    problem: Problem, workspace: Workspace, *, probes: int = 32, top: int = 200, seed: int = 0, dense: int = DENSE
) -> Spectrum:
    """The same of a checked problem."""
    if probes < 2:
        raise ConfigError(f"probes={probes} must be at least 2: their spread tells the error. Use probes=32")
    if top < 1:
        raise ConfigError(f"top={top} must be at least 1")
    kernel = problem.kernel
    diagonal = kernel.diagonal()
    made = _measured(problem, workspace, probes, top, seed, dense)
    entries = float(np.finfo(np.dtype(kernel.matrix.dtype)).eps) * np.sqrt(kernel.n) * float(np.abs(diagonal).max())
    sums = kernel.n * float(np.finfo(np.float64).eps) * float(made.values.max(initial=0.0))
    return Spectrum(
        name=problem.name,
        n=kernel.n,
        measure=made,
        noise=max(float(entries), sums),
        learning_unit=problem.filter.n * problem.filter.c / problem.filter.learning_rate,
        ridges=problem.asked_ridges,
        absolute_ridges=problem.ridges,
    )


def _measured(problem: Problem, workspace: Workspace, probes: int, top: int, seed: int, dense: int) -> SpectralMeasure:
    kernel, n = problem.kernel, problem.kernel.n
    held = workspace.memory_bytes if workspace.memory_bytes is not None else free_share(workspace.room.budget)
    with tile_operator(kernel.matrix, workspace.executor, memory_bytes=held // 2) as tiles:
        operator = merged(tiles, kernel.copies)
        if n <= dense:
            workspace.tell(f"{problem.name}: all {n:,} eigenvalues", force=True)
            return dense_measure(operator.rows(np.arange(n)), problem.targets)
        key = digest({"spectrum": problem.solve_key("float64"), "probes": probes, "rows": _ROWS, "seed": seed})
        # In memory it would be a second basis, and go with the process.
        kept = not workspace.store.url.startswith("memory:")
        checkpoint = StoreCheckpoint(workspace.store, f"spectrum/{key}", key) if kept else None
        made = lanczos_measure(
            operator,
            problem.targets,
            probes=probes,
            top=min(top, n // 4),
            rows=_ROWS,
            seed=seed,
            tell=lambda line: workspace.tell(f"{problem.name}: {line}"),
            checkpoint=checkpoint,
        )
        if checkpoint is not None:
            checkpoint.clear()
        return made
