"""Variances and covariances of test outputs over networks (or of a Gaussian process), in batches of test images."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.dynamics import variance
from ntkpipe.dynamics.sampling import TestErrors
from ntkpipe.dynamics.variance import KernelRows, Variances
from ntkpipe.dynamics.weights import DirectWeights, Weights
from ntkpipe.gram.plan import human_seconds
from ntkpipe.kernels.dominance import dominance
from ntkpipe.linalg.assemble import read_rows
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.operator import (
    RectangularOperator,
    rectangular_operator,
    rectangular_product,
    tile_operator,
)
from ntkpipe.planning.memory import batch_columns, variance_memory, variance_room
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.solvers.problem import Solved, ceiling_of
from ntkpipe.sources.reference_rows import exact_rows, sampled_units, test_errors, test_test, tile_errors
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.uncertainty.batches import BatchStore
from ntkpipe.uncertainty.filters import Filters, Part, open_filters, ridge_groups

Tell = Callable[[str], None]


@dataclass
class Spread:
    """Uncertainty of one kernel's predictions, test images in stored order.

    Args:
        variance: (T, R, p), at least 0.
        bound: (T, R, p) on their errors; inf where none is known.
        rounding: (T, R, p), the part of the bound that is rounding and storage of tiles.
        covariance: (T, R, p, p), or None.
    """

    variance: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray
    covariance: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)


def spread(
    inputs: Inputs, solved: Solved, times: tuple[float, ...], executor: Executor, tell: Tell = lambda line: None
) -> Spread:
    """Variances, and covariances where asked for, of every time and ridge.

    A network trained on images and their flips is the sum of its even and odd part, which know nothing of each other: its
    covariance is the mean of those that their kernels give (docs/mathematics.md). Without flips there is one part.

    Args:
        inputs: of the run.
        solved: one kernel.
        times: T times in steps, ascending.
        executor: of the products.
        tell: receives a line for people.
    """
    total = _of_part(inputs, inputs.parts[0], solved, times, executor, tell)
    for gram in inputs.parts[1:]:
        other = _of_part(inputs, gram, solved, times, executor, tell)
        total.variance += other.variance
        total.bound += other.bound
        total.rounding += other.rounding
        if total.covariance is not None and other.covariance is not None:
            total.covariance += other.covariance
    for array in (total.variance, total.bound, total.rounding, total.covariance):
        if array is not None and len(inputs.parts) > 1:
            array /= len(inputs.parts)
    total.warnings = _warnings(inputs, solved, times, total)
    return total


def _warnings(inputs: Inputs, solved: Solved, times: Sequence[float], found: Spread) -> list[str]:
    """Where rounding exceeds the variance."""
    lost = found.rounding > found.variance
    if not lost.any():
        return []
    share = lost.mean(axis=(1, 2))
    worst = int(np.argmax(share))
    remedy = (
        "kernel.dtype=float64 computes and stores tiles that are exact to 1e-16"
        if inputs.config.store_dtype == "float32"
        else "a ridge (predict.ridges) mends that"
    )
    return [
        f"{solved.problem.name}: rounding and the storage of tiles may exceed {share[worst]:.0%} of the variances at t = "
        f"{times[worst]:g} (see variance_bound); {remedy}."
    ]


@dataclass(frozen=True)
class _Kernels:
    """What batches of one part are made from.

    Args:
        part: the kernel that is solved with.
        cross: errors of its stored test-train tiles, of any test image.
        prior: (p,) `K_**`, or (p, p) for full covariances.
        diagonal: (p,) of the kernel that is solved with.
        nngp: the train-train NNGP, its sampled rows and the errors of its test-train tiles; of ensembles alone.
        tests: products with the test-train kernels, of full covariances alone.
        dominance: the NNGP is at most so many times the NTK.
    """

    part: Part
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

    def columns(self, kernel: Kernel, rows: slice) -> np.ndarray:
        """(n, k): the kernel between the training images and a batch of test images."""
        matrix = self.part.inputs.matrix(kernel, "test", self.part.gram)
        return self.part.inputs.copies.average(
            np.ascontiguousarray(read_rows(matrix, np.arange(rows.start, rows.stop)).T)
        )

    def own(self, rows: slice) -> np.ndarray:
        """(k,) `K_**`."""
        return (np.diagonal(self.prior) if self.prior.ndim == 2 else self.prior)[rows]


def _of_part(
    inputs: Inputs, gram: KernelSource, solved: Solved, times: tuple[float, ...], executor: Executor, tell: Tell
) -> Spread:
    """As `spread`, of the kernel in one store."""
    problem, p, full = solved.problem, inputs.n_test, inputs.config.predict.covariance == "full"
    batches = BatchStore(inputs, gram, problem, times)
    chosen = batch_columns(inputs.config, inputs.n_train, p, len(times), inputs.memory_bytes, inputs.workers)
    step = batches.columns(chosen, fixed=inputs.config.predict.covariance_batch is not None)
    slices = [slice(start, min(start + step, p)) for start in range(0, p, step)]
    groups = ridge_groups(inputs.config.solver.kind, problem.ridges)
    found: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for g in range(len(groups)):
        for rows in slices:
            if (arrays := batches.load(_name(g, rows))) is not None:
                found[g, rows.start] = arrays
    if len(found) < len(groups) * len(slices):
        with _open(inputs, gram, solved, times, executor, step) as kernels:
            for g, ridges in enumerate(groups):
                missing = [rows for rows in slices if (g, rows.start) not in found]
                if missing:
                    _fill(kernels, batches, g, ridges, slices, missing, found, tell)
    shape = (len(times), len(problem.ridges))
    values, bounds, rounding = (np.empty((*shape, p)) for _ in range(3))
    out = Spread(values, bounds, rounding, np.empty((*shape, p, p)) if full else None)
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
            # Of second order where the rest is of first; and never negative.
            np.fill_diagonal(matrix, out.variance[entry])
    return out


def _name(group: int, rows: slice) -> str:
    return f"{group:04d}-{rows.start:08d}-{rows.stop:08d}"


@contextlib.contextmanager
def _open(inputs: Inputs, gram: KernelSource, solved: Solved, times: tuple[float, ...], executor: Executor, step: int):
    """Everything that the batches share, opened once."""
    config, problem, n = inputs.config, solved.problem, inputs.n_train
    ensemble, full = problem.name == "ntk", config.predict.covariance == "full"
    need = variance_memory(config, n, len(times))
    room = variance_room(config, inputs.memory_bytes, inputs.workers)
    room = max(0, room - need.fixed - step * need.per_column)
    prior_kernel: Kernel = "nngp" if problem.name == "ntk" else problem.source
    own = gram == inputs.gram
    view = inputs if own else dataclasses.replace(inputs, gram=gram, exact={})
    exact, units = exact_rows(view, "train", executor), sampled_units(view)
    unit = float(np.finfo(config.kernel.dtype).eps)

    def errors(kernel: Kernel, rows: KernelRows) -> TestErrors:
        stored = rectangular_product(inputs.matrix(kernel, "test", gram), executor, units, "float64")
        return test_errors(view, kernel, stored, rows.systematic, executor)

    def rows(kernel: Kernel, operator: AnyOperator) -> tuple[KernelRows, float]:
        stored = operator.rows(exact.indices)
        found = tile_errors(view, kernel, stored, executor)
        return KernelRows(exact.indices, stored, exact.kernels[kernel], found.systematic), found.noise

    with contextlib.ExitStack() as stack:
        matrix = inputs.matrix(problem.source, "train", gram)
        # Most passes are over the kernel that is solved with: what it leaves is for the other.
        item = min(matrix.dtype.itemsize, 4 if config.solver.products == "float32" else 8)
        held = min(room, sum(math.prod(tile.shape) for tile in matrix.grid) * item)
        products = config.solver.products if config.solver.kind in ("krylov", "cg") else "float64"
        tiles = stack.enter_context(tile_operator(matrix, executor, products=products, memory_bytes=held))
        operator = merged(tiles, inputs.copies)
        prior = test_test(inputs, gram, prior_kernel, executor) if full else inputs.diagonal(prior_kernel, "test", gram)
        largest = float((np.diagonal(prior) if full else prior).max())
        sample, noise = rows(problem.source, operator)
        ceiling = ceiling_of(solved.facts) if own else operator.pair_bound()
        part = Part(inputs, gram, solved, times, operator, sample, largest, executor, full, noise, ceiling)
        extra: dict[str, Any] = {}
        if ensemble:
            other = inputs.matrix("nngp", "train", gram)
            others = stack.enter_context(
                tile_operator(other, executor, products="float64", memory_bytes=max(0, room - held))
            )
            nngp = merged(others, inputs.copies)
            nngp_rows, _ = rows("nngp", nngp)
            extra = {
                "nngp": nngp,
                "nngp_rows": nngp_rows,
                "nngp_cross": errors("nngp", nngp_rows),
                "nngp_trace": float(nngp.diagonal().sum()),
                "dominance": dominance(inputs.spec, float(nngp.diagonal().sum()), solved.facts["smallest"]),
            }
        if full:
            tests = rectangular_operator(
                inputs.matrix("nngp" if ensemble else problem.source, "test", gram), executor, products="float64"
            )
            extra["tests"] = stack.enter_context(tests)
        diagonal = inputs.diagonal(problem.source, "test", gram)
        yield _Kernels(part, errors(problem.source, sample), prior, diagonal, unit, **extra)


def _fill(
    kernels: _Kernels,
    batches: BatchStore,
    group: int,
    ridges: tuple[float, ...],
    slices: list[slice],
    missing: list[slice],
    found: dict[tuple[int, int], dict[str, np.ndarray]],
    tell: Tell,
) -> None:
    """Make the missing batches of a set of ridges, and keep each."""
    name, began = kernels.part.problem.name, time.monotonic()
    ensemble, full = name == "ntk", kernels.prior.ndim == 2

    def progress(done: int, of: int, what: str) -> None:
        left = (time.monotonic() - began) / done * (of - done)
        tell(f"{name}: {what} {done} of {of}, about {human_seconds(left)} left")

    with open_filters(kernels.part, ridges) as filters:
        if not (ensemble and full):
            for k, rows in enumerate(missing):
                found[group, rows.start] = arrays = _batch(kernels, filters, rows)
                batches.keep(_name(group, rows), arrays)
                progress(k + 1, len(missing), "variances, batch")
            return
        # The weights of every batch first: a block of a covariance needs those of two.
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
    """Variances of a batch; of a posterior also its columns of the full covariance."""
    if kernels.part.problem.name == "ntk":
        return _ensemble(kernels, filters, rows)[0]
    columns = kernels.columns(kernels.part.problem.source, rows)
    quadratic = filters.posterior(columns)
    made = variance.posterior_variances(kernels.own(rows), quadratic, kernels.cross, unit=kernels.unit)
    arrays = _arrays(made)
    if kernels.tests is not None:
        arrays["covariance"] = kernels.prior[:, rows] - _test_products(kernels.tests, quadratic.weights)
    return arrays


def _ensemble(kernels: _Kernels, filters: Filters, rows: slice) -> tuple[dict[str, np.ndarray], Weights]:
    assert kernels.nngp is not None
    assert kernels.nngp_rows is not None
    assert kernels.nngp_cross is not None
    made = filters.ensemble(kernels.columns("ntk", rows))
    cross = kernels.columns("nngp", rows)
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
    arrays, weights = _ensemble(kernels, filters, rows)
    t, r, k = weights.shape
    values = weights.columns().reshape(-1, t, r, k).transpose(1, 2, 0, 3)
    return {**arrays, "weights": np.ascontiguousarray(values)}


def _covariance_columns(
    kernels: _Kernels, batches: BatchStore, group: int, slices: list[slice], rows: slice
) -> dict[str, np.ndarray]:
    """`K_** + B (K b - k) - K_* b` for the columns of a batch: (T, R, p, k)."""
    assert kernels.nngp is not None
    assert kernels.tests is not None
    stored = _required(batches.load(f"{_name(group, rows)}-weights"))
    weights = DirectWeights(stored["weights"])
    t, r, k = weights.shape
    product = kernels.nngp.matmul(weights.columns()).reshape(-1, t, r, k).transpose(1, 2, 0, 3)
    pulled = product - kernels.columns("nngp", rows)
    out = kernels.prior[:, rows] - _test_products(kernels.tests, weights)
    for others in slices:
        b = _required(batches.load(f"{_name(group, others)}-weights"))["weights"]
        out[:, :, others] += np.matmul(b.transpose(0, 1, 3, 2), pulled)
    return {name: stored[name] for name in ("variance", "bound", "rounding")} | {"covariance": out}


def _test_products(tests: RectangularOperator, weights: Weights) -> np.ndarray:
    """Test-train kernel times weights, (T, R, p, k), in one pass."""
    t, r, k = weights.shape
    return tests.matmul(weights.columns()).reshape(-1, t, r, k).transpose(1, 2, 0, 3)


def _arrays(made: Variances) -> dict[str, np.ndarray]:
    return {"variance": made.value, "bound": made.bound, "rounding": made.rounding}


def _required(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    assert arrays is not None, (
        "the weights of a batch went away while covariances were made: run the same command again"
    )
    return arrays
