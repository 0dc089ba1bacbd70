"""Finished batches of variances, in a store: a resumed or a later run finds them again."""

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
# Changes whenever stored batches would not be what they are now.
_VERSION = 1


def batches_key(solution: Solution, kernel: TrainKernel, test: TestKernel, *, full: bool) -> str:
    """Names all that the values depend on; of targets they do not.

    Args:
        solution: whose solver, times and ridges.
        kernel: the part of its kernel.
        test: likewise.
        full: covariances between test points.
    """
    solver, problem = solution.solver.config(), solution.problem
    return digest(
        {
            "version": _VERSION,
            "gram": kernel.identity,
            "kernel": problem.name,
            "sizes": [kernel.n, test.shape[0], problem.targets_key],
            "filter": [type(problem.filter).__name__, dataclasses.asdict(problem.filter)],
            "times": [repr(float(t)) for t in solution.times],
            "ridges": [repr(float(r)) for r in problem.ridges],
            "covariance": "full" if full else "diagonal",
            "solver": [solver.kind, solver.products, repr(solver.tolerance), repr(solver.residual)],
            "preconditioner": solution.solver.preconditioned_by,
            "sample": solver.sample_rows,
        }
    )


class BatchStore:
    """Finished batches of one kernel, each an object with a checksum.

    Args:
        store: where.
        key: see `batches_key`.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key

    def columns(self, chosen: int, *, fixed: bool) -> int:
        """The size of batches: that of a run which began before, where it is not fixed; memory changes, batches must not."""
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
        """What was kept under `name`; None if it is not there, or damaged."""
        found = self._checkpoint(name).restore()
        return found[0] if found else None

    def keep(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays under `name`."""
        self._checkpoint(name).append(0, 1, arrays)

    def drop(self, name: str) -> None:
        """Delete what is kept under `name`."""
        self._checkpoint(name).clear()

    def _checkpoint(self, name: str) -> StoreCheckpoint:
        return StoreCheckpoint(self._store, f"{PREFIX}/{self._key}/{name}", f"{self._key}/{name}")
