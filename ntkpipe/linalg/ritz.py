"""A preconditioner from the Krylov space of an earlier solve, which deflates the eigenvectors that it has found.

With W the Ritz vectors of the largest Ritz values theta, and tau the smallest of these plus the ridge,

    M^-1 = I - W diag(1 - tau / (theta + ridge)) W^T

gives the condition number of the remaining eigenvalues. `W = V^T S` is applied as two products with the basis V, without
a copy.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from ntkpipe.linalg.basis import spanned
from ntkpipe.linalg.rounded_basis import along

# Largest residual of a Ritz vector relative to its value. Less accurate vectors slow the solve down.
_CONVERGED = 0.1


class RitzPreconditioner:
    """A `Preconditioner` of conjugate gradients for the kernel of the space plus one ridge.

    Args:
        basis: `(m, n)` orthonormal rows V, in float64, or rounded to float32.
        values: `(m,)` Ritz values, ascending.
        rotation: `(m, m)`, whose columns are the Ritz vectors in the basis; None if the basis contains the Ritz vectors.
        residuals: `(m,)` norms of `A w - theta w`.
        ridge: absolute.
    """

    smallest = 1.0

    def __init__(
        self,
        basis: Float[np.ndarray, "m n"],
        values: Float64[np.ndarray, " m"],
        rotation: Float64[np.ndarray, "m m"] | None,
        residuals: Float64[np.ndarray, " m"],
        ridge: float,
    ) -> None:
        bad = np.flatnonzero(residuals > _CONVERGED * values)
        first = int(bad[-1]) + 1 if len(bad) else 0
        shifted = values[first:] + ridge
        self._basis, self._first = basis, first
        self._rotation = None if rotation is None else rotation[:, first:]
        self._less = 1.0 - shifted[0] / shifted if len(shifted) else shifted

    @property
    def rank(self) -> int:
        """See `Preconditioner`."""
        return len(self._less)

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`M^-1 x`."""
        if not self.rank:
            return x
        if self._rotation is None:
            vectors = self._basis[self._first :]
            return x - vectors.T @ (self._less[:, None] * (vectors @ x))
        projected = self._basis @ x if self._basis.dtype == np.float64 else along(x.T, self._basis).T
        return x - spanned(self._basis, self._rotation @ (self._less[:, None] * (self._rotation.T @ projected)))

    def cost(self) -> str:
        """See `Preconditioner`."""
        return f"{self.rank} Ritz vectors, {4 * self._basis.size:.2g} flops a vector"
