"""How many test images go together, what a batch takes, and where finished batches are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.solvers.problem import Problem
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

PREFIX = "uncertainty"
# Changes whenever stored batches would not be what they are now.
_VERSION = 1


class BatchStore:
    """Finished batches of one kernel, each an object with a checksum; a resumed or a later run finds them again.

    Args:
        inputs: of the run.
        gram: whose kernel.
        problem: that is solved.
        times: in steps.
    """

    def __init__(self, inputs: Inputs, gram: KernelSource, problem: Problem, times: Sequence[float]) -> None:
        solver, predict = inputs.config.solver, inputs.config.predict
        self._store: ObjectStore = inputs.store
        # All that the values depend on; targets are not of it.
        self._key = digest(
            {
                "version": _VERSION,
                "gram": gram.identity.key,
                "kernel": problem.name,
                "sizes": [inputs.n_train, inputs.n_test, inputs.images.labels_key],
                "filter": [type(problem.filter).__name__, dataclasses.asdict(problem.filter)],
                "times": [repr(float(t)) for t in times],
                "ridges": [repr(float(r)) for r in problem.ridges],
                "covariance": predict.covariance,
                "solver": [solver.kind, solver.products, repr(solver.tolerance), repr(solver.residual)],
                "preconditioner": [solver.preconditioner, solver.rank] if solver.kind == "cg" else None,
                "sample": solver.sample_rows,
            }
        )

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
