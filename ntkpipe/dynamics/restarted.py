"""Weights at every time and ridge from restarted block Lanczos, which keeps no complete basis.

At `t = inf` each ridge is one shifted system, `(A + ridge) u = b`. A finite time of gradient flow is a sum over 14 complex shifted systems
(`talbot.py`; restarted quadrature: Frommer, Guettel & Schweitzer 2014, doi:10.1137/13093491X). Their residuals `V_next g`
give the residual of the flow: with `u(s) = Re sum c x(z)` and `r(z) = b - (A + z) x(z)`,

    b - u' - A u = V_next Re sum c g(z).

So the bound of `bounds.py` also holds after restarts. At the times of its grid every residual is known, and
products with sampled rows are summed over the cycles like the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ntkpipe.dynamics.filters import GradientFlow, SpectralFilter
from ntkpipe.dynamics.krylov import MeansOf, lowered, means_from_weights
from ntkpipe.dynamics.talbot import NODES, flow_shifts
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.eigh import null_cutoff
from ntkpipe.linalg.restarted import Cycle

# Fields of a solution that a checkpoint stores without changes.
_KEPT = ("weights", "coefficients", "next_block", "values", "tail", "lost", "left", "here", "asked", "along")


@dataclass(frozen=True)
class RestartedSolution:
    """Weights at the requested times and ridges, and the data for their error bound.

    Args:
        spectral_filter: the training dynamics.
        times: T requested times in steps.
        ridges: R absolute ridges.
        grid: G times with known residuals, which include the requested times.
        weights: (n, T, R, c) float64.
        coefficients: (G, R, k, c) coefficients of the residual, `next_block.T @ coefficients`.
        next_block: (k, n).
        values: (m,) Ritz values of the last cycle.
        tail: (k, m) of the last cycle, as in `KrylovSolution`.
        targets: (m0, c) coordinates with the norms of the targets.
        largest: largest Ritz value of any cycle; 0 if there is none.
        smallest_ritz: smallest Ritz value of any cycle that is not null, and its residual.
        lost: (G, R) numbers of null directions that are left out.
        left: (G, R, c) upper bounds on the norms of the targets along them.
        indices: (q,) watched rows.
        here: (G, R, q, c) weights at the watched rows.
        asked: (G, R, q, c) exact values of `(A + ridge) u` at the watched rows: targets minus `u'` and minus null directions.
        along: (G, R, w, c) products of the watched vectors with the weights.
        noise: as in `KrylovSolution`.
        ceiling: as in `KrylovSolution`.
    """

    spectral_filter: SpectralFilter
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    grid: tuple[float, ...]
    weights: np.ndarray
    coefficients: np.ndarray
    next_block: np.ndarray
    values: np.ndarray
    tail: np.ndarray
    targets: np.ndarray
    largest: float
    smallest_ritz: tuple[float, float]
    lost: np.ndarray
    left: np.ndarray
    indices: np.ndarray
    here: np.ndarray
    asked: np.ndarray
    along: np.ndarray
    noise: float = 0.0
    ceiling: float = math.inf

    is_restarted: ClassVar[bool] = True
    """Whether the solution supports only the times and ridges of its solve."""

    def state(self) -> dict[str, np.ndarray]:
        """The arrays for `RestartedWeights.load` that a finished solve needs, with names that begin with `answer_`."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ("grid", *_KEPT)}
        arrays["scalars"] = np.array([self.largest, *self.smallest_ritz])
        nothing = np.zeros((0, 0, 0, 0, 0), dtype=np.complex128)
        arrays |= {"shifted": nothing, "start": self.targets}
        return {f"answer_{name}": array for name, array in arrays.items()}

    @property
    def n(self) -> int:
        """Number of training images."""
        return len(self.weights)

    @property
    def c(self) -> int:
        """Number of outputs."""
        return self.targets.shape[1]

    @property
    def smallest(self) -> float:
        """See `KrylovSolution.smallest`."""
        return max(min(lowered(*self.smallest_ritz), self.ceiling) - self.noise, 0.0)

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """See `KrylovSolution.shifted`. It uses the Ritz values of the last cycle."""
        return self.values + ridge, null_cutoff(self.n, self.largest + ridge, self.noise)

    def coordinates(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> np.ndarray:
        """The weights (T, R, n, c), as coordinates in the basis of unit vectors.

        Raises:
            ConfigError: if the filter, a time or a ridge is not one of the solve.
        """
        return self._known(self.weights, spectral_filter, times, ridges)

    def dual_weights(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> np.ndarray:
        """Weights of the training points (n, T R c), with columns in C order of (T, R, c)."""
        return self.coordinates(spectral_filter, times, ridges).transpose(2, 0, 1, 3).reshape(self.n, -1)

    def factors(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> tuple[np.ndarray, MeansOf]:
        """See `KrylovSolution.factors`. The columns are the weights."""
        shape = (len(times), len(ridges), self.c)
        return self.dual_weights(spectral_filter, times, ridges), lambda product: means_from_weights(product, shape)

    def unlearnt(self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]) -> np.ndarray:
        """Largest number (T, R) of null eigenvalues that a cycle left out."""
        t, r = self._places(spectral_filter, times, ridges)
        where = [self.grid.index(self.times[i]) for i in t]
        return self.lost[np.ix_(where, r)]

    def left_out(self, spectral_filter: SpectralFilter, time: float, ridge: float) -> tuple[int, np.ndarray]:
        """See `KrylovSolution.left_out`. The time must be in the grid.

        The number is the largest of any cycle, and the norms are summed over the cycles.
        """
        del spectral_filter
        i, j = self.grid.index(time), self.ridges.index(ridge)
        return int(self.lost[i, j]), self.left[i, j]

    def _known(
        self, array: np.ndarray, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> np.ndarray:
        t, r = self._places(spectral_filter, times, ridges)
        return array.transpose(1, 2, 0, 3)[np.ix_(t, r)]

    def _places(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> tuple[list[int], list[int]]:
        if spectral_filter != self.spectral_filter or not {*times} <= {*self.times} or not {*ridges} <= {*self.ridges}:
            raise ConfigError(
                f"a restarted solve supports only times {self.times} and ridges {self.ridges}: solve again for others, or "
                "raise solver.basis_gib until the basis fits"
            )
        return [self.times.index(t) for t in times], [self.ridges.index(r) for r in ridges]


GridOf = Callable[[SpectralFilter, Sequence[float], float], Sequence[float]]
Judge = Callable[[RestartedSolution, int], bool]


class RestartedWeights:
    """The `Answer` of `linalg.restarted` that adds up weights; see the module.

    Args:
        spectral_filter: the training dynamics. Finite times need gradient flow.
        times: T times in steps.
        ridges: R absolute ridges.
        targets: `(n, c)`.
        start: `(m0, c)`, the targets in the first block of the basis. A state that is loaded replaces it.
        grid: gives the times at which the bound evaluates residuals, from the largest eigenvalue (`bounds.time_grid`).
        good: a function of a solution, whose weights may lack the present cycle, and the number of passes: whether its bound is small.
        indices: (q,) rows to watch.
        watched: (w, n) vectors whose products with the weights are needed: sampled rows of the kernel.
        noise: as in `KrylovSolution`.
        ceiling: as in `KrylovSolution`.

    Raises:
        ConfigError: if times are finite and the dynamics are not gradient flow.
    """

    def __init__(
        self,
        spectral_filter: SpectralFilter,
        times: Sequence[float],
        ridges: Sequence[float],
        targets: np.ndarray,
        start: np.ndarray,
        *,
        grid: GridOf,
        good: Judge,
        indices: np.ndarray,
        watched: np.ndarray,
        noise: float = 0.0,
        ceiling: float = math.inf,
    ) -> None:
        if not isinstance(spectral_filter, GradientFlow) and any(math.isfinite(t) for t in times):
            raise ConfigError(
                "finite times of discrete gradient descent and of momentum need the whole basis, but it exceeds its "
                "memory: raise solver.basis_gib or solver.tolerance, or set predict.dynamics=gradient_flow"
            )
        self._filter, self._times, self._ridges = spectral_filter, tuple(times), tuple(ridges)
        self._targets, self._start = targets, start
        self._grid_of, self._good = grid, good
        self._indices, self._watched = np.asarray(indices, dtype=np.int64), watched
        self._n, self._c = targets.shape
        self._noise, self._ceiling = noise, ceiling
        self._grid: tuple[float, ...] = ()
        self._found: RestartedSolution | None = None
        self._shifted = np.zeros((0, 0, 0, 0, 0), dtype=np.complex128)  # g: (G, R, NODES, k, c)

    @property
    def solution(self) -> RestartedSolution:
        """The sum over the absorbed cycles.

        Raises:
            ValueError: if there is none yet.
        """
        if self._found is None:
            raise ValueError("no cycle has been absorbed")
        return self._found

    def converged(self, cycle: Cycle) -> bool:
        """See `Answer.converged`."""
        self._begin(cycle)
        tails = [part.tail for part in self._parts(cycle)]
        return self._good(self._updated(cycle, np.stack(tails)), cycle.steps)

    def absorb(self, cycle: Cycle) -> None:
        """See `Answer.absorb`."""
        self._begin(cycle)
        old = self.solution
        weights, here, asked, along = (a.copy() for a in (old.weights, old.here, old.asked, old.along))
        left = old.left.copy()
        shifted = np.zeros((*self._shifted.shape[:3], len(cycle.next_block), self._c), dtype=np.complex128)
        m, rotation = cycle.matrix.size, cycle.eigensystem[1]
        picked = cycle.vectors.picked(self._indices, m).T @ rotation
        products = cycle.vectors.times(self._watched, m) @ rotation
        columns, tails = [], []
        for part in self._parts(cycle):
            i, j = divmod(len(tails), len(self._ridges))
            here[i, j] += picked @ part.weights
            asked[i, j] -= picked @ part.unlearnt
            along[i, j] += products @ part.weights
            left[i, j] += part.left
            shifted[i, j] = part.shifted
            tails.append(part.tail)
            if self._grid[i] in self._times:
                columns.append(part.weights)
        # One rotation and one pass over the basis serve all columns (m, T R c).
        added = cycle.vectors.combine(rotation @ np.concatenate(columns, axis=1))
        order = np.argsort(np.argsort(self._times))  # the grid is sorted, but the times may be in any order
        weights += added.reshape(self._n, len(self._times), len(self._ridges), self._c)[:, order]
        self._shifted = shifted
        self._found = replace(
            self._updated(cycle, np.stack(tails)), weights=weights, left=left, here=here, asked=asked, along=along
        )

    def state(self) -> dict[str, np.ndarray]:
        """See `Answer.state`."""
        found = self.solution
        arrays = {name: np.asarray(getattr(found, name)) for name in ("grid", *_KEPT)}
        arrays["scalars"] = np.array([found.largest, *found.smallest_ritz])
        return arrays | {"shifted": self._shifted, "start": self._start}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """See `Answer.load`."""
        self._grid = tuple(state["grid"].tolist())
        self._shifted, self._start = state["shifted"], state["start"]
        largest, value, residual = state["scalars"].tolist()
        self._found = RestartedSolution(
            self._filter,
            self._times,
            self._ridges,
            self._grid,
            targets=self._start,
            largest=largest,
            smallest_ritz=(value, residual),
            indices=self._indices,
            noise=self._noise,
            ceiling=self._ceiling,
            **{name: state[name] for name in _KEPT},
        )

    def _begin(self, cycle: Cycle) -> None:
        """Initialise the sums at the first cycle, because the grid of times needs its largest eigenvalue."""
        if self._found is not None:
            return
        largest = max(0.0, float(cycle.eigensystem[0][-1]))
        self._grid = tuple(sorted({*self._grid_of(self._filter, self._times, largest), *self._times}))
        g, r, k = len(self._grid), len(self._ridges), cycle.width
        self._shifted = np.broadcast_to(self._start, (g, r, NODES, *self._start.shape)).astype(np.complex128)
        here = np.zeros((g, r, len(self._indices), self._c))
        learning = np.array([self._filter.scaled_time(t) > 0 for t in self._grid], dtype=np.float64)
        asked = here + learning[:, None, None, None] * self._targets[self._indices]
        self._found = RestartedSolution(
            self._filter,
            self._times,
            self._ridges,
            self._grid,
            np.zeros((self._n, len(self._times), r, self._c)),
            np.zeros((g, r, k, self._c)),
            np.zeros((k, self._n)),
            np.zeros(0),
            np.zeros((k, 0)),
            self._start,
            0.0,
            (0.0, 0.0),
            np.zeros((g, r), dtype=np.int64),
            np.zeros((g, r, self._c)),
            self._indices,
            here,
            asked,
            np.zeros((g, r, len(self._watched), self._c)),
            self._noise,
            self._ceiling,
        )

    def _parts(self, cycle: Cycle) -> Iterator[_Part]:
        """The contributions of the cycle at every time of the grid and every ridge, in the coordinates of its Ritz vectors."""
        values, tail, entry = cycle.eigensystem[0], cycle.tail, cycle.entry
        largest = max(0.0, float(values[-1]))
        for i, time in enumerate(self._grid):
            s = self._filter.scaled_time(time)
            for j, ridge in enumerate(self._ridges):
                if s == 0:
                    nothing = np.zeros((len(values), self._c))
                    shifted = np.zeros((NODES, len(tail), self._c))
                    yield _Part(nothing, nothing, np.zeros(self._c), tail @ nothing, shifted)
                    continue
                shifted, start = values + ridge, entry @ self._shifted[i, j]
                cutoff = null_cutoff(self._n, largest + ridge, self._noise)
                null = self._filter.unlearnt(shifted, time, cutoff=cutoff)[:, None]
                if s == math.inf:
                    inner = np.where(null, 0.0, start[:1].real / np.where(null, 1.0, shifted[:, None]))
                    left = np.broadcast_to(-tail @ inner, (NODES, len(tail), self._c))
                    lost = np.where(null, start[0].real, 0.0)
                    yield _Part(inner[0], lost, np.linalg.norm(lost, axis=0), left[0], left)
                    continue
                shifts, phi, decay = flow_shifts(s)
                inner = np.where(null, 0.0, start / (shifted + shifts[:, None])[:, :, None])
                left = -tail @ inner
                lost = np.where(null, np.real(np.tensordot(phi, start, 1)), 0.0)
                unlearnt = np.real(np.tensordot(decay, inner, 1)) + lost
                weights, tails = (np.real(np.tensordot(phi, part, 1)) for part in (inner, left))
                yield _Part(weights, unlearnt, np.linalg.norm(lost, axis=0), tails, left)

    def _updated(self, cycle: Cycle, tails: np.ndarray) -> RestartedSolution:
        """The solution with the residuals and the spectrum after this cycle. The weights do not change."""
        found, (values, _), tail = self.solution, cycle.eigensystem, cycle.tail
        largest = max(found.largest, float(values[-1]))
        kept = np.flatnonzero(values > null_cutoff(self._n, largest, self._noise))
        ritz = found.smallest_ritz
        if kept.size and (not ritz[0] or values[kept[0]] <= ritz[0]):
            ritz = float(values[kept[0]]), float(np.linalg.norm(tail[:, kept[0]]))
        lost = np.zeros(found.lost.shape, dtype=np.int64)
        for i, time in enumerate(self._grid):
            for j, ridge in enumerate(self._ridges):
                cutoff = null_cutoff(self._n, largest + ridge, self._noise)
                lost[i, j] = self._filter.unlearnt(values + ridge, time, cutoff=cutoff).sum()
        return replace(
            found,
            coefficients=tails.reshape(len(self._grid), len(self._ridges), len(tail), self._c),
            next_block=cycle.next_block,
            values=values,
            tail=tail,
            largest=largest,
            smallest_ritz=ritz,
            lost=np.maximum(found.lost, lost),
        )


@dataclass(frozen=True)
class _Part:
    """The contribution of a cycle at one time and ridge.

    Args:
        weights: (m, c) weights.
        unlearnt: (m, c) part of the targets that is not learnt yet.
        left: (c,) norms of the part along directions that are left out.
        tail: (k, c) residuals.
        shifted: (NODES, k, c) residuals of the shifted systems.
    """

    weights: np.ndarray
    unlearnt: np.ndarray
    left: np.ndarray
    tail: np.ndarray
    shifted: np.ndarray
