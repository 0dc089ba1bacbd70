"""Who may have how much of the memory budget while a system is solved."""

from __future__ import annotations

from ntkpipe.config import RunConfig, SolverConfig
from ntkpipe.linalg.preconditioner import largest_rank

# Of the memory budget, what the driver and each worker take before the first tile: Python, NumPy, SciPy, Ray.
_PROCESS_BYTES = 450 << 20
# Block steps for which the driver's basis is budgeted; a longer one is still made, from what the machine has.
_BASIS_STEPS = 200
# A basis is not restarted below this, whatever the budget: one more process is larger.
_LEAST_BASIS = 256 << 20
# Blocks of vectors that cg holds: solution, residual, directions, their images, and copies on the way.
_BLOCKS = 12


def tile_memory(config: RunConfig, n: int, c: int, budget: int, workers: int) -> int:
    """Bytes for tiles held between passes: the budget less processes, and the driver's basis or vectors."""
    basis = 8 * n * min(c * min(config.solver.max_steps, _BASIS_STEPS), basis_vectors(config, n, c, budget, workers))
    own = cg_bytes(config.solver, n, c) if config.solver.kind == "cg" else basis
    return max(0, budget - (workers + 1) * _PROCESS_BYTES - own)


def basis_vectors(config: RunConfig, n: int, c: int, budget: int, workers: int) -> int:
    """Vectors that the basis of krylov may hold before it is restarted."""
    if config.solver.basis_gib is not None:
        return int(config.solver.basis_gib * (1 << 30)) // (8 * n)
    # Weights that restarts add up are there twice while a cycle is taken up.
    added = 2 * 8 * n * c * len(config.predict.times or ()) * len(config.predict.ridges)
    return max((budget - (workers + 1) * _PROCESS_BYTES) // 2 - added, _LEAST_BASIS) // (8 * n)


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
