"""The solver's stage: for each kernel a basis, an eigensystem or a solution, kept in the store by what determines it."""

from __future__ import annotations

import math
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.dynamics.bounds import stop_rule
from ntkpipe.dynamics.filters import SpectralFilter, absolute_ridge, make_filter
from ntkpipe.dynamics.gains import final_gain
from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.errors import IncompleteError, NumericalError
from ntkpipe.gram.plan import human_seconds
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.cholesky import cholesky
from ntkpipe.linalg.eigh import eigh
from ntkpipe.linalg.lanczos import StepRecord, block_lanczos, largest_eigenvalue
from ntkpipe.linalg.operator import DenseOperator, TileOperator, tile_operator
from ntkpipe.linalg.solution import Reason
from ntkpipe.pipeline.conjugate import driver_bytes, solve_by_cg
from ntkpipe.pipeline.exact import exact_rows, sample_size
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.pipeline.run_dir import RunDir, digest
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.store import GramStore

# Of the memory budget, what the driver and each worker take before the first tile: Python, NumPy, SciPy, Ray.
_PROCESS_BYTES = 450 << 20
# Block steps for which the driver's basis is budgeted; a longer one is still made, from what the machine has.
_BASIS_STEPS = 200

Tell = Callable[..., None]


@dataclass(frozen=True)
class Problem:
    """One kernel's linear algebra.

    Args:
        name: as asked for: `ntk`, `nngp` or `ntkgp`.
        source: the stored kernel, `ntk` or `nngp`.
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
        solution: a basis with its small problem (krylov, eigh); None for Cholesky and cg.
        weights: (R, n, c) solutions at t = inf (Cholesky, cg); else None.
        rows: sampled rows, stored and recomputed, times the basis; for Cholesky and cg the rows themselves.
        facts: JSON-ready: steps, reason, residual, extreme eigenvalues, seconds.
        history: (block steps, vectors, bound) at every check.
    """

    problem: Problem
    solution: KrylovSolution | None
    weights: np.ndarray | None
    rows: RowSample
    facts: dict[str, Any]
    history: list[tuple[int, int, float]] = field(default_factory=list)


def make_problem(inputs: Inputs, name: str) -> Problem:
    """The linear algebra of one kernel of the run."""
    p = inputs.config.predict
    source: Kernel = "nngp" if name == "nngp" else "ntk"
    labels = inputs.images.labels()
    targets = labels.y_train[: inputs.n_train]
    # A relative ridge is one of the images' own kernel, flips or not: its trace is that of the doubled set's mean image.
    diagonal = inputs.gram.read_diagonal("train", source, rows=inputs.n_train, plain=True)
    ridges = tuple(absolute_ridge(r, diagonal, p.ridge_scale) for r in p.ridges)
    trained = inputs.n_train * inputs.config.copies
    made = make_filter(p.dynamics, trained, targets.shape[1], learning_rate=p.learning_rate, momentum=p.momentum)
    times = None if p.times is None else tuple(sorted(p.times))
    test = inputs.gram.read_diagonal("test", source, rows=inputs.n_test)
    return Problem(name, source, targets, made, times, ridges, test)


def solve(inputs: Inputs, name: str, executor: Executor, tell: Tell) -> Solved:
    """Solve one kernel, or take up a solve where it stopped.

    Raises:
        IncompleteError: if krylov or cg runs out of steps; what it has is kept.
        NumericalError: for an indefinite matrix (Cholesky, cg).
    """
    problem = make_problem(inputs, name)
    kind = inputs.config.solver.kind
    if kind in ("krylov", "cg"):
        # Two runs that add to one basis would each undo the other's steps.
        key = solve_key(inputs, inputs.gram, problem.source, inputs.config.solver.products)
        with inputs.store.lease(f"{kind}/{key}", holder=f"ntkpipe solve of {inputs.config.run_dir}"):
            return (_krylov if kind == "krylov" else _cg)(inputs, problem, key, executor, tell)
    return (_dense if kind == "eigh" else _cholesky)(inputs, problem, executor, tell)


def restore(inputs: Inputs, name: str, run: RunDir) -> Solved:
    """What an earlier process solved: the basis from the store, the rest from the run's folder; no pass is made.

    Raises:
        IncompleteError: if some of it is gone or damaged; `ntkpipe solve` makes what is missing.
    """
    problem = make_problem(inputs, name)
    facts = run.require("solve")["kernels"][name]
    arrays = load_saved(name, run)
    rows = RowSample(arrays["indices"], arrays["stored"], arrays["exact"])
    history = [(int(a), int(b), float(c)) for a, b, c in arrays["history"]]
    if facts["solver"] in ("cholesky", "cg"):
        return Solved(problem, None, arrays["weights"], rows, facts, history)
    checkpoint = StoreCheckpoint(inputs.store, f"{facts['solver']}/{facts['key']}", facts["key"])
    if facts["solver"] == "eigh":
        records = checkpoint.restore()
        if not records:
            raise IncompleteError(f"the eigenvectors of {name} are gone: ntkpipe solve run_dir={run.path}")
        solution = KrylovSolution.from_eigensystem(records[0]["values"], records[0]["vectors"], problem.targets)
    else:
        stub = _Finished(inputs.n_train, f"the basis of {name} is incomplete: ntkpipe solve run_dir={run.path}")
        result = block_lanczos(stub, problem.targets, max_steps=facts["steps"], checkpoint=checkpoint)
        if len(result.basis) != rows.stored.shape[1]:
            # Another run has taken more steps on the shared basis, which the rows sampled here have not seen.
            raise IncompleteError(
                f"the basis of {name} has grown since it was solved: ntkpipe predict run_dir={run.path}"
            )
        solution = KrylovSolution.from_lanczos(result)
    return Solved(problem, solution, None, rows, facts, history)


def load_saved(name: str, run: RunDir) -> dict[str, np.ndarray]:
    """The small arrays that `save` has kept: enough for a report, without the basis.

    Raises:
        IncompleteError: if they are gone or damaged.
    """
    saved = run.path / "solve" / f"{name}.npz"
    try:
        # Opened here, because np.load leaves its own file open when it fails.
        with saved.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if missing := {"indices", "stored", "exact", "history", "spectrum"} - set(arrays):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IncompleteError(f"{saved} cannot be read ({error}): ntkpipe predict run_dir={run.path}") from error
    return arrays


def save(solved: Solved, run: RunDir) -> None:
    """Keep in the run's folder what `restore` needs besides the basis."""
    target = run.path / "solve" / f"{solved.problem.name}.npz"
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


def solve_key(inputs: Inputs, gram: GramStore, source: Kernel, products: str) -> str:
    """Names a basis by all that determines it: not by times, ridges or filters, which all share one."""
    # The labels' key is a hash of their content.
    labels = [inputs.images.labels_key, inputs.n_train]
    return digest({"gram": gram.identity.key, "kernel": source, "labels": labels, "products": products})


def tile_memory(config: RunConfig, n: int, c: int, budget: int, workers: int) -> int:
    """Bytes for tiles held between passes: the budget less processes, and the driver's basis or vectors."""
    basis = 8 * n * c * min(config.solver.max_steps, _BASIS_STEPS)
    own = driver_bytes(config.solver, n, c) if config.solver.kind == "cg" else basis
    return max(0, budget - (workers + 1) * _PROCESS_BYTES - own)


def _krylov(inputs: Inputs, problem: Problem, key: str, executor: Executor, tell: Tell) -> Solved:
    config = inputs.config.solver
    products = config.products
    rule = stop_rule(
        problem.filter,
        problem.times,
        problem.ridges,
        largest_test_diagonal=float(problem.test_diagonal.max()),
        tolerance=config.tolerance,
    )
    checkpoint = StoreCheckpoint(inputs.store, f"krylov/{key}", key)
    matrix = inputs.gram.matrix(problem.source, "train", rows=inputs.n_train)
    began = time.monotonic()
    clock = {"products": 0.0, "orthogonalise": 0.0}

    def on_step(record: StepRecord) -> None:
        clock["products"] += record.product_seconds
        clock["orthogonalise"] += record.orthogonalise_seconds
        bound = rule.history[-1][2] if rule.history else math.nan
        tell(
            f"{problem.name}: {record.step} passes, {record.vectors} vectors, "
            + (f"error bound {bound:.1e}, wanted {config.tolerance:.0e}, " if rule.history else "")
            + f"{record.product_seconds:.2g} s a pass",
            kernel=problem.name,
            steps=record.step,
            bound=None if math.isnan(bound) else bound,
        )

    with tile_operator(
        matrix,
        executor,
        products=products,
        memory_bytes=tile_memory(
            inputs.config, inputs.n_train, problem.targets.shape[1], inputs.memory_bytes, inputs.workers
        ),
    ) as operator:
        result = block_lanczos(
            operator,
            problem.targets,
            max_steps=config.max_steps,
            stop=rule,
            checkpoint=checkpoint,
            checkpoint_every=config.checkpoint_every,
            on_step=on_step,
        )
        solution = KrylovSolution.from_lanczos(result)
        tell(f"{problem.name}: {result.steps} passes, measuring rounding on {sample_size(inputs)} rows", force=True)
        rows = _sample(inputs, problem, solution.basis, operator, executor)
        residual = _true_residual(problem, solution, operator)
    seconds = time.monotonic() - began
    facts = {
        "solver": "krylov",
        "steps": result.steps,
        "vectors": len(solution.values),
        "reason": result.reason.name,
        "key": key,
        "products": products,
        "true_residual": residual,
        "bound": rule.history[-1][2] if rule.history else 0.0,
        "seconds": seconds,
        **{f"seconds_{k}": v for k, v in clock.items()},
        **_spectrum_facts(problem, solution),
    }
    if result.reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"krylov has made {result.steps} passes for {problem.name} and its error bound is {facts['bound']:.1e}, above "
            f"solver.tolerance={config.tolerance:g}. The basis is kept: run with a larger solver.max_steps or tolerance, in a "
            "run_dir of its own, or add a ridge."
        )
    tell(
        f"{problem.name}: done, {result.steps} passes in {human_seconds(seconds)}, true residual {residual:.1e}",
        force=True,
    )
    return Solved(problem, solution, None, rows, facts, list(rule.history))


def _cg(inputs: Inputs, problem: Problem, key: str, executor: Executor, tell: Tell) -> Solved:
    config, n, c = inputs.config.solver, inputs.n_train, problem.targets.shape[1]
    began = time.monotonic()

    def say(line: str, **facts: Any) -> None:
        tell(f"{problem.name}: {line}", kernel=problem.name, **facts)

    with tile_operator(
        inputs.gram.matrix(problem.source, "train", rows=n),
        executor,
        products=config.products,
        memory_bytes=tile_memory(inputs.config, n, c, inputs.memory_bytes, inputs.workers),
    ) as operator:
        answer = solve_by_cg(config, operator, problem.targets, problem.ridges, inputs.store, key, say)
        # Image kernels have one eigenvalue far above the others: a few passes with one vector.
        largest = largest_eigenvalue(operator, tolerance=1e-4)
        sampled = exact_rows(inputs, "train", executor)
        rows = RowSample(sampled.indices, operator.rows(sampled.indices), sampled.kernels[problem.source])
    seconds = time.monotonic() - began
    facts = {
        "solver": "cg",
        "key": key,
        "products": config.products,
        "seconds": seconds,
        "largest": largest,
        "max_learning_rate": problem.filter.max_learning_rate(largest + min(problem.ridges)),
        **answer.facts,
    }
    say(
        f"done, {facts['steps']} passes and {facts['sketch_passes']} for the preconditioner in {human_seconds(seconds)}, "
        f"true residual {facts['true_residual']:.1e}",
        force=True,
    )
    # What a residual lets a prediction be wrong by, as in the bound, for the convergence figure.
    ridge = min(problem.ridges)
    gain = final_gain(ridge, facts["smallest"]).value * math.sqrt(float(problem.test_diagonal.max()))
    size = float(np.linalg.norm(problem.targets, axis=0).max(initial=0.0))
    history = [(step, vectors, gain * size * residual) for step, vectors, residual in answer.history]
    return Solved(problem, None, answer.weights, rows, facts, history if math.isfinite(gain) else [])


def _true_residual(problem: Problem, solution: KrylovSolution, operator: TileOperator) -> float:
    """Largest `|b - u' - A u| / |b|` over the outputs, from one more pass, at the last time and the smallest ridge."""
    at = math.inf if problem.times is None else problem.times[-1]
    ridge = min(problem.ridges)
    values, cutoff = solution.shifted(ridge)
    phi = problem.filter.weights(values, at, cutoff=cutoff)[:, None] * solution.targets
    learnt = 1.0 - problem.filter.decay(values, at, cutoff=cutoff)
    asked = solution.basis.T @ solution.rotate(learnt[:, None] * solution.targets)
    weights = solution.basis.T @ solution.rotate(phi)
    residual = asked - operator.matmul(weights, products="float64") - ridge * weights
    norms = np.linalg.norm(problem.targets, axis=0)
    return float((np.linalg.norm(residual, axis=0) / np.where(norms > 0, norms, 1.0)).max())


def _sample(
    inputs: Inputs, problem: Problem, basis: np.ndarray, operator: TileOperator | DenseOperator, executor: Executor
) -> RowSample:
    rows = exact_rows(inputs, "train", executor)
    return RowSample(rows.indices, operator.rows(rows.indices) @ basis.T, rows.kernels[problem.source] @ basis.T)


def _spectrum_facts(problem: Problem, solution: KrylovSolution) -> dict[str, Any]:
    largest = solution.largest + min(problem.ridges)
    return {
        "largest": solution.largest,
        "smallest": solution.smallest,
        "max_learning_rate": problem.filter.max_learning_rate(largest),
    }


def _dense(inputs: Inputs, problem: Problem, executor: Executor, tell: Tell) -> Solved:
    began = time.monotonic()
    n = inputs.n_train
    key = solve_key(inputs, inputs.gram, problem.source, "eigh")
    array = assemble(inputs.gram.matrix(problem.source, "train", rows=n), np.float64)
    sampled = exact_rows(inputs, "train", executor)
    indices, stored = sampled.indices, DenseOperator(array).rows(sampled.indices)

    def say(line: str) -> None:
        tell(f"{problem.name}: {line}", force=True)

    system = eigensystem(inputs, inputs.gram, problem.source, say, array)
    values, vectors = system.values, system.vectors
    del array
    for gram in inputs.parts[1:]:
        eigensystem(inputs, gram, problem.source, say)  # kept in the store: predictions need it for variances
    solution = KrylovSolution.from_eigensystem(values, vectors, problem.targets)
    rows = RowSample(indices, stored @ solution.basis.T, sampled.kernels[problem.source] @ solution.basis.T)
    residual = float(np.linalg.norm(stored @ vectors - vectors[indices] * values) / max(values[-1], 1e-300))
    facts = {
        "solver": "eigh",
        "steps": 1,
        "vectors": n,
        "reason": Reason.CONVERGED.name,
        "key": key,
        "true_residual": residual,
        "seconds": time.monotonic() - began,
        **_spectrum_facts(problem, solution),
    }
    return Solved(problem, solution, None, rows, facts)


def eigensystem(
    inputs: Inputs, gram: GramStore, source: Kernel, tell: Callable[[str], None], array: np.ndarray | None = None
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
    found = eigh(assemble(gram.matrix(source, "train", rows=n), np.float64) if array is None else array)
    checkpoint.append(0, 1, {"values": found.values, "vectors": found.vectors})
    return Eigensystem(found.values, found.vectors)


def _cholesky(inputs: Inputs, problem: Problem, executor: Executor, tell: Tell) -> Solved:
    began = time.monotonic()
    n = inputs.n_train
    matrix = inputs.gram.matrix(problem.source, "train", rows=n)
    array = assemble(matrix, np.float64)
    operator = DenseOperator(array)
    weights, residual, smallest = [], 0.0, math.inf
    for ridge in problem.ridges:
        tell(f"{problem.name}: Cholesky of {n:,} x {n:,}, ridge {ridge:.3g}", force=True)
        factor = cholesky(array, ridge=ridge)
        found = factor.solve(problem.targets, operator)
        if not found.reason.ok:
            raise NumericalError(f"{problem.name}, ridge {ridge:.3g}: residual {found.residual:.1e}; {found.reason}")
        weights.append(found.value)
        residual = max(residual, found.residual)
        smallest = min(smallest, factor.smallest_eigenvalue() - ridge)
    largest = largest_eigenvalue(operator)
    sampled = exact_rows(inputs, "train", executor)
    rows = RowSample(sampled.indices, operator.rows(sampled.indices), sampled.kernels[problem.source])
    facts = {
        "solver": "cholesky",
        "steps": 1,
        "vectors": n,
        "reason": Reason.CONVERGED.name,
        "true_residual": residual,
        "seconds": time.monotonic() - began,
        "largest": largest,
        "smallest": max(smallest, 0.0),
        "max_learning_rate": problem.filter.max_learning_rate(largest + min(problem.ridges)),
    }
    return Solved(problem, None, np.stack(weights), rows, facts)
