"""Computes a stored factor of a stored matrix: the graph of tasks, resumption, and errors for indefinite matrices."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import ConfigError, IncompleteError, NumericalError
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.factor.plan import FactorPlan, choose_edge, share, working_bytes
from ntkpipe.linalg.factor.solve import CholeskyFactor
from ntkpipe.linalg.factor.task import PivotError, TileReceipt, factor_tile
from ntkpipe.linalg.factor.tiles import Address, FactorIdentity, FactorTiles, stored_identity
from ntkpipe.linalg.factor.workspace import FactorJob, abandon, settle
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.graph import BlockedError, Task
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import TileMatrix

# Largest size for which the smallest eigenvalue of an indefinite matrix is computed. Lanczos estimates it for larger matrices.
_DENSE_EIGENVALUE = 2000
# Number of rounds. Tiles are stored in the background, after their tasks. Tiles that were lost this way are computed in another round. Only
# a faulty store loses the same tile in three rounds.
_ROUNDS = 3


class IndefiniteError(NumericalError):
    """The matrix plus ridge is not positive definite in the precision of the factor. The text names a sufficient ridge.

    Args:
        text: the message for the user.
        tile: row and column of the diagonal tile whose pivot failed.
        pivot: 1-based row of the matrix.
        ridge: estimate of the smallest sufficient ridge, absolute.
    """

    def __init__(self, text: str, tile: int, pivot: int, ridge: float) -> None:
        super().__init__(text, tile, pivot, ridge)
        self.tile, self.pivot, self.ridge = tile, pivot, ridge

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class FactorRun:
    """A factor and facts about its computation.

    Args:
        factor: the finished factor.
        plan: the plan of the factorisation.
        computed: number of tiles that were computed now; the others were already stored.
        seconds: wall time.
        flops: arithmetic of the tiles that were computed now.
        read_bytes: bytes that all tasks have read.
    """

    factor: CholeskyFactor
    plan: FactorPlan
    computed: int
    seconds: float
    flops: float
    read_bytes: int

    @property
    def rate(self) -> float:
        """Flops per second of all workers together; 0 if nothing was computed."""
        return self.flops / self.seconds if self.computed else 0.0


def plan_factor(
    matrix: TileMatrix, *, dtype: str, workers: int, memory_bytes: int, edge: int | None = None
) -> FactorPlan:
    """The plan for a matrix. `edge=None` chooses the edge.

    Raises:
        ResourceError: if the memory is too small even for small tiles.
    """
    source, n = matrix.grid, matrix.grid.rows
    name = matrix.dtype.name
    if edge is None:
        edge = choose_edge(
            n, dtype=dtype, workers=workers, source_edge=source.edge, source_dtype=name, memory_bytes=memory_bytes
        )
    return FactorPlan(n, min(edge, n), dtype, workers, min(source.edge, n), name, memory_bytes)


def factorise(
    matrix: TileMatrix,
    *,
    name: str,
    ridge: float = 0.0,
    dtype: str = "float64",
    store: ObjectStore,
    prefix: str,
    executor: Executor,
    memory_bytes: int,
    edge: int | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    diagnose: bool = True,
) -> FactorRun:
    """Factor `A + ridge I = L L^T` with `n^3 / 3` flops. Tiles that an earlier run has stored under `prefix` are reused.

    Args:
        matrix: `A`, symmetric; its lower triangle is read.
        name: digest of the content of the matrix, so that tiles of another matrix are never used.
        ridge: absolute, `>= 0`.
        dtype: `float32` or `float64`, of the factor and its arithmetic.
        store: stores the tiles.
        prefix: prefix of their keys, only for this factor.
        executor: runs the tasks.
        memory_bytes: memory for the data of all workers together.
        edge: number of rows of a tile of the factor; None takes that of a stored factor, or chooses it.
        on_tile: called with the number of finished tiles and the number of all tiles.
        diagnose: whether to compute a sufficient ridge for an indefinite matrix; otherwise a `PivotError` is raised immediately.

    Raises:
        ConfigError: if the matrix is not symmetric, the ridge is negative, or the dtype is unknown.
        ResourceError: if the memory is too small even for small tiles.
        IndefiniteError: if the matrix plus ridge is not positive definite in `dtype`.
        NumericalError: if the matrix holds values that are not finite.
    """
    if not matrix.grid.symmetric:
        raise ConfigError("a Cholesky factorisation needs a symmetric matrix")
    if not (ridge >= 0 and np.isfinite(ridge)):
        raise ConfigError(f"a ridge must be finite and at least 0, got {ridge}")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"a factor is float32 or float64, not {dtype}")
    ridge, workers, began = float(ridge), max(1, executor.workers), time.monotonic()
    if edge is None:
        edge = _stored_edge(matrix, name, ridge, dtype, store, prefix, share(memory_bytes, workers))
    plan = plan_factor(matrix, dtype=dtype, workers=workers, memory_bytes=memory_bytes, edge=edge)
    tiles = FactorTiles(store, prefix, FactorIdentity(name, plan.n, ridge, dtype, plan.edge))
    tiles.open()
    job = FactorJob(tiles, matrix, plan.cache_bytes)
    computed = read = 0
    flops = 0.0
    try:
        for _ in range(_ROUNDS):
            finished = tiles.finished()
            for receipt in _run(executor, job, finished):
                computed, read = computed + 1, read + receipt.read_bytes
                flops += _flops(tiles.identity.grid, receipt.i, receipt.j)
                if on_tile is not None:
                    on_tile(min(len(finished) + computed, plan.tasks), plan.tasks)
            settle()
            if _all_stored(tiles, plan.tasks):
                break
        else:
            raise IncompleteError(f"{store.url}/{prefix} repeatedly loses stored tiles: check its disk")
    except PivotError as error:
        if not diagnose:
            raise
        raise _indefinite(error, matrix, tiles.identity, executor) from None
    factor = CholeskyFactor(job, executor, memory_bytes)
    return FactorRun(factor, plan, computed, time.monotonic() - began, flops, read)


def graph(job: FactorJob, finished: set[Address], workers: int) -> Iterator[Task]:
    """The tasks, column by column. Each depends on the last unfinished tiles of the two rows that it reads.

    The diagonal tile of the next column comes `workers` tasks after the tile to the left of it, which then has had time to finish.
    Executors take a few tasks per worker in advance, and none of these waits for a tile that has not begun.
    """
    order = _order(job, finished, workers)
    if workers > 1:  # the worker of the next task is unknown
        yield from order
        return
    for task, following in itertools.pairwise(itertools.chain(order, [None])):
        assert task is not None
        then = None if following is None else following.key
        yield dataclasses.replace(task, args=(*task.args, then))


def _order(job: FactorJob, finished: set[Address], workers: int) -> Iterator[Task]:
    rows = job.tiles.identity.grid.tile_rows
    last: dict[int, Address] = {}  # the rightmost tile of each row in the graph

    def task(i: int, j: int) -> Iterator[Task]:
        if (i, j) in finished:
            return
        after = {last[row] for row in (i, j) if row in last}
        last[i] = (i, j)
        yield Task((i, j), factor_tile, (job, i, j), tuple(sorted(after)))

    yield from task(0, 0)
    for j in range(rows):
        for i in range(j + 1, rows):
            yield from task(i, j)
            if i == min(j + 1 + workers, rows - 1):
                yield from task(j + 1, j + 1)


def _run(executor: Executor, job: FactorJob, finished: set[Address]) -> Iterator[TileReceipt]:
    results = executor.run(graph(job, finished, max(1, executor.workers)))
    try:
        for result in results:
            if result.error is not None and not isinstance(result.error, BlockedError):
                raise result.error  # closing the generator cancels the others
            if result.ok:
                yield result.value
    finally:
        results.close()
        abandon()


def _all_stored(tiles: FactorTiles, tasks: int) -> bool:
    """Whether every tile is stored. It waits up to 5 s for the last tile of each other process."""
    for _ in range(100):
        if len(tiles.finished()) == tasks:
            return True
        time.sleep(0.05)
    return False


def _flops(grid: TileGrid, i: int, j: int) -> float:
    (m, b), k = grid.tile(i, j).shape, grid.tile(i, j).col_start
    return b * b * (k + b / 3) if i == j else m * b * (2 * k + b)


def _stored_edge(
    matrix: TileMatrix, name: str, ridge: float, dtype: str, store: ObjectStore, prefix: str, room: int
) -> int | None:
    """Edge of the factor under `prefix`, if it is the requested factor and its tiles fit into memory; None otherwise."""
    found = stored_identity(store, prefix)
    n = matrix.grid.rows
    if found is None or found != FactorIdentity(name, n, ridge, dtype, found.edge):
        return None
    fits = working_bytes(n, found.edge, dtype, matrix.grid.edge, matrix.dtype.name) <= room
    return found.edge if fits else None


def _indefinite(error: PivotError, matrix: TileMatrix, identity: FactorIdentity, executor: Executor) -> IndefiniteError:
    smallest, largest, mean = _extremes(matrix, executor)
    n, ridge = identity.n, identity.ridge
    # The first term is the change of an eigenvalue by rounding in the precision of the factor.
    needed = n * float(np.finfo(identity.dtype).eps) * largest - smallest
    relative = f" (relative to the mean of the diagonal: predict.ridges=[{needed / mean:.1e}])" if mean > 0 else ""
    return IndefiniteError(
        f"the matrix with ridge {ridge:g} is not positive definite in {identity.dtype}: pivot {error.pivot} of {n}, "
        f"in tile ({error.i}, {error.i}) of edge {identity.edge}, is not positive; the smallest eigenvalue without "
        f"ridge is about {smallest:.1e}. Set a ridge of at least {needed:.1e}{relative}, or use solver=krylov, which "
        "needs no ridge",
        error.i,
        error.pivot,
        needed,
    )


def _extremes(matrix: TileMatrix, executor: Executor) -> tuple[float, float, float]:
    """The smallest eigenvalue (or a slightly lower number), the largest eigenvalue, and the mean of all eigenvalues."""
    n = matrix.grid.rows
    if n <= _DENSE_EIGENVALUE:
        dense = assemble(matrix, np.float64)
        values = scipy.linalg.eigvalsh(dense)
        return float(values[0]), float(values[-1]), float(dense.trace()) / n
    with tile_operator(matrix, executor, products="float64") as operator:
        mean = float(operator.diagonal().mean())
        start = np.random.default_rng(0).standard_normal((n, 4))
        result = block_lanczos(operator, start, max_steps=40)
    values, vectors = np.linalg.eigh(result.projected)
    # The distance of a Ritz value to an eigenvalue of A is at most its residual.
    residual = result.coupling @ vectors[-result.coupling.shape[1] :, 0]
    return float(values[0] - np.linalg.norm(residual)), float(values[-1]), mean
