"""The likelihood of a Gaussian process, and leave-one-out predictions of its training images, from a Cholesky factor.

With `A` the kernel plus ridge and `a = A^-1 y` (Rasmussen & Williams 2006, sections 2.2 and 5.4.2):

    log p(y) = -y^T a / 2 - log det(A) / 2 - n / 2 log 2 pi          for each output
    y_i - mean_i without i = a_i / [A^-1]_ii,    its variance = 1 / [A^-1]_ii.

A float32 factor gives `x ~ A^-1 b` with a residual `r = b - A x`. The quadratic form `b^T x + r^T x` then has the error
`r^T A^-1 r >= 0`, which is of second order in `r` (the variational characterisation of `b^T A^-1 b`). So one float64 product with `A`
doubles the number of correct digits from six to twelve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.factor.plan import batch_of_inverse, share, working_bytes
from ntkpipe.linalg.factor.solve import CholeskyFactor, forward_in_place, solve
from ntkpipe.linalg.factor.task import make_tile
from ntkpipe.linalg.factor.workspace import FactorJob, Workspace, workspace
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.tasks.executor import values_of
from ntkpipe.tasks.graph import Task

# Number of random vectors of an estimate, and of columns of the sample on which an error is measured.
_PROBES = 16


@dataclass(frozen=True)
class Estimate:
    """An estimate of a number.

    Args:
        value: the number.
        standard_error: one standard deviation of `value` plus the neglected second-order term of a float32 factor. It is not a bound. It is
            0 for a float64 factor.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class LeaveOneOut:
    """Exact leave-one-out predictions of every training image, without refitting.

    Args:
        residuals: (n, c), `y_i` minus its prediction from the other images.
        variances: (n,) variances of these predictions, ridge included.
        error: relative error of `[A^-1]_ii`, measured on a sample; 0 for a float64 factor.
    """

    residuals: Float64[np.ndarray, "n c"]
    variances: Float64[np.ndarray, " n"]
    error: float


def log_determinant(factor: CholeskyFactor, operator: LinearMap) -> Estimate:
    """`log det(A + ridge I)`. The effect of float32 rounding is estimated and corrected.

    With `L L^T = M`, `log det A = log det M + tr(F) - tr(F^2) / 2 + ...`, where `F = M^-1 A - I` has the size of rounding. The trace is
    estimated with 16 random vectors (Hutchinson 1990). Their spread gives the standard error.

    Args:
        factor: factor of the matrix.
        operator: `A` without ridge, with float64 products.
    """
    value = factor.logdet()
    if factor.dtype == "float64":
        return Estimate(value, 0.0)
    probes = np.random.default_rng(0).choice([-1.0, 1.0], size=(factor.n, _PROBES))
    difference = factor.apply_inverse(operator.matmul(probes) + factor.ridge * probes) - probes
    first = np.einsum("ij,ij->j", probes, difference)
    second = float(np.einsum("ij,ij->j", difference, difference).mean()) / 2
    return Estimate(value + float(first.mean()), float(first.std(ddof=1)) / math.sqrt(_PROBES) + second)


def log_marginal_likelihood(y: np.ndarray, weights: np.ndarray, logdet: float) -> Float64[np.ndarray, " c"]:
    """The log marginal likelihood `log p(y)` of each output.

    Args:
        y: (n, c) targets.
        weights: (n, c), `A^-1 y`.
        logdet: logarithm of the determinant of `A`.
    """
    return -0.5 * np.einsum("ij,ij->j", y, weights) - 0.5 * logdet - 0.5 * len(y) * math.log(2 * math.pi)


def leave_one_out(factor: CholeskyFactor, operator: LinearMap, weights: np.ndarray) -> LeaveOneOut:
    """Exact leave-one-out residuals and variances, with `n^3 / 3` flops.

    Args:
        factor: factor of the matrix.
        operator: `A` without ridge, with float64 products; used for a float32 factor.
        weights: (n, c), `A^-1 y`.
    """
    inverse, error = inverse_diagonal(factor, operator)
    return LeaveOneOut(weights / inverse[:, None], 1.0 / inverse, error)


def inverse_diagonal(
    factor: CholeskyFactor, operator: LinearMap | None = None
) -> tuple[Float64[np.ndarray, " n"], float]:
    """The diagonal of `A^-1`, `|L^-1 e_i|^2`, with tasks for block columns of `L^-1`. It takes `n^3 / 3` flops.

    Args:
        factor: factor of the matrix.
        operator: `A` without ridge, with float64 products, for the error of a float32 factor.

    Returns:
        The diagonal (n,) and its relative error. The error is 0 for a float64 factor. For a float32 factor it is twice the largest error of
        a sample of refined entries, or infinite without an operator. Both are stored beside the factor and reused.
    """
    # Imported here, because its checksums need a library that this package must be importable without.
    from ntkpipe.linalg.checkpoint import StoreCheckpoint

    tiles = factor.job.tiles
    kept = StoreCheckpoint(tiles.store, f"{tiles.prefix}/inverse-diagonal", tiles.identity.fingerprint)
    found = kept.restore()
    values = found[0]["values"] if found else _inverse_diagonal(factor)
    error = float(found[0]["error"]) if found else math.inf
    if factor.dtype == "float64":
        error = 0.0
    elif math.isinf(error) and operator is not None:
        error = _sampled_error(factor, operator, values)
    if not found or float(found[0]["error"]) != error:
        kept.append(0, 1, {"values": values, "error": np.array(error)})
    return values, error


def _inverse_diagonal(factor: CholeskyFactor) -> Float64[np.ndarray, " n"]:
    grid = factor.job.tiles.identity.grid
    job, columns = _batch_job(factor)

    def tasks() -> Iterator[Task]:
        for j in range(grid.tile_rows):
            width = grid.tile(j, j).shape[1]
            for low in range(0, width, columns):
                yield Task((j, low), _inverse_diagonal_task, (job, j, low, min(low + columns, width)))

    out = np.empty(factor.n)
    for (j, low), part in values_of(factor.executor, tasks()):
        start = grid.tile(j, j).col_start + low
        out[start : start + len(part)] = part
    return out


def _sampled_error(factor: CholeskyFactor, operator: LinearMap, values: np.ndarray) -> float:
    picked = np.unique(np.linspace(0, factor.n - 1, _PROBES).astype(int))
    units = np.zeros((factor.n, len(picked)))
    units[picked, np.arange(len(picked))] = 1.0
    with factor.opened() as space:
        exact = _forms(space, units, lambda x: operator.matmul(x) + factor.ridge * x)
    return 2 * float(np.abs(values[picked] / exact - 1).max())


def _inverse_diagonal_task(job: FactorJob, j: int, low: int, high: int) -> np.ndarray:
    with workspace(job, make_tile) as space:
        start = space.grid.tile(j, j).col_start
        columns = np.zeros((high - low, space.grid.rows - start), space.dtype)  # a row for each
        columns[np.arange(high - low), np.arange(low, high)] = 1.0
        forward_in_place(space, columns, first=j)
        return np.einsum("ij,ij->i", columns, columns, dtype=np.float64)


def _forms(space: Workspace, b: np.ndarray, product: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`b^T A^-1 b` of each column, refined to float64 accuracy with a float32 factor. `product` multiplies with `A` plus ridge."""
    x = solve(space, b)
    size, worst = np.linalg.norm(b, axis=0), math.inf
    best, residual = x, b
    for _ in range(10):
        r = b - product(x)
        now = float((np.linalg.norm(r, axis=0) / size).max())
        if not now < worst / 2:
            break
        best, residual, worst = x, r, now
        if now <= 1e-14:
            break
        x = x + solve(space, r)
    return np.einsum("ij,ij->j", best, b + residual)


def _batch_job(factor: CholeskyFactor) -> tuple[FactorJob, int]:
    """The job with the cache memory that its batches leave, and the number of columns of a batch."""
    identity, source = factor.job.tiles.identity, factor.job.matrix
    room = share(factor.memory_bytes, max(1, factor.executor.workers))
    working = working_bytes(identity.n, identity.edge, identity.dtype, source.grid.edge, source.dtype.name)
    columns, nbytes = batch_of_inverse(identity.n, identity.edge, factor.dtype, room - working)
    return replace(factor.job, cache_bytes=max(0, room - working - nbytes)), columns
