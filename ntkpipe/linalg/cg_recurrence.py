"""The recurrence of block conjugate gradients. Each step takes one pass over the matrix, and only a few vectors are kept.

With `A` the matrix plus its ridge, `M` the preconditioner and `P` an orthonormal block of search directions, a step is

    theta = P^T A P,   X += P alpha,   R -= A P alpha,   alpha = theta^-1 P^T R,
    Z = M^-1 R,        P <- orth(Z + P beta),            beta = -theta^-1 (A P)^T Z.

This is the breakdown-free form of Ji & Li 2017 (doi:10.1007/s10543-016-0631-z). Columns converge one after another, and O'Leary's
formulas then divide by a singular `R^T Z`. Here a dependent direction is left out of the search. `X` and `R` remain consistent for any
`P`, and every step minimises the error in the energy norm over `P`. Columns of `Z` are scaled by their residuals before
orthonormalisation, so that a converged column does not look dependent. Dubrulle's variant orthonormalises `R`. It takes as many
passes, but loses the part of `R` that it drops; a column that shares no directions took three times as many.

Centred labels of c classes have rank c - 1. So the right-hand sides are factored once, `b = B C`, with orthonormal `B` of their
numerical rank, and the solve is for `B`. Otherwise the last direction of the block is rounding, and searching it spoiled the other
directions: 187 passes instead of 50 (1,200 images, residual 1e-8; Lanczos with full reorthogonalisation took 39).

Rounding makes the residual of the recurrence drift from `b - A X`. It is recomputed before a solve counts as converged, and
when the drift may have reached a tenth of it (van der Vorst & Ye 2000, doi:10.1137/S1064827599353865). So float32 products can
reach a float64 residual.

New directions are conjugate to the last ones by construction. They are conjugate to earlier ones only until rounding has grown by the
condition number of the matrix, so a solve may stall far above the accuracy of float64. A stalled solve restarts from its true residual.
It ends if the restart does not halve the best residual either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.cg_lanczos import LanczosMatrix
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.preconditioner import Preconditioner
from ntkpipe.linalg.recurrence import orthonormal_rows
from ntkpipe.linalg.solution import Reason

_EPS = float(np.finfo(np.float64).eps)
# Directions below this relative size (sqrt eps) count as dependent and are left out, because half of their digits are rounding.
_DEPENDENT = 1e-8
# Smallest relative eigenvalue of `Z^T R` that is used. The root of a smaller one is too inaccurate for the Lanczos coefficients.
_DEPENDENT_SQUARED = 1e-10
# Rayleigh quotients have rounding errors of the unit roundoff of products times |A|. Values below this multiple of it carry no information.
_NOISE = 8.0
# Least number of passes between residuals that are recomputed only because of a possible drift.
_TRUST = 10
# Number of consecutive recomputed residuals, each above half of the one before, that means stagnation.
_FAILURES = 3
# A solve stagnates if the best residual has not halved for this number of passes, and for half of all passes.
_PATIENCE = 100


@dataclass(frozen=True)
class CgStep:
    """Record of one step, for lines of progress and for the convergence figure.

    Args:
        step: number of the step, from 1.
        directions: number of search directions in this step.
        residual: largest relative residual of a column, from the recurrence.
        product_seconds: seconds of the pass over the matrix.
        other_seconds: seconds of everything else, recomputed residuals included.
    """

    step: int
    directions: int
    residual: float
    product_seconds: float
    other_seconds: float


class CgRecurrence:
    """The state between two steps. A checkpoint contains all of it.

    Args:
        operator: `A` without its ridge, n x n.
        b: `(n, c)` finite right-hand sides.
        ridge: absolute.
        preconditioner: positive definite.
        exact: computes `A x` in float64, for recomputed residuals.
        rounding: unit roundoff of the operator's products.
    """

    def __init__(
        self,
        operator: LinearMap,
        b: np.ndarray,
        ridge: float,
        preconditioner: Preconditioner,
        exact: Callable[[np.ndarray], np.ndarray],
        rounding: float,
    ) -> None:
        self.operator, self.ridge, self.preconditioner = operator, ridge, preconditioner
        self.exact, self.rounding = exact, max(rounding, _EPS)
        self.norms = np.linalg.norm(b, axis=0)
        # b = block @ combine + lost, with an orthonormal block. x and r belong to the block.
        rows, factor, _ = orthonormal_rows((b / np.where(self.norms > 0, self.norms, 1.0)).T, len(b) * _EPS)
        self.block, self.combine = np.ascontiguousarray(rows.T), factor * self.norms
        self.lost = b - self.block @ self.combine
        self.x, self.r, self.p = np.zeros_like(self.block), self.block.copy(), np.zeros((len(b), 0))
        self.drift = np.zeros(b.shape[1])  # bound on the difference between the residual of a column and the true one
        self.steps = self.checks = 0
        self.measured = True  # `r` is the true residual
        self.measured_at, self.measured_worst, self.failures = 0, math.inf, 0
        self.best, self.best_at = math.inf, 0
        self.anew = False  # whether the solve was restarted since the best residual last halved
        self.largest, self.curvature = 0.0, 0.0
        # Coordinates in `p` of the block Z T, which is orthonormal in M, and the contribution of the last block to its diagonal block.
        self.coordinates, self.before = np.zeros((0, 0)), np.zeros((0, 0))
        self.lanczos = LanczosMatrix()

    def begin(self, start: np.ndarray | None) -> None:
        """Begin at the solution `start`, or at zero if it is None."""
        if start is not None and start.any():
            self.x = start @ np.linalg.pinv(self.combine)
            self._measure()
        self._begin()

    def _begin(self) -> None:
        """Begin or restart with the preconditioned residual as the only search directions."""
        z, transform = self._precondition()
        self.before = np.zeros((transform.shape[1],) * 2)
        self.lanczos.cut(transform.shape[1])
        self._search(z, transform)

    @property
    def residuals(self) -> np.ndarray:
        """Relative residual (c,) of every right-hand side; 0 if the right-hand side is zero."""
        size = np.linalg.norm(self.r @ self.combine + self.lost, axis=0)
        return size / np.where(self.norms > 0, self.norms, 1.0)

    @property
    def worst(self) -> float:
        """The largest relative residual."""
        return float(self.residuals.max(initial=0.0))

    def verdict(self, tolerance: float, max_steps: int) -> Reason:
        """Whether to continue, and otherwise why not.

        It depends only on the state, so a resumed run ends at the same step as an uninterrupted one. It may restart a stalled solve.
        """
        if not self.measured and self.worst <= tolerance:
            self._measure()
        if self.worst <= tolerance:
            return Reason.CONVERGED
        reason = Reason.RUNNING
        if self.curvature < 0:
            reason = Reason.INDEFINITE
        elif self._stalled():
            reason = Reason.STAGNATED
        elif self.steps >= max_steps:
            reason = Reason.MAX_STEPS
        if reason is not Reason.RUNNING and not self.measured:
            self._measure()
            if self.worst <= tolerance:
                return Reason.CONVERGED
        if reason is Reason.STAGNATED and not self.anew and self.steps < max_steps:
            self._begin()
            self.anew, self.failures, self.best_at = True, 0, self.steps
            return Reason.RUNNING if self.p.shape[1] else reason
        return reason

    def _stalled(self) -> bool:
        patience = max(_PATIENCE, self.steps // 2)
        return self.p.shape[1] == 0 or self.failures >= _FAILURES or self.steps - self.best_at > patience

    def advance(self, tolerance: float) -> CgStep:
        """Make one pass over the matrix. If all residuals seem to be within `tolerance`, they are recomputed.

        Raises:
            NumericalError: if the product or a residual is not finite.
        """
        began = time.perf_counter()
        directions = self.p.shape[1]
        q = np.array(self.operator.matmul(self.p), dtype=np.float64)
        multiplied = time.perf_counter()
        if not np.isfinite(q).all():
            raise NumericalError(
                f"the product of step {self.steps + 1} is not finite: a stored tile holds NaN or infinity; "
                "run `ntkpipe verify` to find and recompute it"
            )
        q += self.ridge * self.p
        self.steps += 1
        self.largest = max(self.largest, math.sqrt(max(0.0, float(np.linalg.eigvalsh(q.T @ q)[-1]))))
        theta = self.p.T @ q
        values, vectors = np.linalg.eigh((theta + theta.T) / 2)
        noise = _NOISE * self.rounding * self.largest
        if values[0] < -noise:
            self.curvature = float(values[0])
        else:
            # In the eigenvectors of theta, its inverse is a division by numbers, and directions of the null space can be left out.
            kept = values > noise
            values, vectors = values[kept], vectors[:, kept]
            self.p, q, self.coordinates = self.p @ vectors, q @ vectors, vectors.T @ self.coordinates
            if kept.any():
                self._step(values, q, tolerance)
        finished = time.perf_counter()
        return CgStep(self.steps, directions, self.worst, multiplied - began, finished - multiplied)

    def _step(self, values: np.ndarray, q: np.ndarray, tolerance: float) -> None:
        """Step along `p`, whose images are `q` and whose Rayleigh quotients are `values`, and find the next directions."""
        alpha = (self.p.T @ self.r) / values[:, None]
        self.x += self.p @ alpha
        self.r -= q @ alpha
        self.measured = False
        # p is orthonormal, so this is the length of the step of each column.
        moved = np.linalg.norm(alpha @ self.combine, axis=0) / np.where(self.norms > 0, self.norms, 1.0)
        self.drift += self.rounding * self.largest * moved
        residuals = self.residuals
        suspect = bool(((residuals > tolerance) & (self.drift > 0.1 * residuals)).any())
        if (residuals <= tolerance).all() or (suspect and self.steps - self.measured_at >= _TRUST):
            self._measure()
        if self.worst < self.best / 2:
            self.best, self.best_at, self.anew = self.worst, self.steps, False
        self.lanczos.add(self.coordinates.T @ (values[:, None] * self.coordinates) + self.before)
        z, transform = self._precondition()
        beta = -(q.T @ z) / values[:, None]
        v = z + self.p @ beta
        # A second time, because the remainder of a z that lies along p is small and contains the rounding of the first time.
        again = -(q.T @ v) / values[:, None]
        v, beta = v + self.p @ again, beta + again
        coupled = beta @ transform
        self.lanczos.couple(-coupled.T @ (values[:, None] * self.coordinates))
        self.before = coupled.T @ (values[:, None] * coupled)
        self._search(v, transform)

    def _search(self, v: np.ndarray, transform: np.ndarray) -> None:
        """Take the span of `v` (n, c) as the next directions."""
        norms = np.linalg.norm(v, axis=0)
        rows, factor, _ = orthonormal_rows((v / np.where(norms > 0, norms, 1.0)).T, _DEPENDENT)
        self.p = np.ascontiguousarray(rows.T)
        self.coordinates = (factor * norms) @ transform

    def _precondition(self) -> tuple[np.ndarray, np.ndarray]:
        """`Z = M^-1 R` with columns scaled by the residuals, and `T` for which `Z T` is orthonormal in the inner product of M."""
        size = np.linalg.norm(self.r, axis=0)
        r = self.r / np.where(size > 0, size, 1.0)
        z = self.preconditioner.apply(r)
        gamma = z.T @ r
        values, vectors = np.linalg.eigh((gamma + gamma.T) / 2)
        kept = values > _DEPENDENT_SQUARED * values.max(initial=float(np.finfo(np.float64).tiny))
        return z, vectors[:, kept] / np.sqrt(values[kept])

    def _measure(self) -> None:
        """Recompute the residual from the solution."""
        self.r = self.block - self.exact(self.x) - self.ridge * self.x
        self.checks += 1
        self.measured, self.measured_at, self.drift = True, self.steps, np.zeros_like(self.drift)
        worst = self.worst
        if not math.isfinite(worst):
            raise NumericalError("the residual is not finite: run `ntkpipe verify` to find the damaged tile")
        self.failures = self.failures + 1 if worst > self.measured_worst / 2 else 0
        self.measured_worst = worst

    def state(self) -> dict[str, np.ndarray]:
        """The state for `restore`, as plain arrays."""
        scalars = (self.steps, self.checks, self.measured_at, self.measured_worst, self.failures)
        return {
            "x": self.x,
            "r": self.r,
            "p": self.p,
            "block": self.block,
            "combine": self.combine,
            "drift": self.drift,
            "coordinates": self.coordinates,
            "before": self.before,
            "scalars": np.array([*scalars, self.best, self.best_at, self.largest, self.curvature, self.anew]),
            **self.lanczos.state(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from the `state` of an earlier run.

        Raises:
            ValueError: if it belongs to other right-hand sides.
        """
        if state["x"].shape != self.x.shape:
            raise ValueError("the checkpoint does not belong to these right-hand sides: delete it")
        # Another BLAS may have computed another factorisation of b. x, r and p belong to the stored one.
        b = self.block @ self.combine + self.lost
        self.block, self.combine = state["block"], state["combine"]
        self.lost = b - self.block @ self.combine
        if (np.linalg.norm(self.lost, axis=0) > 1e-8 * self.norms).any():
            raise ValueError("the checkpoint was made from other right-hand sides: delete it")
        for name in ("x", "r", "p", "drift", "coordinates", "before"):
            setattr(self, name, state[name])
        steps, checks, at, worst, failures, best, best_at, largest, curvature, anew = state["scalars"].tolist()
        self.steps, self.checks, self.measured_at, self.failures = int(steps), int(checks), int(at), int(failures)
        self.measured_worst, self.best, self.best_at = worst, best, int(best_at)
        self.largest, self.curvature, self.anew = largest, curvature, bool(anew)
        self.measured = False  # a stored residual is recomputed before the solve counts as converged
        self.lanczos = LanczosMatrix.of(state)
