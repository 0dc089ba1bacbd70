"""Evaluate a block Lanczos basis, or a dense eigensystem, at many training times and ridges.

With an orthonormal basis V of the Krylov space of the targets and the projected kernel H = V^T T V, the dual weights
are `V phi(H + ridge) e_1 R0`. One eigendecomposition of the small matrix H serves every time, ridge and filter, because a
ridge only shifts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import scipy.linalg

from ntkpipe.dynamics.filters import SpectralFilter
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.basis import spanned
from ntkpipe.linalg.eigh import null_cutoff
from ntkpipe.linalg.lanczos import LanczosResult

MeansOf = Callable[[np.ndarray], np.ndarray]
"""A function from a product (p, q) to means (T, R, p, c)."""


@runtime_checkable
class BlockKrylov(Protocol):
    """A result of block Lanczos: `A V = V H + V_next coupling E_last^T` and `targets = V_first start`.

    `basis` (m, n) contains the vectors as rows, `projected` is H (m, m), `coupling` (k_next, k_last) is empty if the
    space is invariant, `start` is (m0, c), `block_sizes` sums to m, and `next_block` is (k_next, n).
    """

    @property
    def basis(self) -> np.ndarray:
        """The vectors as rows (m, n)."""
        ...

    @property
    def block_sizes(self) -> Sequence[int]:
        """Sizes of the blocks, in order."""
        ...

    @property
    def projected(self) -> np.ndarray:
        """The projected kernel H, (m, m)."""
        ...

    @property
    def coupling(self) -> np.ndarray:
        """The coupling to the next block, (k_next, k_last), or empty."""
        ...

    @property
    def start(self) -> np.ndarray:
        """The targets in the first block, (m0, c)."""
        ...

    @property
    def next_block(self) -> np.ndarray:
        """The next block, (k_next, n)."""
        ...


@dataclass(frozen=True)
class KrylovSolution:
    """The kernel, projected on a basis and diagonalised there.

    Args:
        basis: (m, n) vectors as rows: float64 and orthonormal, or rounded to float32.
        values: (m,) eigenvalues of the projected kernel (Ritz values), without ridge.
        rotation: (m, m) eigenvectors of the projected kernel as columns; None if the basis consists of the eigenvectors.
        targets: (m, c) targets in the coordinates of the eigenvectors.
        tail: (k, m) coupling to the next block times the last block row of `rotation`; (0, m) if the space is not truncated.
        next_block: (k, n) next block of the basis.
        noise: norm of the errors of the stored entries. Eigenvalues at or below it are null (`linalg.eigh.null_cutoff`).
        copies: number of exact null directions from equal training points. Leaving them out loses nothing.
        ceiling: upper bound on the smallest eigenvalue of the whole kernel, which may be below the Ritz values
            (`linalg.pairs`).
        gram: (m, m) Gram matrix of the rows of a rounded basis, with `rotation^T gram rotation = 1`; None otherwise.
        start_error: (c,) norms of the part of the targets that a rounded basis does not represent; None if it is not rounded.
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
    gram: np.ndarray | None = None
    start_error: np.ndarray | None = None

    @classmethod
    def from_lanczos(cls, result: BlockKrylov, noise: float = 0.0, ceiling: float = math.inf) -> KrylovSolution:
        """Diagonalise the projected kernel of a block Lanczos result. It takes about 10 m^3 flops.

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
        if m == 0:  # the targets are zero, so every prediction is zero
            none, empty = np.zeros((0, n)), np.zeros((0, c))
            return cls(none, np.zeros(0), None, empty, np.zeros((0, 0)), none, noise, ceiling=ceiling)
        if not (np.isfinite(projected).all() and np.isfinite(result.coupling).all()):
            raise NumericalError(
                "the Lanczos recurrence holds non-finite values: run `ntkpipe verify` on its tiles, then solve again"
            )
        pencil, error = (result.pencil, result.start_error) if isinstance(result, LanczosResult) else (None, None)
        if pencil is None:
            values, rotation = scipy.linalg.eigh(projected, driver="evd", check_finite=False)
            targets = rotation[: len(result.start)].T @ result.start
        else:
            values, rotation = pencil_eigenvectors(*pencil)
            targets = rotation.T @ (pencil[1][:, : len(result.start)] @ result.start)
        coupling = np.asarray(result.coupling, dtype=np.float64)
        if coupling.size:
            tail = coupling @ rotation[m - coupling.shape[1] :]
            following = np.asarray(result.next_block)
        else:
            tail, following = np.zeros((0, m)), np.zeros((0, n))
        made = cls(np.asarray(result.basis), values, rotation, targets, tail, following, noise, ceiling=ceiling)
        return made if pencil is None else replace(made, gram=pencil[1], start_error=error)

    @classmethod
    def from_eigensystem(
        cls, values: np.ndarray, vectors: np.ndarray, targets: np.ndarray, noise: float = 0.0, copies: int = 0
    ) -> KrylovSolution:
        """The solution with a complete basis, from a dense eigendecomposition: (n,) values, (n, n) vectors in columns, (n, c) targets."""
        n = len(values)
        return cls(vectors.T, values, None, vectors.T @ targets, np.zeros((0, n)), np.zeros((0, n)), noise, copies)

    is_restarted: ClassVar[bool] = False
    """Whether the solution supports only the times and ridges of its solve."""

    def state(self) -> dict[str, np.ndarray]:
        """The arrays by name. An empty `rotation` stands for None."""
        names = ("basis", "values", "targets", "tail", "next_block")
        rotation = np.zeros((0, 0)) if self.rotation is None else self.rotation
        rounded = {"gram": self.gram, "start_error": self.start_error}
        more = {name: array for name, array in rounded.items() if array is not None}
        return {name: getattr(self, name) for name in names} | {"rotation": rotation, **more}

    @classmethod
    def loaded(cls, state: Mapping[str, np.ndarray], noise: float, ceiling: float) -> KrylovSolution:
        """The solution from a `state`. `noise` and `ceiling` are those of the class."""
        rotation = state["rotation"] if state["rotation"].size else None
        basis, values, targets = (state[name] for name in ("basis", "values", "targets"))
        made = cls(basis, values, rotation, targets, state["tail"], state["next_block"], noise, ceiling=ceiling)
        return replace(made, gram=state.get("gram"), start_error=state.get("start_error"))

    @property
    def n(self) -> int:
        """Number of training images."""
        return self.basis.shape[1]

    @property
    def c(self) -> int:
        """Number of outputs."""
        return self.targets.shape[1]

    @cached_property
    def largest(self) -> float:
        """Largest Ritz value; 0 if the basis is empty. After a few block steps it equals the largest eigenvalue to rounding."""
        return float(self.values.max(initial=0.0))

    @cached_property
    def smallest_ritz(self) -> tuple[float, float]:
        """The smallest Ritz value that is not null, and its residual; zeros if there is none."""
        kept = np.flatnonzero(self.values > null_cutoff(self.n, self.largest, self.noise))
        if not kept.size:
            return 0.0, 0.0
        least = kept[np.argmin(self.values[kept])]
        return float(self.values[least]), float(np.linalg.norm(self.tail[:, least]))

    @cached_property
    def smallest(self) -> float:
        """Estimate of the kernel's smallest eigenvalue that is not null; 0 if it is unknown.

        The residual of the smallest Ritz pair shows how far its value may still decrease. The value is divided by a number up to 17, so
        that early bounds are safe, and by 1 when it has converged. It is at most the ceiling. The norm of the errors of the stored
        entries is subtracted.
        """
        return max(min(lowered(*self.smallest_ritz), self.ceiling) - self.noise, 0.0)

    def shifted(self, ridge: float) -> tuple[np.ndarray, float]:
        """Ritz values plus ridge, and the cutoff at or below which they are null (for an n x n matrix)."""
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
            (T, R, m, c) float64. The weights of the images are `basis.T @ coordinates[t, r]`.
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
        """Weights of the training points (n, T R c), with columns in C order of (T, R, c)."""
        return combined_weights(self.basis, self.coordinates(spectral_filter, times, ridges))

    def factors(
        self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
    ) -> tuple[np.ndarray, MeansOf]:
        """Columns (n, q) to multiply with the test-train kernel, as few as possible, and a function from the product to means."""
        shape = (len(times), len(ridges), self.c)
        if not prefers_basis(len(self.values), shape):
            return self.dual_weights(spectral_filter, times, ridges), lambda product: means_from_weights(product, shape)
        coordinates = self.coordinates(spectral_filter, times, ridges)
        return self.basis.T.astype(np.float64, copy=False), lambda product: means_from_basis(product, coordinates)

    def rotate(self, eigen_coordinates: np.ndarray) -> np.ndarray:
        """Convert coordinates (m, ...) of the eigenvectors to those of `basis`."""
        return eigen_coordinates if self.rotation is None else self.rotation @ eigen_coordinates

    def unlearnt(self, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]) -> np.ndarray:
        """Number (T, R) of null eigenvalues that are left out, without those of copies.

        Above 0, their part of a prediction has no finite bound at t = inf without ridge.
        """
        out = np.zeros((len(times), len(ridges)), dtype=int)
        for j, ridge in enumerate(ridges):
            for i, time in enumerate(times):
                out[i, j] = self.left_out(spectral_filter, time, ridge)[0]
        return out

    def left_out(self, spectral_filter: SpectralFilter, time: float, ridge: float) -> tuple[int, np.ndarray]:
        """Number of null directions that are left out, without those of copies, and norms (c,) of the targets along them."""
        values, cutoff = self.shifted(ridge)
        null = spectral_filter.unlearnt(values, time, cutoff=cutoff)
        count = max(int(null.sum()) - self.copies, 0)
        return count, np.linalg.norm(self.targets[null], axis=0) if count else np.zeros(self.c)


def lowered(value: float, residual: float) -> float:
    """The assumed eigenvalue below a Ritz value with this residual; see `KrylovSolution.smallest`."""
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
    """Dual weights (n, T R c) of every time, ridge and output, with columns in C order of (T, R, c)."""
    t, r, m, c = coordinates.shape
    return spanned(basis, coordinates.transpose(2, 0, 1, 3).reshape(m, t * r * c))


def pencil_eigenvectors(kernel: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (m,), ascending, and eigenvectors (m, m) of `kernel x = value gram x`, with `x^T gram x = 1`.

    The Cholesky factor of a Gram matrix near the unit matrix loses no accuracy.
    """
    factor = np.linalg.cholesky(gram)
    half = scipy.linalg.solve_triangular(factor, kernel, lower=True, check_finite=False)
    standard = scipy.linalg.solve_triangular(factor, half.T, lower=True, check_finite=False)
    values, vectors = scipy.linalg.eigh((standard + standard.T) / 2, driver="evd", check_finite=False)
    return values, scipy.linalg.solve_triangular(factor.T, vectors, lower=False, check_finite=False)


def means_from_weights(product: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Test means (T, R, p, c) from `T_* @ combined_weights` (p, T R c); `shape` is (T, R, c)."""
    return np.ascontiguousarray(product.reshape(-1, *shape).transpose(1, 2, 0, 3))


def prefers_basis(m: int, shape: tuple[int, int, int]) -> bool:
    """Whether `T_* V` has fewer columns than the combined weights of `shape` (T, R, c), and is therefore cheaper."""
    return m < shape[0] * shape[1] * shape[2]
