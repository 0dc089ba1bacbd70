"""Who may have how much of the memory budget while a system is solved. Pure: what is free is an argument."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.config import RunConfig, SolverConfig
from ntkpipe.gram.plan import ITEM_BYTES, GramPlan
from ntkpipe.linalg.factor.plan import FactorPlan, choose_edge
from ntkpipe.linalg.preconditioner import largest_rank

# Of the memory that a machine has free, the part that a run takes when it is not told: the rest is for page cache.
_MEMORY_SHARE = 0.6
# Of the memory budget, what the driver and each worker take before the first tile: Python, NumPy, SciPy, Ray.
_PROCESS_BYTES = 450 << 20
# What they were seen to have (proportional set sizes): the driver, a worker that has computed tiles, one that holds tiles, and
# Ray's own processes. Budgets leave room for more than that.
_DRIVER, _TASK_WORKER, _POOL_WORKER, _DAEMONS = 320 << 20, 190 << 20, 125 << 20, 270 << 20
# Of what a worker of tasks had while it computed tiles, what it still has later: its allocator gives little back.
_KEPT = 0.6
# Tiles on their way into a worker: one in use, those read ahead (`tile_worker`), and one as it is stored.
_ON_THE_WAY = 4
# Block steps for which the driver's basis is budgeted; a longer one is still made, from what the machine has.
_BASIS_STEPS = 200
# A basis is not restarted below this, whatever the budget: one more process is larger.
_LEAST_BASIS = 256 << 20
# Blocks of vectors that cg holds: solution, residual, directions, their images, and copies on the way.
_BLOCKS = 12
# Of the memory that processes leave, what factors may take; tiles for products have the rest.
_FACTOR_SHARE = 0.75
# Block steps for which memory is set aside; kernels of 2,000 real images took 12 to 33 (`cost`), larger ones take more.
_VARIANCE_STEPS = 100
# Columns beyond which products are no more efficient, and projected kernels become large.
# Weights and outputs, each with the slopes of a step.
_FLOW_ARRAYS = 24
_MOST_COLUMNS = {"krylov": 64, "cg": 64, "eigh": 1024, "cholesky": 1024}
# Of a space of k columns the projected kernel has some ten k rows: with n / 100 columns it stays far below n.
_LEAST_COLUMNS, _COLUMNS_OF_ROWS = 8, 100
# Of the memory left for tiles and batches, the part that a batch may take.
_BATCH_SHARE = 0.5


@dataclass(frozen=True)
class Peak:
    """Most memory at one time, in bytes.

    Args:
        driver: of the process that was started, with Ray's own of its node.
        workers: of all others together; of a cluster they are on all its nodes.
    """

    driver: int
    workers: int

    @property
    def together(self) -> int:
        """Of all processes."""
        return self.driver + self.workers


@dataclass(frozen=True)
class Budget:
    """Who may have how much memory while a system is solved.

    Args:
        solving: bytes of all processes together.
        driver: of these, what the driver may take.
        tiles: for tiles held between passes.
        factors: for the data of factors.
        basis: vectors that krylov may hold before it restarts.
    """

    solving: int
    driver: int
    tiles: int
    factors: int
    basis: int


def divide(config: RunConfig, plan: GramPlan, n: int, c: int, free: int) -> Budget:
    """The memory of this machine among those who need it.

    Args:
        config: of the run.
        plan: of the tiles.
        n: training images in use.
        c: outputs.
        free: bytes that are free.
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
    """Bytes for all processes together: as configured, or a share of what is free.

    Args:
        config: of the run.
        free: bytes that are free on this machine (`limits.free_memory`).
    """
    if config.cluster.memory_gib is not None:
        return int(config.cluster.memory_gib * 2**30)
    return free_share(free)


def free_share(free: int) -> int:
    """Bytes that a run takes of what is free, if it is not told otherwise."""
    return int(_MEMORY_SHARE * free)


def driver_memory(config: RunConfig, budget: int, free: int) -> int:
    """Bytes for the driver: the budget, but on a joined cluster no more than its own machine has, which may hold no worker.

    Args:
        config: of the run.
        budget: for all processes together, on all nodes.
        free: bytes that are free on the driver's machine.
    """
    return min(budget, free_share(free)) if config.cluster.kind == "ray" else budget


@dataclass(frozen=True)
class Room:
    """Memory that whatever runs while a system is solved shares.

    Args:
        budget: bytes for all processes together.
        workers: processes that compute.
        driver: bytes of it that the driver may take; None is all.
    """

    budget: int
    workers: int
    driver: int | None = None

    @staticmethod
    def of(config: RunConfig, budget: int, workers: int, driver: int) -> Room:
        """Of a run; `driver` is `driver_memory`, which counts on a joined cluster alone."""
        return Room(budget, workers, driver if config.cluster.kind == "ray" else None)


def answers(config: RunConfig) -> int:
    """Times and ridges that are known before a solve, multiplied."""
    return len(config.predict.times or ()) * len(config.predict.ridges)


def held_memory(solver: SolverConfig, n: int, c: int, answers: int, room: Room) -> int:
    """Bytes for tiles held between passes: the budget less processes, and the driver's basis or vectors.

    Args:
        solver: its settings.
        n: training images in use.
        c: outputs.
        answers: times and ridges that are known before, multiplied.
        room: of all processes.
    """
    basis = 8 * n * min(c * min(solver.max_steps, _BASIS_STEPS), basis_capacity(solver, n, c, answers, room))
    own = {"cg": cg_bytes(solver, n, c), "flow": _FLOW_ARRAYS * 8 * n * c}.get(solver.kind, basis)
    return max(0, room.budget - (room.workers + 1) * _PROCESS_BYTES - own)


def basis_capacity(solver: SolverConfig, n: int, c: int, answers: int, room: Room) -> int:
    """Vectors that the basis of krylov may hold before it is restarted; arguments as of `held_memory`."""
    if solver.basis_gib is not None:
        return int(solver.basis_gib * (1 << 30)) // (8 * n)
    # Weights that restarts add up are there twice while a cycle is taken up.
    added = 2 * 8 * n * c * answers
    free = (room.budget - (room.workers + 1) * _PROCESS_BYTES) // 2
    if room.driver is not None and solver.basis == "driver":
        free = min(free, room.driver - _PROCESS_BYTES)
    return max(free - added, _LEAST_BASIS) // (8 * n)


def without_processes(budget: int, processes: int) -> int:
    """Bytes of the budget that are left when so many processes run."""
    return max(0, budget - processes * _PROCESS_BYTES)


def cg_bytes(config: SolverConfig, n: int, c: int) -> int:
    """Memory of the driver of cg for the vectors and the preconditioner."""
    vectors = 8 * n * c * _BLOCKS
    if config.preconditioner in ("none", "float32_factor"):  # a factor is stored by tiles
        return vectors
    # The sketch's vectors, their images and the approximation made of them.
    return vectors + 3 * 8 * n * min(config.rank or largest_rank(n), n)


def factor_memory(budget: int, workers: int) -> int:
    """Bytes for the data of factors, of a budget for all processes: tasks and the pool that multiplies run in their own."""
    return int(_FACTOR_SHARE * without_processes(budget, 1 + (2 * workers if workers > 1 else 0)))


def product_memory(budget: int, workers: int) -> int:
    """Bytes for tiles that the pool keeps while factors are made and used."""
    left = without_processes(budget, 1 + (2 * workers if workers > 1 else 0))
    return left - int(_FACTOR_SHARE * left)


def evaluation_bytes(plan: GramPlan, process: int = 450 << 20) -> int:
    """Memory that a worker needs to compute tiles, besides what it takes anyway."""
    return max(0, plan.memory_per_worker - process)


def solver_memory(plan: GramPlan, budget: int) -> int:
    """The memory budget less what workers need to compute tiles while they solve, if they do."""
    return budget if plan.stored else max(0, budget - plan.workers * evaluation_bytes(plan))


def processes_peak(config: RunConfig, workers: int, worker_bytes: int) -> Peak:
    """What all processes have before their data, while a system is solved.

    Args:
        config: of the run.
        workers: processes that compute.
        worker_bytes: of one while it computed tiles, as planned.
    """
    if config.cluster.kind == "serial":
        return Peak(_DRIVER, 0)
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
    """While krylov, cg or eigh solves.

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
    basis, own = 8 * n * vectors, 8 * n * 8 * c + 3 * 8 * vectors * vectors
    if config.solver.basis == "workers":
        return Peak(fixed.driver + own, fixed.workers + held + basis)
    return Peak(fixed.driver + basis + own, fixed.workers + held)


def plan_factors(config: RunConfig, plan: GramPlan, n: int, memory: int) -> FactorPlan:
    """What a factor takes.

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
    """While factors are made: their tiles, and those of the kernel that are kept for products.

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
    return Peak(fixed.driver + own, fixed.workers + factors.peak_bytes + held)


def gram_peak(config: RunConfig, plan: GramPlan) -> Peak:
    """While tiles are computed: in one process, or by workers besides the driver."""
    if config.cluster.kind == "serial":
        return Peak(max(_DRIVER, plan.memory_per_worker), 0)
    return Peak(_DRIVER + _DAEMONS, plan.workers * plan.memory_per_worker)


@dataclass(frozen=True)
class VarianceMemory:
    """Memory of the driver: for every column of a batch, and besides them."""

    per_column: int
    fixed: int


@dataclass(frozen=True)
class Batches:
    """What decides how many test images' variances are made together.

    Args:
        solver: its settings.
        n: training images.
        times: training times.
        ridges: of the solve.
        ensemble: variances of networks of which all layers are trained, which take the NNGP besides.
        full: covariances between test images.
    """

    solver: SolverConfig
    n: int
    times: int
    ridges: int
    ensemble: bool
    full: bool

    @staticmethod
    def of(config: RunConfig, n: int, times: int) -> Batches:
        """Of a run."""
        p = config.predict
        return Batches(config.solver, n, times, len(p.ridges), "ntk" in p.kernels, p.covariance == "full")

    @property
    def memory(self) -> VarianceMemory:
        """What they take besides tiles."""
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
        """Test images that go together: as many as half of the free memory holds, up to what is worthwhile and to p."""
        need = self.memory
        free = max(0, self.room(room) - need.fixed)
        most = _MOST_COLUMNS[self.solver.kind]
        if self.solver.kind == "krylov":
            most = min(most, max(_LEAST_COLUMNS, self.n // _COLUMNS_OF_ROWS))
        return int(np.clip(_BATCH_SHARE * free // need.per_column, 1, min(most, p)))

    def room(self, room: Room) -> int:
        """Bytes for batches and tiles: what processes leave of the budget, and of cholesky the factors."""
        left = without_processes(room.budget, self.processes(room.workers))
        return min(left, product_memory(room.budget, room.workers)) if self.solver.kind == "cholesky" else left

    def processes(self, workers: int) -> int:
        """Processes that run meanwhile: the driver and a pool for each matrix that is multiplied with."""
        return 1 + workers * (1 + self.ensemble + self.full)
