"""What a solver is given and what it returns, in the terms of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter, absolute_ridge, make_filter
from ntkpipe.dynamics.krylov import KrylovSolution, combined_weights
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.linalg.copies import Copies
from ntkpipe.linalg.operator import Operator
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.sources.reference_rows import TileErrors, exact_rows, tile_errors
from ntkpipe.storage.checksum import digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel

Tell = Callable[..., None]


@dataclass(frozen=True)
class Problem:
    """One kernel's linear algebra.

    Args:
        name: as asked for: `ntk`, `nngp` or `ntkgp`; `gram` of a given kernel.
        source: the kernel whose tiles are read, `ntk`, `nngp` or `gram`.
        targets: (n, c) float64; of equal images the mean of theirs, which changes no prediction (`linalg.copies`).
        filter: the training dynamics.
        times: None until the spectrum is known.
        ridges: absolute.
        test_diagonal: (p,) float64, in stored order.
        copies: which of the training images are equal.
    """

    name: str
    source: Kernel
    targets: np.ndarray
    filter: SpectralFilter
    times: tuple[float, ...] | None
    ridges: tuple[float, ...]
    test_diagonal: np.ndarray
    copies: Copies

    @property
    def scales(self) -> np.ndarray:
        """(c,) the largest target of each output, 1 where all are zero: `solver.tolerance` is relative to it."""
        largest = np.abs(self.targets).max(axis=0, initial=0.0)
        return np.where(largest > 0, largest, 1.0)


@dataclass
class Solved:
    """What the prediction stage needs of a kernel.

    Args:
        problem: that was solved.
        solution: a basis with its small problem (krylov, eigh), or weights of a restarted one; None for Cholesky and cg.
        weights: (R, n, c) solutions at t = inf (Cholesky, cg); else None.
        rows: sampled rows, stored and recomputed, times the basis; where there is none the rows themselves.
        facts: JSON-ready: steps, reason, residual, extreme eigenvalues, errors of the tiles, seconds.
        history: (block steps, vectors, bound) at every check.
    """

    problem: Problem
    solution: KrylovSolution | RestartedSolution | None
    weights: np.ndarray | None
    rows: RowSample
    facts: dict[str, Any]
    history: list[tuple[int, int, float]] = field(default_factory=list)


def make_problem(inputs: Inputs, name: str) -> Problem:
    """The linear algebra of one kernel of the run."""
    p = inputs.config.predict
    source: Kernel = "ntk" if name == "ntkgp" else cast("Kernel", name)
    labels = inputs.images.labels()
    copies = inputs.copies
    targets = copies.average(labels.y_train[: inputs.n_train])
    # A relative ridge is one of the images' own kernel, flips or not: its trace is that of the doubled set's mean image.
    diagonal = inputs.diagonal(source, "train", plain=True)
    ridges = tuple(absolute_ridge(r, diagonal, p.ridge_scale) for r in p.ridges)
    trained = inputs.n_train * inputs.config.copies
    made = make_filter(p.dynamics, trained, targets.shape[1], learning_rate=p.learning_rate, momentum=p.momentum)
    times = None if p.times is None else tuple(sorted(p.times))
    test = inputs.diagonal(source, "test")
    return Problem(name, source, targets, made, times, ridges, test, copies)


def solve_key(inputs: Inputs, gram: KernelSource, source: Kernel, products: str) -> str:
    """Names a basis by all that determines it: not by times, ridges or filters, which all share one."""
    # The labels' key is a hash of their content.
    labels = [inputs.images.labels_key, inputs.n_train]
    merged = {"equal": inputs.copies.count} if inputs.copies.count else {}
    return digest({"gram": gram.identity.key, "kernel": source, "labels": labels, "products": products, **merged})


def sampled_rows(
    inputs: Inputs, source: Kernel, operator: Operator, executor: Executor
) -> tuple[RowSample, TileErrors]:
    """Sampled rows of the kernel, (k, n) as stored and recomputed, and what they say of all tiles."""
    exact = exact_rows(inputs, "train", executor)
    stored = operator.rows(exact.indices)
    errors = tile_errors(inputs, source, stored, executor)
    return RowSample(exact.indices, stored, exact.kernels[source], errors.systematic), errors


def in_basis(rows: RowSample, basis: np.ndarray) -> RowSample:
    """Sampled rows times an orthonormal basis (m, n)."""
    assert rows.exact is not None
    return RowSample(rows.indices, rows.stored @ basis.T, rows.exact @ basis.T, rows.systematic)


def dual_weights(solved: Solved, times: Sequence[float]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Weights of the training images, (n, T R c) in C order of (T, R, c), and that shape."""
    problem, solution = solved.problem, solved.solution
    if solution is None:
        assert solved.weights is not None
        r, n, c = solved.weights.shape
        return solved.weights.transpose(1, 0, 2).reshape(n, r * c), (1, r, c)
    coordinates = solution.coordinates(problem.filter, times, problem.ridges)
    shape = (len(times), len(problem.ridges), coordinates.shape[-1])
    if isinstance(solution, KrylovSolution):
        return combined_weights(solution.basis, coordinates), shape
    return coordinates.transpose(2, 0, 1, 3).reshape(coordinates.shape[2], -1), shape


def with_own_targets(
    inputs: Inputs, problem: Problem, weights: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Every image's own target (n, c), and weights (n, c) for those instead of the means of equal images.

    What was averaged away lies in the null space of the kernel, where `A^-1` is `1 / ridge`; without ridge it has no solution,
    and the weights are those of the means.
    """
    own = inputs.images.labels().y_train[: inputs.n_train]
    return own, weights if ridge == 0 else weights + (own - problem.targets) / ridge


def error_facts(errors: TileErrors, ceiling: float = math.inf) -> dict[str, float]:
    """What is kept of the errors of the tiles, and of the upper bound on the smallest eigenvalue."""
    found = {"noise": errors.noise, "systematic": errors.systematic}
    return found if math.isinf(ceiling) else {**found, "ceiling": ceiling}


def ceiling_of(facts: dict[str, Any]) -> float:
    """The upper bound on the smallest eigenvalue that a solve has kept; inf of one that looked at no pairs."""
    return float(facts.get("ceiling", math.inf))


def spectrum_facts(problem: Problem, solution: KrylovSolution | RestartedSolution) -> dict[str, Any]:
    """What a report says of the spectrum."""
    largest = solution.largest + min(problem.ridges)
    return {
        "largest": solution.largest,
        "smallest": solution.smallest,
        "max_learning_rate": problem.filter.max_learning_rate(largest),
    }
