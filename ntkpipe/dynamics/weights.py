"""Weights that result from filters of a batch of columns, in the coordinates of a basis or as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ntkpipe.dynamics.krylov import combined_weights, prefers_basis


@runtime_checkable
class Weights(Protocol):
    """The weights `f(A) a` of k columns a, for T times and R ridges."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (T, R, k)."""
        ...

    def norms(self) -> np.ndarray:
        """Euclidean norms, (T, R, k)."""
        ...

    def along(self, rows: np.ndarray) -> np.ndarray:
        """`rows @ weights`, (T, R, q, k), for rows (q, n)."""
        ...

    def columns(self) -> np.ndarray:
        """The weights as columns (n, T R k), in C order of (T, R, k)."""
        ...

    def span(self) -> np.ndarray:
        """The smallest set of vectors (n, q) whose products with a matrix K give `inner`."""
        ...

    def inner(self, product: np.ndarray) -> np.ndarray:
        """`w^T K w`, (T, R, k), from `K @ span()` (n, q)."""
        ...

    def dot(self, columns: np.ndarray) -> np.ndarray:
        """`w^T v` (T, R, k) of every weight with the column of its own image, from columns (n, k)."""
        ...


@dataclass(frozen=True)
class SpannedWeights:
    """Weights in an orthonormal basis.

    Args:
        basis: (m, n), vectors as rows.
        coordinates: (T, R, m, k).
    """

    basis: np.ndarray
    coordinates: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, R, k)."""
        t, r, _, k = self.coordinates.shape
        return t, r, k

    def norms(self) -> np.ndarray:
        """See `Weights.norms`."""
        return np.linalg.norm(self.coordinates, axis=2)

    def along(self, rows: np.ndarray) -> np.ndarray:
        """See `Weights.along`."""
        return np.matmul(rows @ self.basis.T, self.coordinates)

    def columns(self) -> np.ndarray:
        """See `Weights.columns`."""
        return combined_weights(self.basis, self.coordinates)

    def span(self) -> np.ndarray:
        """The basis, or the weights if these are fewer vectors."""
        return self.basis.T if prefers_basis(len(self.basis), self.shape) else self.columns()

    def inner(self, product: np.ndarray) -> np.ndarray:
        """See `Weights.inner`."""
        projected = self.basis @ product
        if prefers_basis(len(self.basis), self.shape):
            images = np.matmul(projected, self.coordinates)
        else:
            t, r, k = self.shape
            images = projected.reshape(len(self.basis), t, r, k).transpose(1, 2, 0, 3)
        return np.einsum("trmk,trmk->trk", self.coordinates, images)

    def dot(self, columns: np.ndarray) -> np.ndarray:
        """See `Weights.dot`."""
        return np.einsum("trmk,mk->trk", self.coordinates, self.basis @ columns)


@dataclass(frozen=True)
class DirectWeights:
    """Weights as an array (T, R, n, k)."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, R, k)."""
        t, r, _, k = self.values.shape
        return t, r, k

    def norms(self) -> np.ndarray:
        """See `Weights.norms`."""
        return np.linalg.norm(self.values, axis=2)

    def along(self, rows: np.ndarray) -> np.ndarray:
        """See `Weights.along`."""
        return np.matmul(rows, self.values)

    def columns(self) -> np.ndarray:
        """See `Weights.columns`."""
        t, r, n, k = self.values.shape
        return self.values.transpose(2, 0, 1, 3).reshape(n, t * r * k)

    def span(self) -> np.ndarray:
        """The weights."""
        return self.columns()

    def inner(self, product: np.ndarray) -> np.ndarray:
        """See `Weights.inner`."""
        t, r, n, k = self.values.shape
        return np.einsum("trnk,ntrk->trk", self.values, product.reshape(n, t, r, k))

    def dot(self, columns: np.ndarray) -> np.ndarray:
        """See `Weights.dot`."""
        return np.einsum("trnk,nk->trk", self.values, columns)
