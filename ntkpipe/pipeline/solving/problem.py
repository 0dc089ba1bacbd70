"""What a solver is given and what it returns, in the terms of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter, absolute_ridge, make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.linalg.operator import DenseOperator, TileOperator
from ntkpipe.pipeline.exact import exact_rows
from ntkpipe.pipeline.inputs import Inputs, KernelSource
from ntkpipe.pipeline.run_dir import digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel

Tell = Callable[..., None]


@dataclass(frozen=True)
class Problem:
    """One kernel's linear algebra.

    Args:
        name: as asked for: `ntk`, `nngp` or `ntkgp`; `gram` of a given kernel.
        source: the kernel whose tiles are read, `ntk`, `nngp` or `gram`.
        targets: (n, c) float64.
        filter: the training dynamics.
        times: None until the spectrum is known.
        ridges: absolute.
        test_diagonal: (p,) float64, in stored order.
    """

    name: str
    source: Kernel
    targets: np.ndarray
    filter: SpectralFilter
    times: tuple[float, ...] | None
    ridges: tuple[float, ...]
    test_diagonal: np.ndarray


@dataclass
class Solved:
    """What the prediction stage needs of a kernel.

    Args:
        problem: that was solved.
        solution: a basis with its small problem (krylov, eigh), or weights of a restarted one; None for Cholesky and cg.
        weights: (R, n, c) solutions at t = inf (Cholesky, cg); else None.
        rows: sampled rows, stored and recomputed, times the basis; where there is none the rows themselves.
        facts: JSON-ready: steps, reason, residual, extreme eigenvalues, seconds.
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
    targets = labels.y_train[: inputs.n_train]
    # A relative ridge is one of the images' own kernel, flips or not: its trace is that of the doubled set's mean image.
    diagonal = inputs.diagonal(source, "train", plain=True)
    ridges = tuple(absolute_ridge(r, diagonal, p.ridge_scale) for r in p.ridges)
    trained = inputs.n_train * inputs.config.copies
    made = make_filter(p.dynamics, trained, targets.shape[1], learning_rate=p.learning_rate, momentum=p.momentum)
    times = None if p.times is None else tuple(sorted(p.times))
    test = inputs.diagonal(source, "test")
    return Problem(name, source, targets, made, times, ridges, test)


def solve_key(inputs: Inputs, gram: KernelSource, source: Kernel, products: str) -> str:
    """Names a basis by all that determines it: not by times, ridges or filters, which all share one."""
    # The labels' key is a hash of their content.
    labels = [inputs.images.labels_key, inputs.n_train]
    return digest({"gram": gram.identity.key, "kernel": source, "labels": labels, "products": products})


def sample_basis(
    inputs: Inputs, problem: Problem, basis: np.ndarray, operator: TileOperator | DenseOperator, executor: Executor
) -> RowSample:
    """Sampled rows of the kernel, as stored and recomputed, times an orthonormal basis (m, n)."""
    rows = exact_rows(inputs, "train", executor)
    return RowSample(rows.indices, operator.rows(rows.indices) @ basis.T, rows.kernels[problem.source] @ basis.T)


def spectrum_facts(problem: Problem, solution: KrylovSolution | RestartedSolution) -> dict[str, Any]:
    """What a report says of the spectrum."""
    largest = solution.largest + min(problem.ridges)
    return {
        "largest": solution.largest,
        "smallest": solution.smallest,
        "max_learning_rate": problem.filter.max_learning_rate(largest),
    }
