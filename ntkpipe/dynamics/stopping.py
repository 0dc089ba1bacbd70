"""When a growing Krylov space is large enough.

What decides is the error bound of `bounds.py` from all eigenvectors of the projected matrix, O(m^3). It is asked for only
once a part of it that costs O(m k^2), from the blocks alone, has fallen below the tolerance: the factor at `t = inf`, and at
finite times of gradient flow the residual at the time itself instead of its largest up to then. That part is never above
the whole, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ntkpipe.dynamics.bounds import ENERGY_SAFETY, is_rounding, largest_factor
from ntkpipe.dynamics.filters import GradientFlow, SpectralFilter
from ntkpipe.dynamics.gains import RIGOROUS, final_gain, time_gain
from ntkpipe.dynamics.krylov import BlockKrylov, KrylovSolution, lowered
from ntkpipe.dynamics.talbot import flow_shifts
from ntkpipe.linalg.block_tridiagonal import LastRows
from ntkpipe.linalg.lanczos import LanczosResult

# The cheap part may differ by the tolerance of its smallest eigenvalue; so much below the whole it surely is.
_MARGIN = 0.99
# Eigenvalues of so many times the noise count as resolved.
_RESOLVED = 2.0
# Tolerances below may be out of the reach of float64: whether rounding is all that is left is looked at as well.
_FINE = 1e-9


@dataclass
class StopRule:
    """Says when a growing Krylov space is large enough; made by `stop_rule`.

    It looks at the recurrence alone, never at a clock: a resumed run stops where the undisturbed one does.

    Attributes:
        history: (block steps, dimension, bound) of every check, for the convergence figure; the bound is the largest
            Krylov part over times, ridges, classes and test images, relative to `scales`, or what is known to be below it.
        solution: that of the last check that needed all eigenvectors; the final result may be larger, where the space
            became invariant or the steps ran out.
        eigensystems: how often they were needed.
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
    _final: LastRows | None = None
    _flow: LastRows | None = None

    def __call__(self, result: BlockKrylov) -> bool:
        """True when the Krylov part of every bound is at most `tolerance` or what rounding leaves, or nothing is left to add."""
        steps, scale = len(result.block_sizes), math.sqrt(self.largest_test_diagonal)
        if isinstance(result, LanczosResult) and not result.invariant and self.tolerance >= _FINE:
            part = self._part(result)
            if part is not None and _MARGIN * part * scale > self.tolerance:
                self.history.append((steps, result.tridiagonal.size, part * scale))
                return False
        self.solution = KrylovSolution.from_lanczos(result, self.noise, self.ceiling)
        self.eigensystems += 1
        worst = scale * largest_factor(self.solution, self.spectral_filter, self.times, self.ridges, self.scales)
        self.history.append((steps, len(self.solution.values), worst))
        if worst <= self.tolerance or not len(self.solution.tail):
            return True
        return self.tolerance < _FINE and is_rounding(self.solution, self.spectral_filter, self.times, self.ridges)

    def _part(self, result: LanczosResult) -> float | None:
        """A part of the largest Krylov factor; None where the blocks alone do not give it."""
        found = result.tridiagonal.smallest()
        if found is None or found[0] <= self.noise:
            return None  # null directions are left out, which the blocks alone cannot do
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
        return worst

    def _at_infinity(self, result: LanczosResult, value: float, smallest: float) -> list[float]:
        """Per ridge what `bounds.final_factor` gives, from the last block rows of solutions and inverses."""
        ridges, coupling = np.array(self.ridges), result.coupling
        if self._final is None:
            self._final = LastRows(np.concatenate([ridges, [0.0]]), result.start)
        self._final.extend(result.tridiagonal)
        below = LastRows(
            (ridges - value) / 2, np.zeros((len(result.start), 0))
        )  # of H + ridge - (smallest + ridge) / 2
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
        """Over finite times: the gain times the residual at the time itself."""
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
    """`bounds.radau` from the last diagonal block of `(H - least)^-1 - H^-1`, H with its ridge."""
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
    """A stop rule for block Lanczos, for the Krylov part of the error bound of every prediction.

    Args:
        spectral_filter: the training dynamics.
        times: in steps; None (chosen later, from the spectrum) is `inf`, the hardest.
        ridges: absolute.
        largest_test_diagonal: the largest `T_**` over the test images.
        tolerance: of a prediction, in units of `scales`.
        scales: of the outputs, (c,) above 0, or one for all.
        noise: see `KrylovSolution`.
        ceiling: see `KrylovSolution`. Where the noise hides it, no number of steps resolves it, and it says nothing of when to stop.
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
    """The ceiling of the smallest eigenvalue that stopping looks at: inf where the noise hides it."""
    return ceiling if ceiling > _RESOLVED * noise else math.inf
