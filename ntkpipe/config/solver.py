"""How the linear algebra is done."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class SolverConfig:
    """How the linear algebra is done.

    Args:
        kind: `auto` (`eigh` of up to 2,000 training points, else `krylov`), `krylov` (block Lanczos, every time and ridge),
            `eigh` (dense, the reference), `cholesky` (tiled factors, t = inf), `cg` (conjugate gradients, t = inf, in little
            memory) or `flow` (`predict.loss` integrated up to finite times; what `auto` is for losses other than the squared one).
        tolerance: of krylov, largest acceptable error bound of a prediction, absolute, before rounding terms; with `cg`, of a
            variance; of flow, the largest acceptable estimate of a prediction's error.
        residual: of cg, largest acceptable `|y - A u| / |y|` of any output, in float64.
        preconditioner: of cg: `nystrom` (randomised, from products), `cholesky` (pivoted, from rows), `float32_factor` (of
            the whole matrix, in tiles, as for `solver=cholesky solver.precision=mixed`) or `none`.
        rank: of `nystrom` and `cholesky`; None looks for what the smallest ridge calls for, at most 256.
        max_steps: block steps after which krylov and cg stop and say that they have not converged.
        products: `float64` (exact on the stored tiles) or `float32` (about 1.6 times faster, accurate to 1e-7 of the matrix).
        checkpoint_every: block steps between checkpoints of the basis, or of the vectors of cg; steps of flow.
        basis: of krylov, where its vectors are: `driver`, or in slices over the `workers`, on their disks beyond `basis_gib`; then
            the times have to be given.
        basis_gib: of krylov, memory for its basis; in the driver, a basis that outgrows it is restarted, and answers the times
            and ridges of this run alone. None is half of what the processes leave of the memory budget.
        sample_rows: rows of the matrix recomputed in float64 to measure rounding and storage errors; None is 64, or fewer
            where they would take more than 2% of the time of the tiles.
        precision: of cholesky: `float64`, `mixed` (float32 factors, refined: as accurate, in half the time and memory; float64
            ones where that does not converge) or `float32` (accurate to a residual of about 1e-5 times the condition's root).
        factor_edge: rows of a tile of a factor; None is chosen from the rows, the workers and the memory.
        leave_one_out: of cholesky: exact leave-one-out errors, for as much arithmetic again as a factor.
    """

    kind: str = "auto"
    tolerance: float = 1e-4
    residual: float = 1e-8
    preconditioner: str = "nystrom"
    rank: int | None = None
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    basis: str = "driver"
    basis_gib: float | None = None
    sample_rows: int | None = None
    precision: str = "float64"
    factor_edge: int | None = None
    leave_one_out: bool = True

    def __post_init__(self) -> None:
        choice("solver.kind", self.kind, ("auto", "krylov", "eigh", "cholesky", "cg", "flow"))
        choice("solver.preconditioner", self.preconditioner, ("nystrom", "cholesky", "float32_factor", "none"))
        choice("solver.products", self.products, ("float32", "float64"))
        at_least("solver.tolerance", self.tolerance, 0.0, strict=True)
        at_least("solver.residual", self.residual, 0.0, strict=True)
        at_least("solver.rank", self.rank, 1)
        if self.rank is not None and self.preconditioner not in ("nystrom", "cholesky"):
            raise ConfigError(
                f"solver.rank is for nystrom and cholesky: solver.preconditioner={self.preconditioner} has none"
            )
        at_least("solver.max_steps", self.max_steps, 1)
        at_least("solver.checkpoint_every", self.checkpoint_every, 1)
        choice("solver.basis", self.basis, ("driver", "workers"))
        at_least("solver.basis_gib", self.basis_gib, 0.0, strict=True)
        at_least("solver.sample_rows", self.sample_rows, 1)
        choice("solver.precision", self.precision, ("float64", "mixed", "float32"))
        at_least("solver.factor_edge", self.factor_edge, 1)
