"""The spectral measure of a kernel: its eigenvalues, their numbers, and the components of the targets along them.

A small kernel is diagonalised. A large kernel is only multiplied with blocks of vectors: block Lanczos from the targets, from random
signs and from unit vectors gives Ritz values and the weight of each start vector on them. This is Gauss quadrature for
`b^T f(K) b` (Golub and Meurant 2010; arXiv:2105.02042). The leading Ritz values are eigenvalues. The others represent the eigenvalues
near them, and the random signs estimate how many each represents.
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

# Largest residual of a Ritz pair, relative to its value, that counts as an eigenvalue. The error of the value is the square of the residual
# divided by the gap.
_CONVERGED = 1e-4
# Number of basis vectors for each requested leading eigenvalue, and least number of passes.
_VECTORS_PER_VALUE = 8
_LEAST_PASSES = 12
# Number of groups of probes that are left out in turn.
_GROUPS = 8
# Number of passes between checkpoints. There are a few dozen passes, each with some tens of columns.
_CHECKPOINT_EVERY = 4


@dataclass(frozen=True)
class SpectralMeasure:
    """Eigenvalues and weights, largest first.

    Args:
        values: eigenvalues or Ritz values of the matrix, `(m,)`, not negative.
        counts: number of eigenvalues that each value represents, `(m,)`; they sum to n.
        along: components of the targets, `(m, c)`. Their squares sum to the squared norms of the targets.
        leading: number of leading values that are single eigenvalues.
        probes: estimates of `counts` from single random vectors, `(p, m)`; without rows if nothing is random.
        rows: indices of the rows whose unit vectors were used, `(r,)`.
        units: components of the unit vectors of these rows, `(m, r)`.
        passes: number of passes over the matrix.
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
        """Position of each value in the whole spectrum, from 1."""
        return np.cumsum(self.counts) - self.counts / 2.0 + 0.5

    @property
    def power(self) -> Float64[np.ndarray, "m c"]:
        """Squares of `along`."""
        return self.along**2

    def estimate(self, f: Callable[[np.ndarray], float]) -> tuple[float, float]:
        """The value of a function of `counts`, and its standard error.

        The standard error comes from leaving out groups of probes in turn (jackknife). It is 0 if nothing is random.
        """
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
    """The measure with all eigenvalues of a matrix in memory, by LAPACK."""
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
    """The measure from block Lanczos, which runs until the leading eigenvalues have converged or the basis is full.

    Args:
        operator: symmetric, positive semi-definite.
        targets: targets of the training points, `(n, c)`.
        probes: number of random vectors, at least 2.
        top: number of requested leading eigenvalues.
        rows: number of unit vectors, for leave-one-out errors.
        seed: seed of the random choices.
        tell: receives lines of progress.
        checkpoint: checkpoint of the basis, from which the same call continues.
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
    of_probes = (n - leading) * seen / left  # normalised, so that the trace of the unit matrix is exact
    of_probes[:, :leading] = 1.0
    return SpectralMeasure(
        values, of_probes.mean(axis=0), along[:, :c], leading, of_probes, chosen, along[:, c + probes :], made.steps
    )


def _ritz(result: LanczosResult) -> tuple[np.ndarray, np.ndarray, int]:
    """Ritz values, largest first; components of the start vectors along their vectors; and the number of leading values that converged."""
    values, vectors = np.linalg.eigh(result.projected)
    values, vectors = values[::-1], vectors[:, ::-1]
    along = vectors[: len(result.start)].T @ result.start
    last = result.block_sizes[-1]
    residuals = (
        np.linalg.norm(result.coupling @ vectors[-last:], axis=0) if len(result.coupling) else np.zeros(len(values))
    )
    unsettled = np.flatnonzero(residuals > _CONVERGED * np.maximum(values, 0.0))
    return np.maximum(values, 0.0), along, int(unsettled[0]) if len(unsettled) else len(values)
