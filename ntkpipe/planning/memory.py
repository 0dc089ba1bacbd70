"""Division of the memory budget among processes and data during a solve. Pure functions: free memory is an argument."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.config import RunConfig, SolverConfig
from ntkpipe.gram.plan import ITEM_BYTES, GramPlan
from ntkpipe.linalg.factor.plan import FactorPlan, choose_edge
from ntkpipe.linalg.preconditioner import largest_rank

# Default share of the free memory that a run uses. The rest is for the page cache.
_MEMORY_SHARE = 0.6
# Memory that the driver and each worker need before the first tile: Python, NumPy, SciPy, Ray.
_PROCESS_BYTES = 450 << 20
# Measured proportional set sizes: the driver, a worker that has computed tiles, one that holds tiles, and Ray's own
# processes. Budgets allow for more.
_DRIVER, _TASK_WORKER, _POOL_WORKER, _DAEMONS = 320 << 20, 190 << 20, 125 << 20, 270 << 20
# Share of a worker's peak memory that it keeps after computing tiles, because its allocator returns little.
_KEPT = 0.6
# Tiles that a worker holds while it reads: one in use, the ones that are read ahead (`tile_worker`), and one encoded.
_ON_THE_WAY = 4
# Block steps for which the driver's basis is budgeted; a longer basis uses further memory of the machine.
_BASIS_STEPS = 200
# A basis below this size is never restarted, because it is smaller than one process.
_LEAST_BASIS = 256 << 20
# Blocks of vectors that cg holds: solution, residual, directions, their images, and temporary copies.
_BLOCKS = 12
# Share of the memory left by processes that factors may use; the rest is for tiles of products.
_FACTOR_SHARE = 0.75
# Block steps for which memory is reserved; kernels of 2,000 real images took 12 to 33 (`cost`), larger kernels take
# more.
_VARIANCE_STEPS = 100
# Number of columns above which products gain no efficiency and projected kernels become large. Weights and outputs,
# each with the slopes of a step.
_FLOW_ARRAYS = 24
_MOST_COLUMNS = {"krylov": 64, "cg": 64, "eigh": 1024, "cholesky": 1024}
# With k columns the projected kernel has about 10 k rows: with n / 100 columns it stays far below n.
_LEAST_COLUMNS, _COLUMNS_OF_ROWS = 8, 100
# Share of the memory left for tiles and batches that one batch may use.
_BATCH_SHARE = 0.5


@dataclass(frozen=True)
class Peak:
    """Peak memory in bytes.

    Args:
        driver: the driver's process, with Ray's own processes on its node.
        workers: all other processes together, over all nodes of a cluster.
    """

    driver: int
    workers: int

    @property
    def together(self) -> int:
        """Memory of all processes."""
        return self.driver + self.workers


@dataclass(frozen=True)
class Budget:
    """The memory budget of each part while a system is solved.

    Args:
        solving: bytes of all processes together.
        driver: bytes of these for the driver.
        tiles: bytes for tiles that are held between passes.
        factors: bytes for the data of factors.
        basis: number of vectors that krylov may hold before it restarts.
    """

    solving: int
    driver: int
    tiles: int
    factors: int
    basis: int


def divide(config: RunConfig, plan: GramPlan, n: int, c: int, free: int) -> Budget:
    """Divide the memory of this machine among its users.

    Args:
        config: of the run.
        plan: of the tiles.
        n: number of training images in use.
        c: number of outputs.
        free: free bytes.
    """
    total = memory_budget(config, free)
    driver, solving = driver_memory(config, total, free), solver_memory(plan, total)
    room, known = Room.of(config, solving, plan.workers, driver), answers(config)
    return Budget(
        solving,
        driver,
        held_memory(config.solver, n, c, known, room),
        factor_memory(solving, plan.workers),
        basis_capacity(config.solver, n, c, known, room),
    )


def memory_budget(config: RunConfig, free: int) -> int:
    """Bytes for all processes together: the configured number, or a share of the free memory.

    Args:
        config: of the run.
        free: bytes that are free on this machine (`limits.free_memory`).
    """
    if config.cluster.memory_gib is not None:
        return int(config.cluster.memory_gib * 2**30)
    return free_share(free)


def free_share(free: int) -> int:
    """Default bytes of a run, as a share of the free bytes."""
    return int(_MEMORY_SHARE * free)


def driver_memory(config: RunConfig, budget: int, free: int) -> int:
    """Bytes for the driver: the budget, but on a joined cluster at most the memory of the driver's machine.

    Args:
        config: of the run.
        budget: for all processes together, on all nodes.
        free: bytes that are free on the driver's machine.
    """
    return min(budget, free_share(free)) if config.cluster.kind == "ray" else budget


@dataclass(frozen=True)
class Room:
    """Memory that all processes share while a system is solved.

    Args:
        budget: bytes for all processes together.
        workers: processes that compute.
        driver: bytes of the budget for the driver; None is all.
    """

    budget: int
    workers: int
    driver: int | None = None

    @staticmethod
    def of(config: RunConfig, budget: int, workers: int, driver: int) -> Room:
        """The room of a run; `driver` is `driver_memory`, which matters only on a joined cluster."""
        return Room(budget, workers, driver if config.cluster.kind == "ray" else None)


def answers(config: RunConfig) -> int:
    """Number of times multiplied by number of ridges, as far as they are known before a solve."""
    return len(config.predict.times or ()) * len(config.predict.ridges)


def held_memory(solver: SolverConfig, n: int, c: int, answers: int, room: Room) -> int:
    """Bytes for tiles that are held between passes: the budget minus processes and the driver's basis or vectors.

    Args:
        solver: the settings of the solver.
        n: number of training images in use.
        c: number of outputs.
        answers: see `answers`.
        room: memory of all processes.
    """
    capacity = basis_capacity(solver, n, c, answers, room)
    basis = solver.basis_item * n * min(c * min(solver.max_steps, _BASIS_STEPS), capacity)
    own = {"cg": cg_bytes(solver, n, c), "flow": _FLOW_ARRAYS * 8 * n * c}.get(solver.kind, basis)
    return max(0, room.budget - (room.workers + 1) * _PROCESS_BYTES - own)


def basis_capacity(solver: SolverConfig, n: int, c: int, answers: int, room: Room) -> int:
    """Number of vectors that the basis of krylov may hold before a restart. Arguments are those of `held_memory`."""
    if solver.basis_gib is not None:
        return int(solver.basis_gib * (1 << 30)) // (solver.basis_item * n)
    # The sum of weights over restarts is held twice while a cycle is added.
    added = 2 * 8 * n * c * answers
    free = (room.budget - (room.workers + 1) * _PROCESS_BYTES) // 2
    if room.driver is not None and solver.basis == "driver":
        free = min(free, room.driver - _PROCESS_BYTES)
    return max(free - added, _LEAST_BASIS) // (solver.basis_item * n)


def without_processes(budget: int, processes: int) -> int:
    """Bytes of the budget that remain with so many running processes."""
    return max(0, budget - processes * _PROCESS_BYTES)


def cg_bytes(config: SolverConfig, n: int, c: int) -> int:
    """Memory of the driver for the vectors and the preconditioner of cg."""
    vectors = 8 * n * c * _BLOCKS
    if config.preconditioner in ("none", "float32_factor"):  # a factor is stored by tiles
        return vectors
    # The sketch's vectors (the factor), their images (its new rows) and the approximation made of them.
    return vectors + 3 * 8 * n * min(config.rank or largest_rank(n, c, config.preconditioner), n)


def factor_memory(budget: int, workers: int) -> int:
    """Bytes of the budget for the data of factors. Tasks, and the pool that multiplies, are separate processes."""
    return int(_FACTOR_SHARE * without_processes(budget, 1 + (2 * workers if workers > 1 else 0)))


def product_memory(budget: int, workers: int) -> int:
    """Bytes for tiles that the pool holds while factors are computed and used."""
    left = without_processes(budget, 1 + (2 * workers if workers > 1 else 0))
    return left - int(_FACTOR_SHARE * left)


def evaluation_bytes(plan: GramPlan) -> int:
    """Memory that a worker needs to compute tiles, in addition to its base memory."""
    return max(0, plan.memory_per_worker - _PROCESS_BYTES)


def solver_memory(plan: GramPlan, budget: int) -> int:
    """The memory budget without the memory for tiles that workers recompute during a solve."""
    return budget if plan.stored else max(0, budget - plan.workers * evaluation_bytes(plan))


def processes_peak(config: RunConfig, workers: int, worker_bytes: int) -> Peak:
    """Base memory of all processes, without data, while a system is solved.

    Args:
        config: of the run.
        workers: processes that compute.
        worker_bytes: of one while it computed tiles, as planned.
    """
    if config.cluster.kind == "serial":
        # One process that has computed tiles as well (1,250 images: 481 MiB besides the matrices of eigh).
        return Peak(max(_DRIVER + _TASK_WORKER, int(_KEPT * worker_bytes)), 0)
    task = max(_TASK_WORKER, int(_KEPT * worker_bytes))
    return Peak(_DRIVER + _DAEMONS, workers * (task + _POOL_WORKER))


def solving_peak(
    config: RunConfig,
    n: int,
    c: int,
    *,
    tiles: int,
    tile: int,
    passes: int,
    budget: Budget,
    workers: int,
    worker_bytes: int,
) -> Peak:
    """Peak memory while krylov, cg or eigh solves.

    Args:
        config: of the run.
        n: training images in use.
        c: outputs.
        tiles: bytes of all tiles of one kernel, in the precision in which they are held.
        tile: bytes of one.
        passes: of krylov, expected.
        budget: see there.
        workers: processes that compute.
        worker_bytes: of one while it computed tiles.
    """
    fixed = processes_peak(config, workers, worker_bytes)
    if config.solver.kind == "eigh":
        # The matrix, eigenvectors and LAPACK's workspace; then the basis made of them.
        return Peak(fixed.driver + 4 * 8 * n * n, fixed.workers)
    held = min(tiles, budget.tiles) + min(tiles, _ON_THE_WAY * workers * tile)
    if config.solver.kind == "cg":
        return Peak(fixed.driver + cg_bytes(config.solver, n, c), fixed.workers + held)
    vectors = min(c * passes, budget.basis, n)
    # The basis and what it is multiplied with at the end (sampled rows, weights), and a pass's blocks.
    # A rounded basis has two small matrices more.
    item, small = config.solver.basis_item, 3 if config.solver.basis_item == 8 else 5
    basis, own = item * n * vectors, 8 * n * 8 * c + small * 8 * vectors * vectors
    if config.solver.basis == "workers":
        return Peak(fixed.driver + own, fixed.workers + held + basis)
    return Peak(fixed.driver + basis + own, fixed.workers + held)


def plan_factors(config: RunConfig, plan: GramPlan, n: int, memory: int) -> FactorPlan:
    """The plan of a factor.

    Args:
        config: of the run.
        plan: of the tiles of the kernel.
        n: training images in use.
        memory: bytes for the data of factors (`factor_memory`).

    Raises:
        ResourceError: if not even small tiles fit.
    """
    dtype = "float64" if config.solver.precision == "float64" else "float32"
    edge = config.solver.factor_edge or choose_edge(
        n,
        dtype=dtype,
        workers=plan.workers,
        source_edge=plan.edge,
        source_dtype=plan.store_dtype,
        memory_bytes=memory,
    )
    return FactorPlan(n, min(edge, n), dtype, plan.workers, min(plan.edge, n), plan.store_dtype, memory)


def factoring_peak(config: RunConfig, factors: FactorPlan, plan: GramPlan, n: int, c: int, budget: int) -> Peak:
    """Peak memory while factors are computed: their tiles, and the kernel's tiles that are kept for products.

    Args:
        config: of the run.
        factors: plan of one of them; they are made one after the other.
        plan: of the kernel's tiles.
        n: training images in use.
        c: outputs.
        budget: of all processes while solving.
    """
    edge, item = min(plan.edge, n), ITEM_BYTES[plan.store_dtype]
    held = min(n * (n + edge) // 2 * item, product_memory(budget, plan.workers))
    # The driver reads the factor's tiles for its solves, and keeps them while there is room.
    own = min(factors.stored_bytes, factors.memory_bytes) + 12 * 8 * n * c
    fixed = processes_peak(config, plan.workers, plan.memory_per_worker)
    data = factors.peak_bytes
    if config.solver.leave_one_out:
        data = max(data, factors.inverse_bytes)
    return Peak(fixed.driver + own, fixed.workers + data + held)


def gram_peak(config: RunConfig, plan: GramPlan) -> Peak:
    """Peak memory while tiles are computed, in one process or by workers besides the driver."""
    if config.cluster.kind == "serial":
        return Peak(max(_DRIVER, plan.memory_per_worker), 0)
    return Peak(_DRIVER + _DAEMONS, plan.workers * plan.memory_per_worker)


@dataclass(frozen=True)
class VarianceMemory:
    """Memory of the driver for variances: per column of a batch, and a constant part."""

    per_column: int
    fixed: int


@dataclass(frozen=True)
class Batches:
    """Sizes that determine how many test images share a batch of variances.

    Args:
        solver: the settings of the solver.
        n: number of training images.
        times: number of training times.
        ridges: number of ridges.
        ensemble: whether variances are over networks with all layers trained, which also need the NNGP.
        full: whether covariances between test images are computed.
    """

    solver: SolverConfig
    n: int
    times: int
    ridges: int
    ensemble: bool
    full: bool

    @staticmethod
    def of(config: RunConfig, n: int, times: int) -> Batches:
        """The sizes of a run."""
        p = config.predict
        return Batches(config.solver, n, times, len(p.ridges), "ntk" in p.kernels, p.covariance == "full")

    @property
    def memory(self) -> VarianceMemory:
        """Memory of a batch without tiles."""
        kind, n = self.solver.kind, self.n
        answers = self.times * (1 if kind == "cholesky" else self.ridges)
        if kind == "krylov":
            # The basis and, of ensembles, its product with the NNGP; or the weights, where they are fewer.
            per = min(_VARIANCE_STEPS, n) * (2 if self.ensemble else 1) + (2 * answers if self.full else 0)
            return VarianceMemory(8 * n * (per + 4), 0)
        # Columns, weights, their residuals and products.
        per = 8 * n * (4 + (4 if kind == "cg" else 3) * answers)
        if kind == "cg":
            return VarianceMemory(per + 8 * n * 12, cg_bytes(self.solver, n, 1))
        return VarianceMemory(per, 8 * n * n if kind == "eigh" else 0)

    def columns(self, p: int, room: Room) -> int:
        """Number of test images per batch: as many as half of the free memory holds, up to the efficient number and p."""
        need = self.memory
        free = max(0, self.room(room) - need.fixed)
        most = _MOST_COLUMNS[self.solver.kind]
        if self.solver.kind == "krylov":
            most = min(most, max(_LEAST_COLUMNS, self.n // _COLUMNS_OF_ROWS))
        return int(np.clip(_BATCH_SHARE * free // need.per_column, 1, min(most, p)))

    def room(self, room: Room) -> int:
        """Bytes for batches and tiles: the budget minus processes and, for cholesky, factors."""
        left = without_processes(room.budget, self.processes(room.workers))
        return min(left, product_memory(room.budget, room.workers)) if self.solver.kind == "cholesky" else left

    def processes(self, workers: int) -> int:
        """Number of processes during variances: the driver, and a pool for each matrix in the products."""
        return 1 + workers * (1 + self.ensemble + self.full)
