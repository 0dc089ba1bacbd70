"""What a factor says of a Gaussian process: likelihood, leave-one-out, and covariances by batches of columns, a task each.

Rasmussen & Williams 2006, sections 2.2, 5.4.1 and 5.4.2, with `A` the kernel plus ridge and `a = A^-1 y`:

    log p(y) = -y^T a / 2 - log det(A) / 2 - n / 2 log 2 pi          for each output
    y_i - mean_i without i = a_i / [A^-1]_ii,    its variance = 1 / [A^-1]_ii
    cov = K_** - K_* A^-1 K_*^T.

A float32 factor gives `x ~ A^-1 b` with a residual `r = b - A x`. The quadratic form `b^T x + r^T x` is then wrong by
`r^T A^-1 r >= 0` alone, second order in `r` (the variational characterisation of `b^T A^-1 b`): one float64 product with `A` makes
of six digits twelve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.assemble import read_tile
from ntkpipe.linalg.factor.plan import share, working_bytes
from ntkpipe.linalg.factor.solve import CholeskyFactor, forward, solve
from ntkpipe.linalg.factor.task import make_tile
from ntkpipe.linalg.factor.workspace import FactorJob, Workspace, workspace
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.products import Float64Products
from ntkpipe.tasks.executor import values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tiles.matrix import TileMatrix

# Columns of a batch: enough that arithmetic outweighs reading the factor, see `solve`; more only take memory.
_MOST_COLUMNS = 512
# Vectors of `n` rows that a batch holds per column, float64: right-hand side, solution, residual, product and one on the way.
_VECTORS = 5
_PROBES = 16


@dataclass(frozen=True)
class Estimate:
    """A number and how far it may be off: one standard error and the neglected second order of a float32 factor, else 0."""

    value: float
    error: float


@dataclass(frozen=True)
class LeaveOneOut:
    """Exact leave-one-out predictions of every training image, without refitting.

    Args:
        residuals: (n, c), `y_i` less its prediction from the others.
        variances: (n,), of those predictions, ridge included.
        error: relative error of `[A^-1]_ii`, measured on a sample; 0 of a float64 factor.
    """

    residuals: Float64[np.ndarray, "n c"]
    variances: Float64[np.ndarray, " n"]
    error: float


def log_determinant(factor: CholeskyFactor, operator: LinearMap) -> Estimate:
    """`log det(A + ridge I)`; what float32 rounding did to it is estimated and taken back.

    With `L L^T = M`, `log det A = log det M + tr(F) - tr(F^2) / 2 + ...`, `F = M^-1 A - I` of the size of rounding; the trace is
    estimated from 16 random vectors (Hutchinson 1990), whose spread is the error that is returned.

    Args:
        factor: of the matrix.
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
    """`log p(y)` of each output.

    Args:
        y: (n, c) targets.
        weights: (n, c), `A^-1 y`.
        logdet: of `A`.
    """
    return -0.5 * np.einsum("ij,ij->j", y, weights) - 0.5 * logdet - 0.5 * len(y) * math.log(2 * math.pi)


def leave_one_out(factor: CholeskyFactor, operator: LinearMap, weights: np.ndarray) -> LeaveOneOut:
    """Exact leave-one-out residuals and variances, `n^3 / 3` flops.

    Args:
        factor: of the matrix.
        operator: `A` without ridge, with float64 products; used for a float32 factor.
        weights: (n, c), `A^-1 y`.
    """
    inverse, error = inverse_diagonal(factor, operator)
    return LeaveOneOut(weights / inverse[:, None], 1.0 / inverse, error)


def inverse_diagonal(
    factor: CholeskyFactor, operator: LinearMap | None = None
) -> tuple[Float64[np.ndarray, " n"], float]:
    """The diagonal of `A^-1`, `|L^-1 e_i|^2`, by tasks over block columns of `L^-1`: `n^3 / 3` flops.

    Args:
        factor: of the matrix.
        operator: `A` without ridge, with float64 products: for the error of a float32 factor.

    Returns:
        (n,) and its relative error: 0 of a float64 factor; else the largest of a sample of entries that are refined, times 2,
        or infinite without an operator. Both are kept beside the factor, and found there.
    """
    # Late: its checksums are of a library that the room does without.
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
    job, columns = _batch_job(factor, vectors=2 * np.dtype(factor.dtype).itemsize / 8, most=grid.edge)

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
        _, exact, _ = _refined(space, units, lambda x: operator.matmul(x) + factor.ridge * x)
    return 2 * float(np.abs(values[picked] / exact - 1).max())


def _inverse_diagonal_task(job: FactorJob, j: int, low: int, high: int) -> np.ndarray:
    with workspace(job, make_tile) as space:
        start = space.grid.tile(j, j).col_start
        units = np.zeros((space.grid.rows - start, high - low), space.dtype)
        units[np.arange(low, high), np.arange(high - low)] = 1.0
        columns = forward(space, units, first=j)
        return np.einsum("ij,ij->j", columns, columns, dtype=np.float64)


@dataclass(frozen=True)
class Covariance:
    """Covariances of test outputs at t = inf.

    Args:
        values: (p,) variances, or (p, p).
        error: (p,) bound of what an inexact solve has done to the variances, with the smallest eigenvalue as it is estimated;
            0 of a float64 factor.
    """

    values: np.ndarray
    error: np.ndarray


def posterior_covariance(
    factor: CholeskyFactor,
    cross: TileMatrix,
    prior: np.ndarray,
    *,
    smallest: float,
    ensemble: tuple[TileMatrix, TileMatrix] | None = None,
) -> Covariance:
    """Covariances by batches of test points, a task each, which reads everything by tiles.

    Args:
        factor: of the train-train kernel plus ridge.
        cross: (p, n) the same kernel between test and training images.
        prior: (p, p) of the test outputs before training, or its (p,) diagonal for variances alone.
        smallest: eigenvalue of the matrix plus ridge, for the error; see `CholeskyFactor.smallest_eigenvalue`.
        ensemble: the NNGP's (n, n) train-train and (p, n) test-train matrices. With it the factor is one of the NTK, and the
            result the covariance over networks of which all layers are trained, `K_** + B K B^T - B K_*^T - (B K_*^T)^T` with
            `B = T_* A^-1` (Lee et al. 2019, arXiv:1902.06720); without, `K_** - K_* A^-1 K_*^T`.

    Returns:
        The shape of `prior`. Variances are cut at 0, below which rounding may carry them.
    """
    full, p = prior.ndim == 2, cross.grid.rows
    job, columns = _batch_job(factor, vectors=_VECTORS + (3 if ensemble else 0), most=_MOST_COLUMNS)
    starts = range(0, p, columns)
    tasks = (
        Task(low, _covariance_task, (job, cross, ensemble, low, min(low + columns, p), full, smallest))
        for low in starts
    )
    change = np.empty((p, p) if full else (p,))
    error = np.empty(p)
    for low, (part, off) in values_of(factor.executor, tasks):
        change[low : low + len(part)], error[low : low + len(part)] = part, off
    if full:
        return Covariance(prior + 0.5 * (change + change.T), error)
    return Covariance(np.maximum(prior + change, 0.0), error)


def _covariance_task(
    job: FactorJob,
    cross: TileMatrix,
    ensemble: tuple[TileMatrix, TileMatrix] | None,
    low: int,
    high: int,
    full: bool,
    smallest: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `low` to `high` of what training does to the covariance, (m,) or (m, p), and the variances' errors."""
    with workspace(job, make_tile) as space:
        right = _columns(cross, low, high)

        def product(x: np.ndarray) -> np.ndarray:
            return multiply(job.matrix, x) + job.tiles.identity.ridge * x

        if ensemble is None:
            half = None
            if not full and space.dtype == np.float64:
                half = forward(space, right)
                return -np.einsum("ij,ij->j", half, half), np.zeros(high - low)
            x, form, residual = _refined(space, right, product)
            off = residual**2 / smallest if smallest > 0 else np.full(high - low, math.inf)
            if space.dtype == np.float64:
                off = np.zeros(high - low)
            return (-(_times(cross, x).T) if full else -form), off
        train, other = ensemble
        b, _, residual = _refined(space, right, product)
        inner = multiply(train, b) - 2.0 * _columns(other, low, high)
        off = np.zeros(high - low)
        if space.dtype != np.float64:
            # B is off by A^-1 r: its part in the variance is at most 2 |K b - k_*| |A^-1 r| to first order.
            slope = np.linalg.norm(inner + _columns(other, low, high), axis=0)
            off = 2 * slope * residual / smallest if smallest > 0 else np.full(high - low, math.inf)
        if not full:
            return np.einsum("ij,ij->j", inner, b), off
        again, _, _ = _refined(space, inner, product)
        return _times(cross, again).T, off


def _refined(
    space: Workspace, b: np.ndarray, product: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`x ~ A^-1 b`, the forms `b^T A^-1 b` and the norms of the residuals; a float32 factor is refined to float64."""
    x = solve(space, b)
    if space.dtype == np.float64:
        return x, np.einsum("ij,ij->j", b, x), np.zeros(b.shape[1])
    size, worst = np.linalg.norm(b, axis=0), math.inf
    best, residual = x, b
    for _ in range(10):
        r = b - product(x)
        now = float((np.linalg.norm(r, axis=0) / np.where(size > 0, size, 1.0)).max(initial=0.0))
        if not now < worst / 2:
            break
        best, residual, worst = x, r, now
        if now <= 1e-14:
            break
        x = x + solve(space, r)
    return best, np.einsum("ij,ij->j", best, b + residual), np.linalg.norm(residual, axis=0)


def multiply(matrix: TileMatrix, x: np.ndarray) -> np.ndarray:
    """`A x` of a symmetric stored matrix in float64, tile by tile in this process."""
    total = Float64Products(x, matrix.grid.rows)
    for t in matrix.grid:
        total.add(read_tile(matrix, t.i, t.j), t.row_start, t.col_start, transpose=t.i != t.j)
    return total.result()


def _times(matrix: TileMatrix, x: np.ndarray) -> np.ndarray:
    """`(rows, k)`, a rectangular stored matrix times `x`."""
    total = Float64Products(x, matrix.grid.rows)
    for t in matrix.grid:
        total.add(matrix.read(t.i, t.j), t.row_start, t.col_start, transpose=False)
    return total.result()


def _columns(matrix: TileMatrix, low: int, high: int) -> np.ndarray:
    """Rows `low` to `high` of a rectangular stored matrix, as columns: (n, m) float64."""
    grid = matrix.grid
    out = np.empty((grid.cols, high - low))
    for i in range(low // grid.edge, (high - 1) // grid.edge + 1):
        for j in range(grid.tile_cols):
            t = grid.tile(i, j)
            top, bottom = max(low, t.row_start), min(high, t.row_stop)
            out[t.col_start : t.col_stop, top - low : bottom - low] = matrix.read(i, j)[
                top - t.row_start : bottom - t.row_start
            ].T
    return out


def _batch_job(factor: CholeskyFactor, *, vectors: float, most: int) -> tuple[FactorJob, int]:
    """The job with what its batches leave for cached tiles, and the columns of a batch."""
    identity, source = factor.job.tiles.identity, factor.job.matrix
    room = share(factor.memory_bytes, max(1, factor.executor.workers))
    working = working_bytes(identity.n, identity.edge, identity.dtype, source.grid.edge, source.dtype.name)
    each = int(vectors * 8 * identity.n)
    columns = max(1, min(most, (room - working) // each))
    return replace(factor.job, cache_bytes=max(0, room - working - columns * each)), columns
