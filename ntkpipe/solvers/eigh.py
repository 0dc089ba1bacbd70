"""Dense eigendecomposition in memory, the reference for all solvers. It supports variances at every time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.leave_one_out import residuals_from_eigensystem
from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.eigh import Eigensystem, eigh
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason
from ntkpipe.solvers.correcting import Inverse
from ntkpipe.solvers.facts import error_facts, spectrum_facts
from ntkpipe.solvers.probing import probes, wanted
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.solution import LeaveOneOut, Saved
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.spectral import SpectralSolution
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.uncertainty.filters import Filters, Part, SpaceFilters


@dataclass(frozen=True)
class Eigh(Solver):
    """Solver with all eigenvalues and eigenvectors in the memory of one process, for every time and ridge.

    Args:
        products: precision of products with test kernels, `float64` or `float32`.
        sample_rows: number of rows that are recomputed in float64 to measure rounding; None is 64, or fewer if they are
            slow.
    """

    kind: ClassVar[str] = "eigh"

    products: str = "float64"
    sample_rows: int | None = None

    def answer(self, problem: Problem, workspace: Workspace) -> EigenSolution:
        """See `Solver.answer`. The eigenvectors are stored, and other solves reuse them."""
        began, kernel = time.monotonic(), problem.kernel
        array = assembled(kernel)
        measured = kernel.measure(DenseOperator(array), workspace.executor, self.sample_rows)

        def say(line: str) -> None:
            workspace.tell(f"{problem.name}: {line}", force=True)

        system = eigensystem(problem, kernel, workspace, say, array)
        values, vectors = system.values, system.vectors
        del array
        for part in kernel.parts()[1:]:
            eigensystem(problem, part, workspace, say)  # kept in the store: predictions need it for variances
        space = KrylovSolution.from_eigensystem(values, vectors, problem.targets, measured.noise, kernel.copies.count)
        sample = measured.in_basis(space.basis)
        size = max(values[-1], np.finfo(np.float64).tiny)
        residual = float(np.linalg.norm(sample.stored - vectors[sample.indices] * values) / size)
        facts = {
            "solver": "eigh",
            "steps": 1,
            "vectors": kernel.n,
            "reason": Reason.CONVERGED.name,
            "key": problem.solve_key("eigh"),
            "true_residual": residual,
            "seconds": time.monotonic() - began,
            **spectrum_facts(problem, space.largest, space.smallest),
            **error_facts(measured),
        }
        return EigenSolution(problem, self, workspace, sample, facts, space)

    def restore(self, problem: Problem, saved: Saved, workspace: Workspace) -> EigenSolution:
        """See `Solver.restore`."""
        arrays = saved.arrays
        if "vectors" not in arrays:
            records = StoreCheckpoint(workspace.store, f"eigh/{saved.facts['key']}", saved.facts["key"]).restore()
            if not records:
                raise IncompleteError(f"the eigenvectors of {problem.name} are gone: solve again")
            arrays = records[0]
        noise, copies = saved.facts.get("noise", 0.0), problem.kernel.copies.count
        space = KrylovSolution.from_eigensystem(arrays["values"], arrays["vectors"], problem.targets, noise, copies)
        return EigenSolution(problem, self, workspace, saved.sample, saved.facts, space, history=saved.history)


@dataclass(frozen=True, repr=False)
class EigenSolution(SpectralSolution):
    """The solution of `Eigh`, with the whole spectrum."""

    solver: Eigh
    space: KrylovSolution

    def probe_space(self) -> KrylovSolution | None:
        """See `SpectralSolution.probe_space`; the whole basis contains all vectors."""
        space, problem = self.space, self.problem
        if not wanted(problem):
            return None
        return replace(space, targets=space.basis @ probes(problem))

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`; exact for all points."""
        del workspace
        problem, rows = self.problem, np.arange(self.problem.kernel.n)
        system = Eigensystem(self.space.values, self.space.basis.T)
        out = residuals_from_eigensystem(system, problem.own_targets, problem.ridges, problem.kernel.copies.count)
        return LeaveOneOut(self.of_copies(out, rows), rows, exact=True)

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """See `Solution.inverse`; uses the eigenvectors."""
        del operator, workspace

        def solve(columns: np.ndarray, ridge: float, tolerance: float = 0.0) -> np.ndarray:
            del tolerance
            values, cutoff = self.space.shifted(ridge)
            kept = values > cutoff
            over = np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)
            return self.space.basis.T @ (over[:, None] * (self.space.basis @ columns))

        return solve

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`; all batches share one space."""
        if part.own:
            values, vectors = self.space.values, self.space.basis.T
        else:
            system = eigensystem(self.problem, part.kernel, part.workspace, lambda line: None)
            values, vectors = system.values, system.vectors
        copies = part.kernel.copies.count

        def space(columns: np.ndarray, quadratic: bool) -> KrylovSolution:
            del quadratic
            return KrylovSolution.from_eigensystem(values, vectors, columns, part.noise, copies)

        yield SpaceFilters(space, self.problem.filter, part.times, ridges, part.rows)

    def state(self) -> dict[str, np.ndarray]:
        """See `Solution.state`."""
        return {"values": self.space.values, "vectors": self.space.basis.T}


def eigensystem(
    problem: Problem,
    kernel: TrainKernel,
    workspace: Workspace,
    tell: Callable[[str], None],
    array: np.ndarray | None = None,
) -> Eigensystem:
    """The eigendecomposition of a kernel, which is read from the store, or computed and stored.

    Args:
        problem: the problem.
        kernel: the kernel of the problem, or another part of it.
        workspace: environment of the computation.
        tell: receives a line for the user.
        array: the kernel (n, n), if it is already in memory.
    """
    key = problem.solve_key("eigh", kernel)
    checkpoint = StoreCheckpoint(workspace.store, f"eigh/{key}", key)
    if restored := checkpoint.restore():
        tell("eigendecomposition found in the store")
        return Eigensystem(restored[0]["values"], restored[0]["vectors"])
    tell(f"eigendecomposition of {kernel.n:,} x {kernel.n:,}")
    found = eigh(assembled(kernel) if array is None else array)
    checkpoint.append(0, 1, {"values": found.values, "vectors": found.vectors})
    return found


def assembled(kernel: TrainKernel) -> np.ndarray:
    """The stored kernel (n, n) in float64, averaged over equal points."""
    return kernel.copies.average_matrix(assemble(kernel.matrix, np.float64))
