"""Movements of the means of some test points as a Krylov space grows, and an estimate of their movements by further steps.

With `G = T_* V` the means are `G phi(H + ridge) E_1 R`. At `t = inf` this is `G (H + z)^-1 E_1 R` with one shift z. A finite time of
gradient flow is a sum of 14 such terms with complex shifts (`talbot.py`). Block elimination `H + z = L S L^T` turns a term into a sum
over the steps, `sum_j W_j X_j`. Here X_j are the last block rows of `LastRows`, and `W L^T = G` has a similar recurrence:

    W_1 = G_1,      W_j+1 = G_j+1 - W_j S_j^-1 B_j^T.

A step costs O(p k^2) for p points and blocks of k vectors, for any size of the space. The means come from all eigenvectors of `H` instead
if directions are left out, at finite times of other dynamics, and if blocks are so wide that eigenvectors cost less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ntkpipe.dynamics.filters import GradientFlow, SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.talbot import flow_shifts
from ntkpipe.linalg.block_tridiagonal import LastRows, eliminates
from ntkpipe.linalg.lanczos import LanczosResult

SAFETY, LEAST = 2.0, 0.5
"""Safety factor on the remaining movement, which assumes that movements continue to shrink at the same rate, and its least share of the
last movement. On 1,000 random problems (benchmarks/stopping.py), fewer than 1 in 1,000 predictions had larger errors than the target."""
# Movements are changes over this number of steps, or over this share of all steps if it is larger.
_STEPS, _SHARE = 2, 0.08
# Number of random sums of outputs. They replace the outputs if there are more than twice as many.
_SUMS = 16


def steps_back(step: int) -> int:
    """Number of steps over which a movement is computed: `max(2, 0.08 step)`."""
    return max(_STEPS, round(_SHARE * step))


def summed(outputs: int) -> bool:
    """Whether there are so many outputs that random sums replace them."""
    return outputs > 2 * _SUMS


def summed_outputs(columns: np.ndarray) -> np.ndarray:
    """The columns (..., c). Many outputs are replaced by random sums (..., k), whose expected mean square is that over the outputs."""
    c = columns.shape[-1]
    if not summed(c):
        return columns
    return columns @ (np.random.default_rng(43).choice([-1.0, 1.0], size=(c, _SUMS)) / math.sqrt(c))


def in_sums(solution: KrylovSolution, scales: np.ndarray | float) -> KrylovSolution:
    """The solution for the outputs of `summed_outputs`, in units of `scales` (c,)."""
    error = solution.start_error
    if error is not None:
        error = error / scales
        if summed(len(error)):  # the expected mean square of the sums is that over the outputs
            error = np.full(_SUMS, math.sqrt(float(np.mean(error**2))))
    return replace(solution, targets=summed_outputs(solution.targets / scales), start_error=error)


def still_to_come(last: np.ndarray, before: np.ndarray, most: float = SAFETY) -> np.ndarray:
    """Estimate of the remaining movement in units of the last movement: `most rho / (1 - rho)`, between `LEAST` and `most`.

    Args:
        last: norms of the last movement.
        before: norms of the movement before. rho is the ratio of the two.
        most: safety factor, and upper limit.
    """
    gap = np.maximum(before - last, 1e-6 * before)  # growing movements count as movements that hardly shrink
    return np.clip(most * last / np.where(gap > 0, gap, 1.0), LEAST, most)


@dataclass
class TestMeans:
    """Means of test points in a growing space, updated at every step.

    Args:
        rows: (p, n) rows of the test-train kernel.
        watched: (w, n) further vectors whose products with the basis are needed.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.
        scales: (c,) scales of the outputs, which are the units of the means.

    Attributes:
        along: (p + w, m), `rows` and `watched` times the basis.
        by_blocks: whether means come from the blocks at every step. Otherwise the caller must call `record`.
    """

    __test__ = False  # tells pytest that this is not a test class

    rows: np.ndarray
    watched: np.ndarray
    spectral_filter: SpectralFilter
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    scales: np.ndarray
    by_blocks: bool = True
    _parts: list[np.ndarray] = field(default_factory=list)
    _history: dict[int, np.ndarray] = field(default_factory=dict)
    _last: LastRows | None = None
    _test: np.ndarray | None = None
    _sum: np.ndarray | None = None

    def __post_init__(self) -> None:
        finite = any(math.isfinite(time) for time in self.times)
        self.by_blocks &= isinstance(self.spectral_filter, GradientFlow) or not finite

    @property
    def outputs(self) -> int:
        """Number of outputs, c."""
        return len(self.scales)

    @property
    def along(self) -> np.ndarray:
        """See the class."""
        return np.concatenate([np.zeros((len(self.rows) + len(self.watched), 0)), *self._parts], axis=1)

    def follow(self, result: LanczosResult) -> None:
        """Add the new steps of a space that has grown since the last call."""
        self.by_blocks &= eliminates(self.rows.shape[1], result.block_sizes[0], len(self._shifts()))
        low = sum(part.shape[1] for part in self._parts)
        for j in range(len(self._parts), len(result.block_sizes)):
            # Blocks are multiplied one at a time, so a resumed run gets the same products in every bit.
            block = result.basis[low : low + result.block_sizes[j]].T
            self._parts.append(np.concatenate([self.rows @ block, self.watched @ block]))
            low += block.shape[1]
            if self.by_blocks:
                self._eliminate(result, j)

    def record(self, step: int, solution: KrylovSolution) -> None:
        """Set the means of a step from all eigenvectors."""
        along = self.along[: len(self.rows), : len(solution.values)]
        scaled = in_sums(solution, self.scales)
        self.by_blocks = False
        self._history[step] = along @ scaled.coordinates(self.spectral_filter, self.times, self.ridges)

    def moved(self, step: int) -> np.ndarray | None:
        """Estimate (T, R, p, k) of the movement of the means by further steps, in units of the scales; k is that of `summed_outputs`.

        Args:
            step: a step whose means are known.

        Returns:
            None after too few steps.
        """
        now, before = self._history[step], self._before(step)
        if before is None or before[0] == 0:
            return None
        changed, earlier = now - before[1], self._before(before[0])
        if earlier is None:
            return SAFETY * changed
        last, first = (np.linalg.norm(one, axis=2, keepdims=True) for one in (changed, before[1] - earlier[1]))
        return still_to_come(last, first) * changed

    def _before(self, step: int) -> tuple[int, np.ndarray] | None:
        """The last step at least `steps_back` before `step` with known means, and these means; None if there is none."""
        known = [k for k in self._history if k <= step - steps_back(step)]
        return (max(known), self._history[max(known)]) if known else None

    def _eliminate(self, result: LanczosResult, j: int) -> None:
        """Compute the means of the space of the first `j + 1` blocks."""
        diagonal, along = result.tridiagonal.diagonals[j], self._parts[j][: len(self.rows)]
        try:
            if self._last is None or self._test is None or self._sum is None:
                start = summed_outputs(result.start / self.scales)
                last = self._last = LastRows(self._shifts(), start)
                self._history[0] = np.zeros((len(self.times), len(self.ridges), len(self.rows), start.shape[1]))
                self._sum = np.zeros((len(last.shifts), len(self.rows), start.shape[1]), last.shifts.dtype)
                self._test = np.broadcast_to(along, (len(last.shifts), *along.shape))
                last.step(diagonal, None)
            else:
                coupling, last = result.tridiagonal.couplings[j - 1], self._last
                self._test = along - self._test @ last.inverse @ coupling.T
                last.step(diagonal, coupling)
        except np.linalg.LinAlgError:  # a direction is null, and leaving it out takes eigenvectors
            self.by_blocks = False
            return
        self._sum = self._sum + self._test @ last.rows
        self._history[j + 1] = self._means(self._sum)
        for old in [k for k in self._history if k < j + 1 - 3 * steps_back(j + 1)]:
            del self._history[old]

    def _shifts(self) -> np.ndarray:
        scaled = [self.spectral_filter.scaled_time(time) for time in self.times]
        shifts = [flow_shifts(s)[0] for s in scaled if 0 < s < math.inf]
        if math.inf in scaled:
            shifts.append(np.zeros(1))
        every = np.concatenate(shifts) if shifts else np.zeros(0)
        return np.add.outer(np.array(self.ridges), every).ravel()

    def _means(self, total: np.ndarray) -> np.ndarray:
        """The means (T, R, p, k) from the sums (shifts, p, k)."""
        total = total.reshape(len(self.ridges), -1, *total.shape[1:])
        out, at = np.zeros((len(self.times), *total.shape[:1], *total.shape[2:])), 0
        for i, time in enumerate(self.times):
            s = self.spectral_filter.scaled_time(time)
            if math.isinf(s):
                out[i] = np.real(total[:, -1])
            elif s > 0:
                phi = flow_shifts(s)[1]
                out[i] = np.einsum("rqpk,q->rpk", total[:, at : at + len(phi)], phi).real
                at += len(phi)
        return out
