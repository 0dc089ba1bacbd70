"""Settings of the solver."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class SolverConfig:
    """How the linear systems are solved.

    Args:
        kind: `krylov` (block Lanczos, every time and ridge), `eigh` (dense, the reference), `cholesky` (tiled
            factors, t = inf), `cg` (conjugate gradients, t = inf, little memory), `flow` (integrates `predict.loss`
            up to finite times) or `auto`. `auto` is `eigh` for up to 2,000 training points, else `krylov`. For
            losses other than squared it is `flow`.
        tolerance: for `krylov`: the largest change of a prediction by further steps that is acceptable, in units of the
            largest target. Errors of the tiles and of rounding do not count (see `stop`). For `cg`: the largest acceptable error bound of
            a variance. For `flow`: the largest acceptable error estimate of a prediction.
        stop: for `krylov`: `estimate` or `bound`. `estimate` stops when up to 64 test points move by less than the
            tolerance, or by less than a tenth of the errors of the tiles and of rounding. Without test points, with
            `basis=workers`, or after a restart of the basis, it acts as `bound`. `bound` stops when no prediction of any point can be off
            by more than the tolerance. For `cg`: `estimate` stops at a residual of a third of what errors of the
            tiles contribute, if that is larger than `residual`; `bound` stops at `residual`.
        residual: for `cg`: the largest acceptable `|y - A u| / |y|` of any output, in float64.
        preconditioner: for `cg`: `cholesky` (pivoted, from rows), `nystrom` (randomised, from products),
            `float32_factor` (a factor of the whole matrix, in tiles, as for `solver=cholesky solver.precision=mixed`) or
            `none`.
        rank: for the preconditioners `cholesky` and `nystrom`: their rank. By default it grows as the smallest ridge
            requires, as long as this saves time.
        max_steps: number of block steps after which `krylov` and `cg` stop and report that they have not converged.
        products: `float64` (exact on the stored tiles) or `float32` (about 1.6 times faster, accurate to 1e-7 of the
            matrix).
        checkpoint_every: number of steps between two checkpoints: block steps of `krylov` and `cg`, steps of `flow`.
        basis: for `krylov`: `driver` keeps the basis in the driver. `workers` divides it into slices over the workers, which
            keep on disk what exceeds `basis_gib`. With `workers` the times must be given.
        basis_gib: for `krylov`: memory of the basis in GiB. If the basis in the driver exceeds it, the solver
            restarts the basis, which then serves only the times and ridges of this run. By default half of the memory
            budget that the processes leave.
        basis_dtype: for `krylov`: `float32` rounds the basis. This halves its memory and traffic, and adds relative errors
            of about 1e-7 to the equation of the weights; bounds and estimates include them. It needs `basis=driver`, and
            a basis that fits. `auto` is `float64`.
        sample_rows: number of rows of the matrix to compute again in float64, to measure rounding and storage errors.
            By default 64, or fewer if they would take more than 2% of the time of the tiles.
        precision: for `cholesky`: `float64`, `mixed` or `float32`. `mixed` refines float32 factors: it is as
            accurate, in half the time and memory, and uses float64 factors if it does not converge. `float32` has a
            residual of about 1e-5 times the square root of the condition.
        factor_edge: for `cholesky`: rows of a tile of a factor. By default it follows from the rows, the workers and
            the memory.
        leave_one_out: for `cholesky`: compute exact leave-one-out errors, which takes as much arithmetic as a factor.
        refine: steps of iterative refinement at t = inf: each computes the tiles again in float64, keeps none of
            them, and corrects the means and the leave-one-out errors; 0 is none. One step gives float32 tiles the
            accuracy of float64 ones.
    """

    kind: str = "auto"
    tolerance: float = 1e-4
    stop: str = "estimate"
    residual: float = 1e-8
    preconditioner: str = "cholesky"
    rank: int | None = None
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    basis: str = "driver"
    basis_gib: float | None = None
    basis_dtype: str = "auto"
    sample_rows: int | None = None
    precision: str = "float64"
    factor_edge: int | None = None
    leave_one_out: bool = True
    refine: int = 0

    def __post_init__(self) -> None:
        choice("solver.kind", self.kind, ("auto", "krylov", "eigh", "cholesky", "cg", "flow"))
        choice("solver.preconditioner", self.preconditioner, ("nystrom", "cholesky", "float32_factor", "none"))
        choice("solver.products", self.products, ("float32", "float64"))
        choice("solver.stop", self.stop, ("estimate", "bound"))
        at_least("solver.tolerance", self.tolerance, 0.0, strict=True)
        at_least("solver.residual", self.residual, 0.0, strict=True)
        at_least("solver.rank", self.rank, 1)
        if self.rank is not None and self.preconditioner not in ("nystrom", "cholesky"):
            raise ConfigError(
                "solver.rank is for the preconditioners nystrom and cholesky: leave it out with "
                f"solver.preconditioner={self.preconditioner}"
            )
        at_least("solver.max_steps", self.max_steps, 1)
        at_least("solver.checkpoint_every", self.checkpoint_every, 1)
        choice("solver.basis", self.basis, ("driver", "workers"))
        at_least("solver.basis_gib", self.basis_gib, 0.0, strict=True)
        self._check_basis_dtype()
        at_least("solver.sample_rows", self.sample_rows, 1)
        choice("solver.precision", self.precision, ("float64", "mixed", "float32"))
        at_least("solver.factor_edge", self.factor_edge, 1)
        at_least("solver.refine", self.refine, 0)
        if self.refine and self.kind == "flow":
            raise ConfigError("solver.refine is of t = inf, and solver=flow goes up to finite times: leave it out")

    def _check_basis_dtype(self) -> None:
        if self.basis_dtype == "float16":
            raise ConfigError(
                "solver.basis_dtype=float16 would leave three digits of a prediction: set float32, whose rounding is at the level of "
                "float32 tiles"
            )
        choice("solver.basis_dtype", self.basis_dtype, ("auto", "float64", "float32"))
        if self.basis_dtype == "float32" and self.basis == "workers":
            raise ConfigError(
                "solver.basis_dtype=float32 is for a basis in the driver: leave it out with solver.basis=workers, whose disks hold what "
                "memory does not"
            )

    @property
    def basis_item(self) -> int:
        """Bytes of an entry of the basis of `krylov`."""
        return 4 if self.basis_dtype == "float32" else 8
