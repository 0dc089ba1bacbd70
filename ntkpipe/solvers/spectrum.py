"""The spectrum of a train-train kernel and its targets, from its tiles. Large matrices are not factored."""

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
"""Largest number of rows for which all eigenvalues are computed, in seconds and with 8 n^2 bytes."""

# Number of rows with sampled leave-one-out errors, if the kernel is too large for all eigenvalues.
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
    """Leading eigenvalues, density of states, label energy, and the learning curves that theory predicts from them.

    Up to `dense` rows all eigenvalues are computed. For more rows the kernel is multiplied 20 to 40 times with `probes`
    random vectors, the targets and 16 unit vectors. This gives the leading eigenvalues, and estimates of sums over the
    others with standard errors.

    Args:
        kernel: the train-train kernel: a result of `Gram.train`, or an (n, n) array.
        targets: training targets, (n, c) or (n,), centred for one-hot labels.
        probes: number of random vectors, at least 2.
        top: number of leading eigenvalues.
        ridges: added to the diagonal.
        ridge_scale: `relative` to the mean of the kernel's diagonal, or `absolute`.
        dynamics: the training dynamics, for the times at which modes are learned; None is gradient flow with rate 1.
        seed: seed of the random vectors.
        dense: largest number of rows for which all eigenvalues are computed.
        workspace: environment of the computation; None is this process.
        progress: see `Solver.solve`.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if the targets do not fit the kernel.

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
    """The result of `spectrum` for a checked problem."""
    if probes < 2:
        raise ConfigError(f"probes={probes} must be at least 2, to give a standard error: use probes=32")
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
        # Targets of equal points may differ: predictions need only their mean, but errors count what differs from it.
        if n <= dense:
            workspace.tell(f"{problem.name}: all {n:,} eigenvalues", force=True)
            return dense_measure(operator.rows(np.arange(n)), problem.own_targets)
        about = {"probes": probes, "rows": _ROWS, "seed": seed, **({"targets": "own"} if kernel.copies.count else {})}
        key = digest({"spectrum": problem.solve_key("float64"), **about})
        # A checkpoint in memory would be a second copy of the basis, and would be lost with the process.
        kept = not workspace.store.url.startswith("memory:")
        checkpoint = StoreCheckpoint(workspace.store, f"spectrum/{key}", key) if kept else None
        made = lanczos_measure(
            operator,
            problem.own_targets,
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
