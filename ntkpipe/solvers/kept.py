"""What is kept of a solve, and how a later process takes it up."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.run.context import Inputs
from ntkpipe.run.run_dir import RunDir
from ntkpipe.solvers.krylov import restart_checkpoint, restarted_weights
from ntkpipe.solvers.problem import Solved, ceiling_of, make_problem

# Names of facts in receipts of earlier versions.
_RENAMED = {"logdet_error": "logdet_standard_error"}


def restore(inputs: Inputs, name: str, run: RunDir) -> Solved:
    """What an earlier process solved: the basis from the store, the rest from the run's folder; no pass is made.

    Raises:
        IncompleteError: if some of it is gone or damaged; `ntkpipe solve` makes what is missing.
    """
    problem = make_problem(inputs, name)
    facts = _as_named_now(run.require("solve")["kernels"][name])
    arrays = load_saved(name, run)
    noise, systematic = facts.get("noise", 0.0), facts.get("systematic", 0.0)
    rows = RowSample(arrays["indices"], arrays["stored"], arrays["exact"], systematic)
    history = [(int(a), int(b), float(c)) for a, b, c in arrays["history"]]
    if facts["solver"] in ("cholesky", "cg"):
        return Solved(problem, None, arrays["weights"], rows, facts, history)
    checkpoint = StoreCheckpoint(inputs.store, f"{facts['solver']}/{facts['key']}", facts["key"])
    if facts["solver"] == "eigh":
        records = checkpoint.restore()
        if not records:
            raise IncompleteError(f"the eigenvectors of {name} are gone: ntkpipe solve run_dir={run.path}")
        values, vectors = records[0]["values"], records[0]["vectors"]
        solution = KrylovSolution.from_eigensystem(values, vectors, problem.targets, noise, problem.copies.count)
    elif facts.get("restarted"):
        records = restart_checkpoint(inputs, problem, facts["key"], noise).restore()
        answer = restarted_weights(inputs, problem, rows, noise, None, np.zeros((0, problem.targets.shape[1])))
        if not records or not records[0]["done"][0]:
            raise IncompleteError(f"the weights of {name} are gone: ntkpipe solve run_dir={run.path}")
        answer.load({k.removeprefix("answer_"): v for k, v in records[0].items() if k.startswith("answer_")})
        solution = replace(answer.solution, ceiling=ceiling_of(facts))
    else:
        stub = _Finished(inputs.n_train, f"the basis of {name} is incomplete: ntkpipe solve run_dir={run.path}")
        result = block_lanczos(stub, problem.targets, max_steps=facts["steps"], checkpoint=checkpoint)
        if len(result.basis) != rows.stored.shape[1]:
            # Another run has taken more steps on the shared basis, which the rows sampled here have not seen.
            raise IncompleteError(
                f"the basis of {name} has grown since it was solved: ntkpipe predict run_dir={run.path}"
            )
        solution = KrylovSolution.from_lanczos(result, noise, ceiling_of(facts))
    return Solved(problem, solution, None, rows, facts, history)


def _as_named_now(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts that an earlier version has written, by the names of this one."""
    return {_RENAMED.get(name, name): value for name, value in facts.items()}


def load_saved(name: str, run: RunDir) -> dict[str, np.ndarray]:
    """The small arrays that `save` has kept: enough for a report, without the basis.

    Raises:
        IncompleteError: if they are gone or damaged.
    """
    saved = saved_file(name, run)
    try:
        if any(str(saved) in text for text in run.damaged_files("solve")):
            raise ValueError("it is not what was kept")
        # Opened here, because np.load leaves its own file open when it fails.
        with saved.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if missing := {"indices", "stored", "exact", "history", "spectrum"} - set(arrays):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IncompleteError(f"{saved} cannot be read ({error}): ntkpipe predict run_dir={run.path}") from error
    return arrays


def saved_file(name: str, run: RunDir) -> Path:
    """Where `save` keeps a kernel's arrays."""
    return run.path / "solve" / f"{name}.npz"


def save(solved: Solved, run: RunDir) -> None:
    """Keep in the run's folder what `restore` needs besides the basis."""
    target = saved_file(solved.problem.name, run)
    target.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {
        "indices": solved.rows.indices,
        "stored": solved.rows.stored,
        "exact": solved.rows.stored if solved.rows.exact is None else solved.rows.exact,
        "history": np.array(solved.history, dtype=np.float64).reshape(-1, 3),
        "spectrum": np.zeros(0) if solved.solution is None else solved.solution.values,
    }
    if solved.weights is not None:
        arrays["weights"] = solved.weights
    save_arrays(target, arrays)


def save_arrays(target: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as one `.npz`, whole or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(partial, target)


@dataclass(frozen=True)
class _Finished:
    """Stands for an operator where a finished basis is restored: no pass is to be made."""

    n: int
    otherwise: str

    def matmul(self, x: np.ndarray) -> np.ndarray:
        raise IncompleteError(self.otherwise)
