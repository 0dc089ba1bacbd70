"""How many test images go together, what a batch takes, and where finished batches are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.pipeline.factoring import product_memory
from ntkpipe.pipeline.inputs import Inputs, KernelSource
from ntkpipe.pipeline.memory import cg_bytes, without_processes
from ntkpipe.pipeline.run_dir import digest
from ntkpipe.pipeline.solving.problem import Problem
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

PREFIX = "uncertainty"
# Changes whenever stored batches would not be what they are now.
_VERSION = 1
# Block steps for which memory is set aside; kernels of 2,000 real images took 12 to 33 (`cost`), larger ones take more.
_STEPS = 100
# Columns beyond which products are no more efficient, and projected kernels become large.
_MOST = {"krylov": 64, "cg": 64, "eigh": 1024, "cholesky": 1024}
# Of a space of k columns the projected kernel has some ten k rows: with n / 100 columns it stays far below n.
_LEAST, _COLUMNS_OF_ROWS = 8, 100
# Of the memory left for tiles and batches, the part that a batch may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Footprint:
    """Memory of the driver: for every column of a batch, and besides them."""

    per_column: int
    fixed: int


def footprint(config: RunConfig, n: int, times: int) -> Footprint:
    """What variances of one kernel take besides tiles.

    Args:
        config: of the run.
        n: training images.
        times: training times.
    """
    kind, ridges = config.solver.kind, len(config.predict.ridges)
    answers = times * (1 if kind == "cholesky" else ridges)
    ensemble, full = "ntk" in config.predict.kernels, config.predict.covariance == "full"
    if kind == "krylov":
        # The basis and, of ensembles, its product with the NNGP; or the weights, where they are fewer.
        per = min(_STEPS, n) * (2 if ensemble else 1) + (2 * answers if full else 0)
        return Footprint(8 * n * (per + 4), 0)
    # Columns, weights, their residuals and products.
    per = 8 * n * (4 + (4 if kind == "cg" else 3) * answers)
    if kind == "cg":
        return Footprint(per + 8 * n * 12, cg_bytes(config.solver, n, 1))
    return Footprint(per, 8 * n * n if kind == "eigh" else 0)


def batch_columns(config: RunConfig, n: int, p: int, times: int, budget: int, workers: int) -> int:
    """Test images that go together: as set, or as many as half of the free memory holds, up to what is worthwhile."""
    if config.predict.covariance_batch is not None:
        return min(p, config.predict.covariance_batch)
    need = footprint(config, n, times)
    room = max(0, free_memory(config, budget, workers) - need.fixed)
    most = _MOST[config.solver.kind]
    if config.solver.kind == "krylov":
        most = min(most, max(_LEAST, n // _COLUMNS_OF_ROWS))
    return int(np.clip(_SHARE * room // need.per_column, 1, min(most, p)))


def free_memory(config: RunConfig, budget: int, workers: int) -> int:
    """Bytes for batches and tiles: what processes leave of the budget, and of cholesky the factors."""
    left = without_processes(budget, processes(config, workers))
    return min(left, product_memory(budget, workers)) if config.solver.kind == "cholesky" else left


def processes(config: RunConfig, workers: int) -> int:
    """Processes that run while variances are made: the driver and a pool for each matrix that is multiplied with."""
    pools = 1 + ("ntk" in config.predict.kernels) + (config.predict.covariance == "full")
    return 1 + workers * pools


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
