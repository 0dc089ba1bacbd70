"""The rule that stops when a growing Krylov space is large enough.

The rule uses the error bound of `bounds.py` from all eigenvectors of the projected matrix, which costs O(m^3). It computes
this bound only when a part of it that costs O(m k^2), from the blocks, is below the tolerance. This part is the factor at
`t = inf`, and at finite times of gradient flow the factor with the residual at the time itself instead of the largest residual up to it. Up
to rounding, the part is never above the whole bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ntkpipe.dynamics.bounds import ENERGY_SAFETY, is_rounding, largest_factor
from ntkpipe.dynamics.filters import EPS, GradientFlow, SpectralFilter
from ntkpipe.dynamics.gains import RIGOROUS, final_gain, gain_at, time_gain
from ntkpipe.dynamics.krylov import BlockKrylov, KrylovSolution, lowered
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.dynamics.talbot import NODES, flow_shifts
from ntkpipe.linalg.block_tridiagonal import LastRows, eliminates
from ntkpipe.linalg.lanczos import LanczosResult, growing_schedule

# Factor on the cheap part, whose smallest eigenvalue is only approximate, so that it is below the whole bound.
_MARGIN = 0.99
# Eigenvalues above this multiple of the noise count as resolved.
_RESOLVED = 2.0
# If only rounding may remain, the whole bound is computed each time the cheap part has decreased by this factor.
_FALLEN = 10.0
# Least number of errors for a trend.
_TREND = 4


@dataclass
class StopRule:
    """The rule that stops when a growing Krylov space is large enough, made by `stop_rule`.

    It depends only on the recurrence, not on time, so a resumed run stops at the same step as an uninterrupted one.

    Attributes:
        history: (block steps, dimension, bound) of every check, for the convergence figure. The bound is the largest
            Krylov term over times, ridges, classes and test images, relative to `scales`, or a part of it.
        solution: the solution of the last check that needed all eigenvectors. The final result may be larger, if the space
            became invariant or `max_steps` was reached.
        eigensystems: number of checks that needed all eigenvectors.
        rounding: whether the rule stopped above the tolerance because only rounding remains.
    """

    spectral_filter: SpectralFilter
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    largest_test_diagonal: float
    tolerance: float
    scales: np.ndarray | float = 1.0
    noise: float = 0.0
    ceiling: float = math.inf
    history: list[tuple[int, int, float]] = field(default_factory=list)
    solution: KrylovSolution | None = None
    eigensystems: int = 0
    rounding: bool = False
    _looked: float = math.inf
    _final: LastRows | None = None
    _flow: LastRows | None = None

    def __call__(self, result: BlockKrylov) -> bool:
        """True if the Krylov term of every bound is at most `tolerance` or at the level of rounding, or the space is invariant."""
        steps, scale = len(result.block_sizes), math.sqrt(self.largest_test_diagonal)
        if isinstance(result, LanczosResult) and not result.invariant:
            found = self._part(result)
            if found is not None and _MARGIN * found[0] * scale > self.tolerance:
                part, rounding = found
                if part > rounding or part > self._looked / _FALLEN:
                    self.history.append((steps, result.tridiagonal.size, part * scale))
                    return False
                self._looked = part
        self.solution = KrylovSolution.from_lanczos(result, self.noise, self.ceiling)
        self.eigensystems += 1
        worst = scale * largest_factor(self.solution, self.spectral_filter, self.times, self.ridges, self.scales)
        self.history.append((steps, len(self.solution.values), worst))
        if worst <= self.tolerance or not len(self.solution.tail):
            return True
        self.rounding = is_rounding(self.solution, self.spectral_filter, self.times, self.ridges)
        return self.rounding

    @staticmethod
    def check_every(step: int) -> int:
        """The next step at which the rule is called."""
        return growing_schedule(step)

    def steps_to_go(self) -> int | None:
        """Number of remaining steps by the trend of the bounds; None if there is no trend."""
        return steps_to_go([(step, bound) for step, _, bound in self.history], self.tolerance)

    def _part(self, result: LanczosResult) -> tuple[float, float] | None:
        """A part of the largest Krylov factor, and a bound on the effect of rounding; None if the blocks do not give them."""
        finite = sum(math.isfinite(time) for time in self.times) * isinstance(self.spectral_filter, GradientFlow)
        shifts = len(self.ridges) * (2 + NODES * finite)
        if not eliminates(result.next_block.shape[1], result.block_sizes[0], shifts):
            return None
        found = result.tridiagonal.smallest()
        if found is None or found[0] <= self.noise:
            return None  # null directions must be left out, which takes eigenvectors
        value, last = found
        below = lowered(value, float(np.linalg.norm(result.coupling @ last)))
        value = min(value, self.ceiling)
        smallest = max(min(below, self.ceiling) - self.noise, 0.0)
        worst = 0.0
        try:
            if math.inf in self.times:
                worst = max(worst, *self._at_infinity(result, value, smallest))
            if isinstance(self.spectral_filter, GradientFlow):
                worst = max(worst, self._at_times(result, smallest))
        except np.linalg.LinAlgError:
            return None
        return worst, self._rounding(result, value, smallest)

    def _rounding(self, result: LanczosResult, value: float, smallest: float) -> float:
        """Bound on the effect of rounding on the factor; see `residuals.residuals_at`. It uses bounds on the norms of the weights."""
        matrix = result.tridiagonal
        blocks = [*matrix.diagonals, *matrix.couplings, result.coupling]
        largest = max(float(np.linalg.norm(block)) for block in blocks) * 3
        target = float((np.linalg.norm(result.start, axis=0) / self.scales).max(initial=0.0))
        worst = 0.0
        for time in self.times:
            for ridge in self.ridges:
                scaled = self.spectral_filter.scaled_time(time)
                weights = min(scaled, 1.0 / (value + ridge)) * target
                gain = gain_at(self.spectral_filter, time, ridge, smallest, largest).value
                worst = max(worst, gain * ROUNDING * EPS * ((largest + ridge) * weights + target))
        return worst

    def _at_infinity(self, result: LanczosResult, value: float, smallest: float) -> list[float]:
        """The Krylov factor at `t = inf` of `bounds` for each ridge, from the last block rows of solutions and inverses."""
        ridges, coupling = np.array(self.ridges), result.coupling
        if self._final is None:
            self._final = LastRows(np.concatenate([ridges, [0.0]]), result.start)
        self._final.extend(result.tridiagonal)
        below = LastRows(
            (ridges - value) / 2, np.zeros((len(result.start), 0))
        )  # for H + ridge - (smallest + ridge) / 2
        below.extend(result.tridiagonal)
        out = []
        for j, ridge in enumerate(self.ridges):
            tail = coupling @ self._final.rows[j]
            inverse = self._final.inverse[j]
            gain = final_gain(ridge, smallest)
            plain = gain.value * np.linalg.norm(tail, axis=0)
            rigorous = _radau(coupling, tail, self._final.inverse[-1] - inverse, ridge) if ridge > 0 else plain
            if gain.kind == RIGOROUS:
                out.append(float((np.minimum(plain, rigorous) / self.scales).max(initial=0.0)))
                continue
            least = value + ridge
            energy = np.linalg.norm(result.start, axis=0) / math.sqrt(least)
            estimate = np.minimum(energy, _radau(coupling, tail, below.inverse[j] - inverse, least / 2))
            least = np.minimum(np.minimum(plain, rigorous), ENERGY_SAFETY * estimate)
            out.append(float((least / self.scales).max(initial=0.0)))
        return out

    def _at_times(self, result: LanczosResult, smallest: float) -> float:
        """The largest gain times the residual at the time itself, over finite times."""
        flows = [
            flow_shifts(s) for t in self.times if math.isfinite(t) and (s := self.spectral_filter.scaled_time(t)) > 0
        ]
        if not flows:
            return 0.0
        if self._flow is None:
            shifts = np.concatenate([z for z, _, _ in flows])
            self._flow = LastRows(np.add.outer(np.array(self.ridges), shifts).ravel(), result.start)
        self._flow.extend(result.tridiagonal)
        rows = self._flow.rows.reshape(len(self.ridges), len(flows), -1, *self._flow.rows.shape[1:])
        weights = np.stack([phi for _, phi, _ in flows])
        tails = result.coupling @ np.einsum("rtqkc,tq->rtkc", rows, weights).real
        norms = (np.linalg.norm(tails, axis=2) / self.scales).max(axis=2, initial=0.0)
        times = [t for t in self.times if math.isfinite(t) and t > 0]
        worst = 0.0
        for j, ridge in enumerate(self.ridges):
            for i, time in enumerate(times):
                gain = time_gain(self.spectral_filter, time, ridge, smallest, math.inf).value
                worst = max(worst, gain * float(norms[j, i]))
        return worst


def _radau(coupling: np.ndarray, tail: np.ndarray, difference: np.ndarray, least: float) -> np.ndarray:
    """The block Gauss-Radau bound of `bounds`, from the last diagonal block of `(H - least)^-1 - H^-1`. H includes the ridge."""
    s = least * np.eye(len(coupling)) + coupling @ difference @ coupling.T
    return np.linalg.norm(np.linalg.solve(np.linalg.cholesky((s + s.T) / 2), tail), axis=0)


def stop_rule(
    spectral_filter: SpectralFilter,
    times: Sequence[float] | None,
    ridges: Sequence[float],
    *,
    largest_test_diagonal: float,
    tolerance: float,
    scales: np.ndarray | float = 1.0,
    noise: float = 0.0,
    ceiling: float = math.inf,
) -> StopRule:
    """A stopping rule of block Lanczos for the Krylov term of the error bound of every prediction.

    Args:
        spectral_filter: the training dynamics.
        times: times in steps. None, if they are chosen later from the spectrum, is `inf`, the hardest time.
        ridges: absolute ridges.
        largest_test_diagonal: the largest `T_**` over the test images.
        tolerance: largest acceptable error of a prediction, in units of `scales`.
        scales: scales of the outputs, (c,) above 0, or one number for all.
        noise: see `KrylovSolution`.
        ceiling: see `KrylovSolution`. It is ignored if the noise hides it, because then no number of steps resolves it.
    """
    return StopRule(
        spectral_filter,
        (math.inf,) if times is None else tuple(times),
        tuple(ridges),
        largest_test_diagonal,
        tolerance,
        scales,
        noise,
        resolved(ceiling, noise),
    )


def resolved(ceiling: float, noise: float) -> float:
    """The upper bound on the smallest eigenvalue that stopping rules use; inf if the noise hides it."""
    return ceiling if ceiling > _RESOLVED * noise else math.inf


def steps_to_go(errors: Sequence[tuple[int, float]], wanted: float) -> int | None:
    """Number of steps until an error falls to `wanted`, by its trend over the last half of the steps; None if there is no trend.

    Args:
        errors: (step, error), in order.
        wanted: the wanted error, above 0.
    """
    if not errors:
        return None
    last, error = errors[-1]
    recent = [(step, value) for step, value in errors if 2 * step > last and 0 < value < math.inf]
    if len(recent) < _TREND or error <= wanted:
        return None
    steps, values = np.array(recent).T
    slope = float(np.polyfit(steps, np.log(values), 1)[0])
    return math.ceil(math.log(error / wanted) / -slope) if slope < 0 else None
