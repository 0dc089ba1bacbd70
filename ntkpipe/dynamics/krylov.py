"""Evaluate a block Lanczos basis, or a dense eigensystem, at many training times and ridges.

With an orthonormal basis V of the Krylov space of the targets and the projected kernel H = V^T T V, the dual weights
are `V phi(H + ridge) e_1 R0`: one eigendecomposition of the small H serves every time, ridge and filter, since a
ridge only shifts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import scipy.linalg

from ntkpipe.dynamics.filters import SpectralFilter
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.eigh import null_cutoff

MeansOf = Callable[[np.ndarray], np.ndarray]
"""From a product (p, q) to means (T, R, p, c)."""


@runtime_checkable
class BlockKrylov(Protocol):
    """What block Lanczos leaves: `A V = V H + V_next coupling E_last^T` and `targets = V_first start`.

    `basis` (m, n) holds the vectors as rows, `projected` is H (m, m), `coupling` (k_next, k_last) is empty when the
    space is invariant, `start` is (m0, c), `block_sizes` sums to m and `next_block` is (k_next, n).
    """

    @property
    def basis(self) -> np.ndarray:
        """(m, n), vectors as rows."""
        ...

    @property
    def block_sizes(self) -> Sequence[int]:
        """Of the blocks, in order."""
        ...

    @property
    def projected(self) -> np.ndarray:
        """(m, m), H."""
        ...

    @property
    def coupling(self) -> np.ndarray:
        """(k_next, k_last), or empty."""
        ...

    @property
    def start(self) -> np.ndarray:
        """(m0, c)."""
        ...

    @property
    def next_block(self) -> np.ndarray:
        """(k_next, n)."""
        ...


@dataclass(frozen=True)
class KrylovSolution:
    """The kernel, restricted to an orthonormal basis and diagonalised there.

    Args:
        basis: (m, n) float64, orthonormal rows.
        values: (m,) eigenvalues of the projected kernel (Ritz values), without ridge.
        rotation: (m, m), columns are its eigenvectors; None when the basis already is the eigenvectors.
        targets: (m, c) the targets in the eigenvectors' coordinates.
        tail: (k, m) coupling to the next block times the last block row of `rotation`; (0, m) where nothing is left
            out.
        next_block: (k, n) the block of the basis that would come next.
        noise: norm of the errors of the stored entries: eigenvalues at or below it are null (`filters.null_cutoff`).
        copies: null directions that are exact, by equal training points: the answer loses nothing with them.
        ceiling: an upper bound on the smallest eigenvalue of the whole kernel, which the basis need not have seen
            (`linalg.pairs`).
    """

    basis: np.ndarray
    values: np.ndarray
    rotation: np.ndarray | None
    targets: np.ndarray
    tail: np.ndarray
    next_block: np.ndarray
    noise: float = 0.0
    copies: int = 0
    ceiling: float = math.inf

    @classmethod
    def from_lanczos(cls, result: BlockKrylov, noise: float = 0.0, ceiling: float = math.inf) -> KrylovSolution:
        """Diagonalise the projected kernel of a block Lanczos result, at a cost of about 10 m^3 flops.

        Args:
            result: the basis and its projected kernel.
            noise: see the class.
            ceiling: see the class.

        Raises:
            NumericalError: if the recurrence holds non-finite values.
        """
        projected = np.asarray(result.projected, dtype=np.float64)
        m, n = len(projected), result.basis.shape[1]
        c = result.start.shape[1]
        if m == 0:  # the targets are zero: so is every prediction
            none, empty = np.zeros((0, n)), np.zeros((0, c))
            return cls(none, np.zeros(0), None, empty, np.zeros((0, 0)), none, noise, ceiling=ceiling)
        if not (np.isfinite(projected).all() and np.isfinite(result.coupling).all()):
            raise NumericalError(
                "the Lanczos recurrence holds non-finite values: run `ntkpipe verify` on its tiles, then solve again"
            )
        values, rotation = scipy.linalg.eigh(projected, driver="evd", check_finite=False)
        targets = rotation[: len(result.start)].T @ result.start
        coupling = np.asarray(result.coupling, dtype=np.float64)
        if coupling.size:
            tail = coupling @ rotation[m - coupling.shape[1] :]
            following = np.asarray(result.next_block)
        else:
            tail, following = np.zeros((0, m)), np.zeros((0, n))
        return cls(np.asarray(result.basis), values, rotation, targets, tail, following, noise, ceiling=ceiling)

    @classmethod
    def from_eigensystem(
        cls, values: np.ndarray, vectors: np.ndarray, targets: np.ndarray, noise: float = 0.0, copies: int = 0
    ) -> KrylovSolution:
        """A dense eigendecomposition as the complete basis: (n,) values, (n, n) vectors in columns, (n, c) targets."""
        n = len(values)
        return cls(vectors.T, values, None, vectors.T @ targets, np.zeros((0, n)), np.zeros((0, n)), noise, copies)

    is_restarted: ClassVar[bool] = False
    """Whether only the times and ridges that it was made for are known."""

    def state(self) -> dict[str, np.ndarray]:
        """Its arrays by name; an empty `rotation` stands for None."""
        names = ("basis", "values", "targets", "tail", "next_block")
        rotation = np.zeros((0, 0)) if self.rotation is None else self.rotation
        return {name: getattr(self, name) for name in names} | {"rotation": rotation}

    @classmethod
    def loaded(cls, state: Mapping[str, np.ndarray], noise: float, ceiling: float) -> KrylovSolution:
        """From what `state` has given; arguments as of the class."""
        rotation = state["rotation"] if state["rotation"].size else None
        basis, values, targets = (state[name] for name in ("basis", "values", "targets"))
        return cls(basis, values, rotation, targets, state["tail"], state["next_block"], noise, ceiling=ceiling)

    @property
    def n(self) -> int:
        """Training images."""
        return self.basis.shape[1]

    @property
    def c(self) -> int:
        """Outputs."""
        return self.targets.shape[1]

    @cached_property
    def largest(self) -> float:
        """Largest eigenvalue in the basis, after a few block steps that of the kernel to rounding; 0 if empty."""
        return float(self.values.max(initial=0.0))

    @cached_property
    def smallest_ritz(self) -> tuple[float, float]:
        """The smallest eigenvalue in the basis that is not null, and its residual; zeros if there is none."""
        kept = np.flatnonzero(self.values > null_cutoff(self.n, self.largest, self.noise))
        if not kept.size:
            return 0.0, 0.0
        least = kept[np.argmin(self.values[kept])]
        return float(self.values[least]), float(np.linalg.norm(self.tail[:, least]))

    @cached_property
    def smallest(self) -> float:
        """Estimate of the kernel's smallest eigenvalue that is not null; 0 if none is known.

        The residual of the smallest Ritz pair says how far it may still fall: its value is divided by up to 17, which
        keeps early bounds honest, and by 1 once it has converged. It lies below the ceiling in any case. The errors of the
        stored entries are taken off.
        """
        return max(min(lowered(*self.smallest_ritz), self.ceiling) - self.noise, 0.0)

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """Eigenvalues plus ridge, and the cutoff below which they are null (of an n x n matrix)."""
        return self.values + ridge, null_cutoff(self.n, self.largest + ridge, self.noise)

    def coordinates(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> np.ndarray:
        """Dual weights in the coordinates of `basis`.

        Args:
            spectral_filter: the training dynamics.
            times: T times in steps.
            ridges: R absolute ridges.

        Returns:
            (T, R, m, c) float64; the weights on the images are `basis.T @ coordinates[t, r]`.
        """
        out = np.empty((len(times), len(ridges), len(self.values), self.c))
        for j, ridge in enumerate(ridges):
            values, cutoff = self.shifted(ridge)
            for i, time in enumerate(times):
                phi = spectral_filter.weights(values, time, cutoff=cutoff)
                out[i, j] = self.rotate(phi[:, None] * self.targets)
        return out

    def dual_weights(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> np.ndarray:
        """Weights of the training points, (n, T R c) in C order of (T, R, c)."""
        return combined_weights(self.basis, self.coordinates(spectral_filter, times, ridges))

    def factors(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> tuple[np.ndarray, MeansOf]:
        """Columns (n, q) that the test-train kernel is to be multiplied with, the fewest, and what makes means of the product."""
        shape = (len(times), len(ridges), self.c)
        if not prefers_basis(len(self.values), shape):
            return self.dual_weights(spectral_filter, times, ridges), lambda product: means_from_weights(product, shape)
        coordinates = self.coordinates(spectral_filter, times, ridges)
        return self.basis.T, lambda product: means_from_basis(product, coordinates)

    def rotate(self, eigen_coordinates: np.ndarray) -> np.ndarray:
        """From the eigenvectors' coordinates (m, ...) to those of `basis`."""
        return eigen_coordinates if self.rotation is None else self.rotation @ eigen_coordinates

    def unlearnt(self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]) -> np.ndarray:
        """Null eigenvalues left out per time and ridge, (T, R) int, those of copies not counted; above 0, no bound holds."""
        out = np.zeros((len(times), len(ridges)), dtype=int)
        for j, ridge in enumerate(ridges):
            for i, time in enumerate(times):
                out[i, j] = self.left_out(spectral_filter, time, ridge)[0]
        return out

    def left_out(self, spectral_filter: SpectralFilter, time: float, ridge: float) -> tuple[int, np.ndarray]:
        """How many null directions are left out, those of copies not counted, and the norms (c,) of the targets along them."""
        values, cutoff = self.shifted(ridge)
        null = spectral_filter.unlearnt(values, time, cutoff=cutoff)
        count = max(int(null.sum()) - self.copies, 0)
        return count, np.linalg.norm(self.targets[null], axis=0) if count else np.zeros(self.c)


def lowered(value: float, residual: float) -> float:
    """What the eigenvalue below a Ritz value of this residual is taken for; see `KrylovSolution.smallest`."""
    return value / (1.0 + min(4.0 * residual / value, 16.0)) if value else 0.0


def means_from_basis(kernel_basis: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Test means from the product of the test-train kernel with the basis.

    Args:
        kernel_basis: (p, m), `T_* V`.
        coordinates: (T, R, m, c).

    Returns:
        (T, R, p, c).
    """
    return np.matmul(kernel_basis, coordinates)


def combined_weights(basis: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Dual weights of every time, ridge and output side by side: (n, T R c), columns in C order of (T, R, c)."""
    t, r, m, c = coordinates.shape
    return basis.T @ coordinates.transpose(2, 0, 1, 3).reshape(m, t * r * c)


def means_from_weights(product: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Test means (T, R, p, c) from `T_* @ combined_weights` (p, T R c); `shape` is (T, R, c)."""
    return np.ascontiguousarray(product.reshape(-1, *shape).transpose(1, 2, 0, 3))


def prefers_basis(m: int, shape: tuple[int, int, int]) -> bool:
    """True where `T_* V` has fewer columns than the combined weights of `shape` (T, R, c), hence is cheaper."""
    return m < shape[0] * shape[1] * shape[2]
