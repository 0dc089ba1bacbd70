"""Finished batches of variances in a store, which a resumed or later run reuses."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np

from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.sources.kernels import TestKernel, TrainKernel
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution

PREFIX = "uncertainty"
# Raised whenever the values of stored batches would change.
_VERSION = 1


def batches_key(solution: Solution, kernel: TrainKernel, test: TestKernel, *, full: bool) -> str:
    """Digest of everything that the stored values depend on. The targets are not part of it.

    Args:
        solution: of one kernel; gives the solver, the times and the ridges.
        kernel: the train-train kernel, or one of its parts under flips.
        test: the same kernel or part between test and training points.
        full: whether covariances between test points are stored, and not only variances.
    """
    solver, problem = solution.solver.config(), solution.problem
    return digest(
        {
            "version": _VERSION,
            "gram": kernel.identity,
            "test": test.identity,  # new points share the solution, and its store
            "kernel": problem.name,
            "sizes": [kernel.n, test.shape[0], problem.targets_key],
            "filter": [type(problem.filter).__name__, dataclasses.asdict(problem.filter)],
            "times": [repr(float(t)) for t in solution.times],
            "ridges": [repr(float(r)) for r in problem.ridges],
            "covariance": "full" if full else "diagonal",
            "solver": [solver.kind, solver.products, repr(solver.tolerance), repr(solver.residual)],
            "factor": solver.precision if solver.kind == "cholesky" else None,
            "preconditioner": solution.solver.preconditioned_by,
            "sample": solver.sample_rows,
        }
    )


class BatchStore:
    """Reads and writes the finished batches of one kernel; each batch is one object with a checksum.

    Args:
        store: the store that holds the batches.
        key: the digest of `batches_key`.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key

    def columns(self, chosen: int, *, fixed: bool) -> int:
        """The number of test points per batch.

        An earlier start of the run determines it unless `fixed` is true, because the free memory may have changed but
        the stored batches must not.

        Args:
            chosen: the number that the present memory allows, or that the user gave.
            fixed: whether the user gave it.
        """
        key = f"{PREFIX}/{self._key}/layout.json"
        try:
            there = int(json.loads(self._store.get(key))["columns"])
        except (MissingObjectError, ValueError, KeyError, TypeError):
            there = 0
        if there > 0 and (there == chosen or not fixed):
            return there
        self._store.put(key, json.dumps({"columns": chosen}).encode(), overwrite=True)
        return chosen

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays stored under `name`; None if they are missing or damaged."""
        found = self._checkpoint(name).restore()
        return found[0] if found else None

    def keep(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Store arrays under `name`."""
        self._checkpoint(name).append(0, 1, arrays)

    def drop(self, name: str) -> None:
        """Delete the arrays stored under `name`."""
        self._checkpoint(name).clear()

    def _checkpoint(self, name: str) -> StoreCheckpoint:
        return StoreCheckpoint(self._store, f"{PREFIX}/{self._key}/{name}", f"{self._key}/{name}")
