"""Block conjugate gradients. All right-hand sides share every pass over the matrix, and only a few vectors are kept.

The recurrence is in `cg_recurrence.py`, and the estimate of the smallest eigenvalue in `cg_lanczos.py`.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.cg_recurrence import CgRecurrence, CgStep
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.preconditioner import Identity, Preconditioner
from ntkpipe.linalg.solution import Reason, Solution
from ntkpipe.linalg.steps import Checkpoint, take_step


@dataclass(frozen=True)
class CgSolution(Solution[np.ndarray]):
    """Solutions `(n, c)`, and information about the matrix that the solver has found.

    Args:
        residuals: `(c,)` recomputed relative residuals; `residual` is the largest of them.
        checks: number of passes that recomputed residuals, in addition to the `iterations`.
        largest: largest `|A p|` over the unit search directions p, ridge included; a lower bound of the largest eigenvalue.
        smallest: estimate of the smallest eigenvalue, ridge included, from the Lanczos matrix of the preconditioned
            problem; 0 if it is unknown.
        curvature: most negative Rayleigh quotient, ridge included; 0 if there was none.
    """

    residuals: np.ndarray
    checks: int
    largest: float
    smallest: float
    curvature: float

    def explain(self, ridge: float, mean_diagonal: float | None = None) -> str:
        """A text for the user that explains the outcome and gives a remedy.

        Args:
            ridge: the absolute ridge of the solve.
            mean_diagonal: mean of the matrix's diagonal; if given, the text also states the relative ridge.
        """
        if self.reason is not Reason.INDEFINITE:
            return f"relative residual {self.residual:.1e} after {self.iterations} passes: {self.reason}"
        needed = ridge - 2 * self.curvature
        relative = "" if not mean_diagonal else f" (relative to the mean of the diagonal: {needed / mean_diagonal:.1e})"
        return (
            f"the kernel with ridge {ridge:.3g} is indefinite at the level of {-self.curvature / self.largest:.0e} of "
            "its largest eigenvalue: use float64 tiles (kernel.dtype=float64), or a ridge of at least "
            f"{needed:.1e}{relative}"
        )


def block_cg(
    operator: LinearMap,
    b: Float64[np.ndarray, "n c"],
    *,
    ridge: float = 0.0,
    start: Float64[np.ndarray, "n c"] | None = None,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-8,
    settle_for: Callable[[np.ndarray], float] | None = None,
    max_steps: int = 1000,
    exact: Callable[[np.ndarray], np.ndarray] | None = None,
    rounding: float = sys.float_info.epsilon,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 10,
    on_step: Callable[[CgStep], None] | None = None,
) -> CgSolution:
    """Solve `(A + ridge I) X = b` for a positive definite `A`. The relative residual of every column reaches the tolerance.

    Args:
        operator: `A`. Each step calls `matmul` once with at most c columns.
        b: `(n, c)` of any rank; columns of zeros have zero solutions.
        ridge: absolute, `>= 0`.
        start: initial solution, for example that of another ridge. None is zero, which saves a pass.
        preconditioner: positive definite, made for this ridge; None uses no preconditioner.
        tolerance: largest `|b - (A + ridge) x| / |b|` of every column, recomputed with `exact` products.
        settle_for: a function from the present solution `(n, c)` to a tolerance that also suffices if it is larger; None uses only
            `tolerance`.
        max_steps: largest number of passes, without those that recompute residuals.
        exact: computes `A x` in float64 for recomputed residuals; None uses the operator's product.
        rounding: unit roundoff of the operator's products, for example 6e-8 for float32.
        checkpoint: state to continue from. It is replaced every `checkpoint_every` steps and at the end.
        checkpoint_every: number of steps between checkpoints.
        on_step: called after every new step.

    Returns:
        The solution with its recomputed residuals, and `reason` CONVERGED, MAX_STEPS, STAGNATED or INDEFINITE.

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of range.
        NumericalError: if a product is not finite.
    """
    b = np.asarray(b, dtype=np.float64)
    if b.ndim != 2 or len(b) != operator.n or (start is not None and start.shape != b.shape):
        raise ValueError(f"right-hand sides of shape {b.shape} do not fit an operator of size {operator.n}")
    if not np.isfinite(b).all() or (start is not None and not np.isfinite(start).all()):
        raise ValueError("the right-hand sides hold non-finite values: clean the labels (data.drop_invalid=true)")
    if max_steps < 1 or checkpoint_every < 1 or not tolerance > 0 or not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(
            f"{max_steps=}, {checkpoint_every=}, {tolerance=} and {ridge=} must be positive, the ridge >= 0"
        )
    run = CgRecurrence(operator, b, ridge, preconditioner or Identity(), exact or operator.matmul, rounding)
    records = [] if checkpoint is None else list(checkpoint.replay())
    if records:
        run.restore(records[-1])
    else:
        run.begin(start)
    saved = run.steps

    lanes = Lanes()

    def keep() -> None:
        nonlocal saved
        if checkpoint is not None and run.steps > saved:
            checkpoint.append(0, run.steps, run.state())
            saved = run.steps

    while True:
        wanted = tolerance if settle_for is None else max(tolerance, settle_for(run.x @ run.combine))
        reason = run.verdict(wanted, max_steps)
        done = reason is not Reason.RUNNING
        if done or run.steps % checkpoint_every == 0:
            keep()
        if done:
            return _solution(run, reason)
        take_step(run, functools.partial(run.advance, wanted), on_step, keep, lanes)


def _solution(run: CgRecurrence, reason: Reason) -> CgSolution:
    return CgSolution(
        value=run.x @ run.combine,
        residual=run.worst,
        iterations=run.steps,
        reason=reason,
        residuals=run.residuals,
        checks=run.checks,
        largest=run.largest,
        smallest=run.lanczos.smallest() * run.preconditioner.smallest,
        curvature=run.curvature,
    )
