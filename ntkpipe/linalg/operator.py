"""What the solvers multiply with: a symmetric matrix, dense or stored as tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Operator(Protocol):
    """A symmetric n x n matrix that can be multiplied with."""

    @property
    def n(self) -> int:
        """Number of rows."""
        ...

    def matmul(self, x: np.ndarray) -> np.ndarray:
        """`A x` for `x` of shape `(n, k)`; float64 in, float64 out."""
        ...

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """`(m, n)` float64, rows of the matrix as it is stored."""
        ...

    def diagonal(self) -> np.ndarray:
        """`(n,)` float64."""
        ...
