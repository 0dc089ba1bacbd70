"""Variances and covariances of test outputs over networks (or of a Gaussian process), in batches of test points."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.dynamics import variance
from ntkpipe.dynamics.sampling import TestErrors
from ntkpipe.dynamics.variance import KernelRows, Variances
from ntkpipe.dynamics.weights import DirectWeights, Weights
from ntkpipe.linalg.assemble import read_rows, unit_vectors
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.operator import RectangularOperator, rectangular_operator, rectangular_product, tile_operator
from ntkpipe.planning.memory import Batches
from ntkpipe.sources.kernels import TestKernel, TrainKernel
from ntkpipe.uncertainty.batches import BatchStore, batches_key
from ntkpipe.uncertainty.filters import Filters, Part
from ntkpipe.uncertainty.predictive import PredictiveCovariance, mean_of_parts, rounding_warnings
from ntkpipe.units import human_seconds

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution
    from ntkpipe.solvers.workspace import Workspace


@dataclass(frozen=True)
class _Task:
    """The settings that all parts of the kernel share.

    Args:
        solution: of one kernel; its solver, times and ridges are used.
        full: whether covariances between test points are computed.
        batch: test points per batch; None chooses the number from the memory.
        workspace: store, executor and memory of the computation.
    """

    solution: Solution
    full: bool
    batch: int | None
    workspace: Workspace

    @property
    def ensemble(self) -> bool:
        """True for networks with all layers trained; False for a Gaussian process."""
        return self.solution.name == "ntk"

    @property
    def batches(self) -> Batches:
        """The number of test points per batch, and their memory."""
        problem, times = self.solution.problem, self.solution.times
        return Batches(
            self.solution.solver.config(), problem.kernel.n, len(times), len(problem.ridges), self.ensemble, self.full
        )

    def step(self, p: int, store: BatchStore) -> int:
        """The number of test points per batch, of p test points in total."""
        chosen = self.batches.columns(p, self.workspace.room) if self.batch is None else min(p, self.batch)
        return store.columns(chosen, fixed=self.batch is not None)

    def tell(self, line: str) -> None:
        """Print a line of progress."""
        self.workspace.tell(f"{self.solution.name}: {line}")


def predictive_covariance(
    solution: Solution, test: TestKernel, *, full: bool, batch: int | None, workspace: Workspace
) -> PredictiveCovariance:
    """Variances at every time and ridge, and covariances if `full` is set.

    A network trained on images and their flips is the sum of its even and its odd part, which are independent. Its
    covariance is the mean of the covariances of the two parts (docs/mathematics.md). Without flips there is one part.

    Args:
        solution: of one kernel, at the wanted times and ridges.
        test: the kernel between test and training points.
        full: whether covariances between test points are computed.
        batch: test points per batch; None chooses the number from the memory.
        workspace: store, executor and memory of the computation.
    """
    task = _Task(solution, full, batch, workspace)
    train, tests = solution.problem.kernel.parts(), test.parts()
    found = [_of_part(task, *both) for both in zip(train, tests, strict=True)]
    total = found[0] if len(found) == 1 else mean_of_parts(found)
    return replace(total, warnings=rounding_warnings(solution, total))


@dataclass(frozen=True)
class _Kernels:
    """The inputs of the batches of one part of the kernel.

    Args:
        task: the settings of all parts.
        part: the train-train kernel that is solved with.
        test: the same kernel between test and training points.
        cross: errors of the stored test-train tiles, for any test point.
        prior: (p,) `K_**`, or (p, p) for full covariances.
        diagonal: (p,) `k(x, x)` of the test points under the kernel that is solved with.
        unit: unit roundoff of the stored entries.
        nngp: the train-train NNGP; only for ensembles.
        nngp_rows: sampled rows of the NNGP; only for ensembles.
        nngp_cross: errors of the test-train tiles of the NNGP; only for ensembles.
        nngp_trace: trace of the NNGP; only for ensembles.
        tests: products with the test-train kernel; only for full covariances.
        dominance: a factor c such that the NNGP is at most c times the NTK.
    """

    task: _Task
    part: Part
    test: TestKernel
    cross: TestErrors
    prior: np.ndarray
    diagonal: np.ndarray
    unit: float
    nngp: AnyOperator | None = None
    nngp_rows: KernelRows | None = None
    nngp_cross: TestErrors | None = None
    nngp_trace: float = 0.0
    tests: RectangularOperator | None = None
    dominance: float = 1.0

    def columns(self, test: TestKernel, rows: slice) -> np.ndarray:
        """(n, k): a kernel between the training points and a batch of test points."""
        found = read_rows(test.matrix, np.arange(rows.start, rows.stop))
        return self.part.kernel.copies.average(np.ascontiguousarray(found.T))

    def own(self, rows: slice) -> np.ndarray:
        """(k,) `K_**`."""
        return (np.diagonal(self.prior) if self.prior.ndim == 2 else self.prior)[rows]


def _of_part(task: _Task, kernel: TrainKernel, test: TestKernel) -> PredictiveCovariance:
    """The result of `predictive_covariance` for one part of the kernel."""
    solution, p = task.solution, test.shape[0]
    batches = BatchStore(task.workspace.store, batches_key(solution, kernel, test, full=task.full))
    step = task.step(p, batches)
    slices = [slice(start, min(start + step, p)) for start in range(0, p, step)]
    groups = solution.ridge_groups()
    found: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for g in range(len(groups)):
        for rows in slices:
            if (arrays := batches.load(_name(g, rows))) is not None:
                found[g, rows.start] = arrays
    if len(found) < len(groups) * len(slices):
        with _open(task, kernel, test, step) as kernels:
            for g, ridges in enumerate(groups):
                missing = [rows for rows in slices if (g, rows.start) not in found]
                if missing:
                    _fill(kernels, batches, g, ridges, slices, missing, found)
    return _assembled(task, groups, slices, found, p)


def _assembled(
    task: _Task,
    groups: Sequence[tuple[float, ...]],
    slices: Sequence[slice],
    found: dict[tuple[int, int], dict[str, np.ndarray]],
    p: int,
) -> PredictiveCovariance:
    """Join all batches into one result."""
    shape = (len(task.solution.times), len(task.solution.problem.ridges))
    values, bounds, rounding = (np.empty((*shape, p)) for _ in range(3))
    out = PredictiveCovariance(values, bounds, rounding, np.empty((*shape, p, p)) if task.full else None)
    first = 0
    for g, ridges in enumerate(groups):
        these = slice(first, first + len(ridges))
        first += len(ridges)
        for rows in slices:
            arrays = found[g, rows.start]
            for name in ("variance", "bound", "rounding"):
                getattr(out, name)[:, these, rows] = arrays[name]
            if out.covariance is not None:
                out.covariance[:, these, :, rows] = arrays["covariance"]
    if out.covariance is not None:
        for entry in np.ndindex(shape):
            matrix = out.covariance[entry]
            matrix += matrix.T.copy()
            matrix *= 0.5
            # The variance has a second-order error and is never negative; the covariance has a first-order error.
            np.fill_diagonal(matrix, out.variance[entry])
    return out


def _name(group: int, rows: slice) -> str:
    return f"{group:04d}-{rows.start:08d}-{rows.stop:08d}"


@contextlib.contextmanager
def _open(task: _Task, kernel: TrainKernel, test: TestKernel, step: int) -> Iterator[_Kernels]:
    """Open the inputs that all batches of a part share."""
    solution, executor = task.solution, task.workspace.executor
    settings, batches = solution.solver.config(), task.batches
    room = max(0, batches.room(task.workspace.room) - batches.memory.fixed - step * batches.memory.per_column)
    own = kernel.key == solution.problem.kernel.key
    prior_test = test.companion("nngp") if task.ensemble else test
    units = unit_vectors(test.sampled(settings.sample_rows), kernel.n)
    unit = float(np.finfo(kernel.precision).eps)

    def errors(one: TestKernel, rows: KernelRows) -> TestErrors:
        stored = rectangular_product(one.matrix, executor, units, "float64")
        return one.measure(stored, rows.systematic, executor, settings.sample_rows)

    with contextlib.ExitStack() as stack:
        matrix = kernel.matrix
        # Most passes read the kernel of the solve, so it gets memory first and the other kernel gets what is left.
        item = min(matrix.dtype.itemsize, 4 if settings.products == "float32" else 8)
        held = min(room, sum(math.prod(tile.shape) for tile in matrix.grid) * item)
        products = solution.solver.pass_products
        tiles = stack.enter_context(tile_operator(matrix, executor, products=products, memory_bytes=held))
        operator = merged(tiles, kernel.copies)
        prior = prior_test.own(executor) if task.full else prior_test.diagonal()
        largest = float((np.diagonal(prior) if task.full else prior).max())
        sample = kernel.measure(operator, executor, settings.sample_rows)
        ceiling = solution.ceiling if own else operator.pair_bound()
        part = Part(
            kernel,
            own,
            solution.times,
            operator,
            sample.rows(),
            largest,
            task.full,
            sample.noise,
            ceiling,
            task.workspace,
        )
        extra: dict[str, Any] = {}
        if task.ensemble:
            other = kernel.companion("nngp")
            others = stack.enter_context(
                tile_operator(other.matrix, executor, products="float64", memory_bytes=max(0, room - held))
            )
            nngp = merged(others, kernel.copies)
            rows = other.measure(nngp, executor, settings.sample_rows).rows()
            trace = float(nngp.diagonal().sum())
            extra = {
                "nngp": nngp,
                "nngp_rows": rows,
                "nngp_cross": errors(prior_test, rows),
                "nngp_trace": trace,
                "dominance": test.dominance(trace, solution.smallest),
            }
        if task.full:
            extra["tests"] = stack.enter_context(rectangular_operator(prior_test.matrix, executor, products="float64"))
        yield _Kernels(task, part, test, errors(test, part.rows), prior, test.diagonal(), unit, **extra)


def _fill(
    kernels: _Kernels,
    batches: BatchStore,
    group: int,
    ridges: tuple[float, ...],
    slices: list[slice],
    missing: list[slice],
    found: dict[tuple[int, int], dict[str, np.ndarray]],
) -> None:
    """Compute and store the missing batches of one group of ridges."""
    task, began = kernels.task, time.monotonic()

    def progress(done: int, of: int, what: str) -> None:
        left = (time.monotonic() - began) / done * (of - done)
        task.tell(f"{what} {done} of {of}, about {human_seconds(left)} left")

    with task.solution.filters(kernels.part, ridges) as filters:
        if not (task.ensemble and task.full):
            for k, rows in enumerate(missing):
                found[group, rows.start] = arrays = _batch(kernels, filters, rows)
                batches.keep(_name(group, rows), arrays)
                progress(k + 1, len(missing), "variances, batch")
            return
        # Compute the weights of every batch first, because a block of the covariance needs the weights of two batches.
        for k, rows in enumerate(slices):
            if batches.load(f"{_name(group, rows)}-weights") is None:
                batches.keep(f"{_name(group, rows)}-weights", _ensemble_weights(kernels, filters, rows))
            progress(k + 1, len(slices), "weights, batch")
    for k, rows in enumerate(missing):
        found[group, rows.start] = arrays = _covariance_columns(kernels, batches, group, slices, rows)
        batches.keep(_name(group, rows), arrays)
        progress(k + 1, len(missing), "covariances, batch")
    for rows in slices:
        batches.drop(f"{_name(group, rows)}-weights")


def _batch(kernels: _Kernels, filters: Filters, rows: slice) -> dict[str, np.ndarray]:
    """Variances of a batch; for a posterior with `full`, also its columns of the covariance."""
    if kernels.task.ensemble:
        return _ensemble(kernels, filters, rows)[0]
    columns = kernels.columns(kernels.test, rows)
    quadratic = filters.posterior(columns)
    made = variance.posterior_variances(kernels.own(rows), quadratic, kernels.cross, unit=kernels.unit)
    arrays = _arrays(made)
    if kernels.tests is not None:
        arrays["covariance"] = kernels.prior[:, rows] - _test_products(kernels.tests, quadratic.weights)
    return arrays


def _ensemble(kernels: _Kernels, filters: Filters, rows: slice) -> tuple[dict[str, np.ndarray], Weights]:
    """Variances of a batch over an ensemble of networks, and the weights of its predictions."""
    assert kernels.nngp is not None
    assert kernels.nngp_rows is not None
    assert kernels.nngp_cross is not None
    made = filters.ensemble(kernels.columns(kernels.test, rows))
    cross = kernels.columns(kernels.test.companion("nngp"), rows)
    inner = made.weights.inner(kernels.nngp.matmul(made.weights.span()))
    variances = variance.ensemble_variances(
        kernels.own(rows),
        kernels.diagonal[rows],
        made,
        inner,
        made.weights.dot(cross),
        kernels.nngp_rows,
        kernels.cross,
        kernels.nngp_cross,
        dominance=kernels.dominance,
        unit=kernels.unit,
        trace=kernels.nngp_trace,
        cross_norm=np.linalg.norm(cross, axis=0),
    )
    return _arrays(variances), made.weights


def _ensemble_weights(kernels: _Kernels, filters: Filters, rows: slice) -> dict[str, np.ndarray]:
    """Variances of a batch, and its weights (T, R, n, k), ready to store."""
    arrays, weights = _ensemble(kernels, filters, rows)
    t, r, k = weights.shape
    values = weights.columns().reshape(-1, t, r, k).transpose(1, 2, 0, 3)
    return {**arrays, "weights": np.ascontiguousarray(values)}


def _covariance_columns(
    kernels: _Kernels, batches: BatchStore, group: int, slices: list[slice], rows: slice
) -> dict[str, np.ndarray]:
    """Columns of the covariance for a batch: `K_** + B (K b - k) - K_* b`, (T, R, p, k)."""
    assert kernels.nngp is not None
    assert kernels.tests is not None
    stored = _required(batches.load(f"{_name(group, rows)}-weights"))
    weights = DirectWeights(stored["weights"])
    t, r, k = weights.shape
    product = kernels.nngp.matmul(weights.columns()).reshape(-1, t, r, k).transpose(1, 2, 0, 3)
    pulled = product - kernels.columns(kernels.test.companion("nngp"), rows)
    out = kernels.prior[:, rows] - _test_products(kernels.tests, weights)
    for others in slices:
        b = _required(batches.load(f"{_name(group, others)}-weights"))["weights"]
        out[:, :, others] += np.matmul(b.transpose(0, 1, 3, 2), pulled)
    return {name: stored[name] for name in ("variance", "bound", "rounding")} | {"covariance": out}


def _test_products(tests: RectangularOperator, weights: Weights) -> np.ndarray:
    """The test-train kernel times the weights, (T, R, p, k), in one pass over its tiles."""
    t, r, k = weights.shape
    return tests.matmul(weights.columns()).reshape(-1, t, r, k).transpose(1, 2, 0, 3)


def _arrays(made: Variances) -> dict[str, np.ndarray]:
    return {"variance": made.value, "bound": made.bound, "rounding": made.rounding}


def _required(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    assert arrays is not None, (
        "the weights of a batch were deleted while covariances were computed: run the same command again"
    )
    return arrays
