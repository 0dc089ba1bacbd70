"""Dense eigendecomposition in memory: the reference, and variances at every time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.eigh import eigh
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.solvers.problem import (
    Problem,
    Solved,
    Tell,
    error_facts,
    in_basis,
    sampled_rows,
    solve_key,
    spectrum_facts,
)
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel


def solve_eigh(inputs: Inputs, problem: Problem, executor: Executor, tell: Tell) -> Solved:
    """All eigenvectors as the basis; kept in the store, where other runs find them."""
    began = time.monotonic()
    n = inputs.n_train
    key = solve_key(inputs, inputs.gram, problem.source, "eigh")
    array = _assembled(inputs, inputs.gram, problem.source)
    sampled, errors = sampled_rows(inputs, problem.source, DenseOperator(array), executor)

    def say(line: str) -> None:
        tell(f"{problem.name}: {line}", force=True)

    system = eigensystem(inputs, inputs.gram, problem.source, say, array)
    values, vectors = system.values, system.vectors
    del array
    for gram in inputs.parts[1:]:
        eigensystem(inputs, gram, problem.source, say)  # kept in the store: predictions need it for variances
    solution = KrylovSolution.from_eigensystem(values, vectors, problem.targets, errors.noise, problem.copies.count)
    rows = in_basis(sampled, solution.basis)
    size = max(values[-1], np.finfo(np.float64).tiny)
    residual = float(np.linalg.norm(rows.stored - vectors[sampled.indices] * values) / size)
    facts = {
        "solver": "eigh",
        "steps": 1,
        "vectors": n,
        "reason": Reason.CONVERGED.name,
        "key": key,
        "true_residual": residual,
        "seconds": time.monotonic() - began,
        **spectrum_facts(problem, solution),
        **error_facts(errors),
    }
    return Solved(problem, solution, None, rows, facts)


def eigensystem(
    inputs: Inputs, gram: KernelSource, source: Kernel, tell: Callable[[str], None], array: np.ndarray | None = None
) -> Eigensystem:
    """The eigendecomposition of a stored kernel over the training images in use, from the store or made and kept there.

    Args:
        inputs: of the run.
        gram: store of the kernel.
        source: `ntk` or `nngp`.
        tell: receives a line for people.
        array: (n, n) the kernel, if it is at hand.
    """
    n = inputs.n_train
    key = solve_key(inputs, gram, source, "eigh")
    checkpoint = StoreCheckpoint(inputs.store, f"eigh/{key}", key)
    if restored := checkpoint.restore():
        tell("eigendecomposition found in the store")
        return Eigensystem(restored[0]["values"], restored[0]["vectors"])
    tell(f"eigendecomposition of {n:,} x {n:,}")
    found = eigh(_assembled(inputs, gram, source) if array is None else array)
    checkpoint.append(0, 1, {"values": found.values, "vectors": found.vectors})
    return Eigensystem(found.values, found.vectors)


def _assembled(inputs: Inputs, gram: KernelSource, source: Kernel) -> np.ndarray:
    """(n, n) the stored kernel, equal images merged."""
    return inputs.copies.average_matrix(assemble(inputs.matrix(source, "train", gram), np.float64))
