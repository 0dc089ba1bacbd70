"""The eigenvalues of a kernel with their weights: how many there are, and how much of the targets lies along them.

A dense kernel is diagonalised. A large one is multiplied with a block of vectors alone: block Lanczos from the targets, from random
signs and from unit vectors gives Ritz values and the weight of each start vector on them, which is Gauss quadrature for
`b^T f(K) b` (Golub and Meurant 2010; arXiv:2105.02042). The leading Ritz values are eigenvalues; the others stand for those between
them, as many as random signs see of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.steps import Checkpoint

# Residual of a Ritz pair, relative to its value, below which it is called an eigenvalue: its own error is the square over the gap.
_CONVERGED = 1e-4
# Basis vectors for each leading eigenvalue asked for, and passes at least.
_VECTORS_PER_VALUE = 8
_LEAST_PASSES = 12
# Of probes that are left out in turn.
_GROUPS = 8
# Passes between checkpoints: there are a few dozen, each with some tens of columns.
_CHECKPOINT_EVERY = 4


@dataclass(frozen=True)
class SpectralMeasure:
    """Eigenvalues and weights, largest first.

    Args:
        values: of the matrix, `(m,)`, not negative.
        counts: how many eigenvalues each stands for, `(m,)`; they sum to n.
        along: components of the targets, `(m, c)`: their squares sum to the squared norms of the targets.
        leading: so many of the first are single eigenvalues.
        probes: counts as single random vectors see them, `(p, m)`; no rows if nothing is random.
        rows: which rows were looked at one by one, `(r,)`.
        units: components of the unit vectors of these rows, `(m, r)`.
        passes: over the matrix.
    """

    values: Float64[np.ndarray, " m"]
    counts: Float64[np.ndarray, " m"]
    along: Float64[np.ndarray, "m c"]
    leading: int
    probes: Float64[np.ndarray, "p m"]
    rows: np.ndarray
    units: Float64[np.ndarray, "m r"]
    passes: int

    @property
    def index(self) -> Float64[np.ndarray, " m"]:
        """Place of each value in the whole spectrum, counted from 1."""
        return np.cumsum(self.counts) - self.counts / 2.0 + 0.5

    @property
    def power(self) -> Float64[np.ndarray, "m c"]:
        """Squares of `along`."""
        return self.along**2

    def estimate(self, f: Callable[[np.ndarray], float]) -> tuple[float, float]:
        """A function of `counts`, and its standard error from leaving groups of probes out in turn; 0 if nothing is random."""
        value = float(f(self.counts))
        if not len(self.probes):
            return value, 0.0
        parts = np.array([f(counts) for counts in self._left_out()])
        g = len(parts)
        return value, float(np.sqrt((g - 1) / g * np.sum((parts - parts.mean()) ** 2)))

    def trace(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """`tr f(K)` and its standard error."""
        return self.estimate(lambda counts: float(np.sum(counts * f(self.values))))

    def _left_out(self) -> Iterator[np.ndarray]:
        groups = np.array_split(np.arange(len(self.probes)), min(_GROUPS, len(self.probes)))
        for group in groups:
            yield np.delete(self.probes, group, axis=0).mean(axis=0)


def dense_measure(matrix: Float64[np.ndarray, "n n"], targets: Float64[np.ndarray, "n c"]) -> SpectralMeasure:
    """All eigenvalues of a matrix in memory, by LAPACK."""
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    n = len(values)
    return SpectralMeasure(
        values, np.ones(n), vectors.T @ targets, n, np.empty((0, n)), np.arange(n), np.ascontiguousarray(vectors.T), 1
    )


def lanczos_measure(
    operator: LinearMap,
    targets: Float64[np.ndarray, "n c"],
    *,
    probes: int = 32,
    top: int = 200,
    rows: int = 16,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
    checkpoint: Checkpoint | None = None,
) -> SpectralMeasure:
    """By products with a block of vectors, until the leading eigenvalues are known or the basis is full.

    Args:
        operator: symmetric, positive semi-definite.
        targets: of the training points.
        probes: random vectors, at least 2.
        top: leading eigenvalues wanted.
        rows: unit vectors, for leave-one-out errors.
        seed: of the random choice.
        tell: told of passes.
        checkpoint: of the basis; the same call goes on from it.
    """
    n, c = targets.shape
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], (n, probes))
    chosen = np.sort(generator.choice(n, rows, replace=False))
    units = np.zeros((n, rows))
    units[chosen, np.arange(rows)] = 1.0
    block = np.concatenate([targets, signs, units], axis=1)
    width = block.shape[1]
    most = min(n, max(_VECTORS_PER_VALUE * top, _LEAST_PASSES * width) + width)

    def stop(result: LanczosResult) -> bool:
        tell(f"{result.steps} passes, {result.tridiagonal.size} vectors")
        return result.steps >= _LEAST_PASSES and _ritz(result)[2] >= top

    made = block_lanczos(
        operator,
        block,
        max_steps=math.ceil(most / width),
        max_vectors=most,
        stop=stop,
        checkpoint=checkpoint,
        checkpoint_every=_CHECKPOINT_EVERY,
    )
    values, along, leading = _ritz(made)
    leading = min(leading, top)
    seen = along[:, c : c + probes].T ** 2
    seen[:, :leading] = 0.0
    left = np.maximum(seen.sum(axis=1, keepdims=True), 1e-300)
    of_probes = (n - leading) * seen / left  # each sees all that is left: the trace of 1 is exact
    of_probes[:, :leading] = 1.0
    return SpectralMeasure(
        values, of_probes.mean(axis=0), along[:, :c], leading, of_probes, chosen, along[:, c + probes :], made.steps
    )


def _ritz(result: LanczosResult) -> tuple[np.ndarray, np.ndarray, int]:
    """Ritz values largest first, components of the start vectors on their vectors, and how many lead without a gap."""
    values, vectors = np.linalg.eigh(result.projected)
    values, vectors = values[::-1], vectors[:, ::-1]
    along = vectors[: len(result.start)].T @ result.start
    last = result.block_sizes[-1]
    residuals = (
        np.linalg.norm(result.coupling @ vectors[-last:], axis=0) if len(result.coupling) else np.zeros(len(values))
    )
    unsettled = np.flatnonzero(residuals > _CONVERGED * np.maximum(values, 0.0))
    return np.maximum(values, 0.0), along, int(unsettled[0]) if len(unsettled) else len(values)
