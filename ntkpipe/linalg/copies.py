"""Equal training points, which a kernel cannot distinguish.

Let `Q` be the projection onto vectors that are equal on equal points. An exact kernel has `T = Q T Q` and `T_* = T_* Q`. So
predictions do not change if `f(T) y` is replaced by `f(Q T Q) Q y`: equal points get the mean of their targets, and then have equal
weights. Stored entries of equal points differ by rounding. `Q T Q` removes these differences, so the null directions between equal
points are exact, and no target has a component along them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from ntkpipe.linalg.operator import TileOperator


@dataclass(frozen=True)
class Copies:
    """The groups of equal points.

    Args:
        first: (n,) index of the first point that equals each point; its own index if no earlier point does.
    """

    first: np.ndarray

    @staticmethod
    def of(pairs: Sequence[tuple[int, int]] | np.ndarray, n: int) -> Copies:
        """The groups of n points from pairs `(first, copy)`. Pairs with later points are ignored."""
        first = np.arange(n)
        for i, j in pairs:
            if j < n:
                first[j] = i
        return Copies(first)

    def of_rows(self, each: int) -> Copies:
        """The groups of rows, if each point has `each` consecutive rows."""
        if each == 1:
            return self
        return Copies((each * self.first[:, None] + np.arange(each)).ravel())

    @cached_property
    def count(self) -> int:
        """Number of points that equal an earlier one, which is the dimension of the null space that they cause."""
        return int(np.count_nonzero(self.first != np.arange(len(self.first))))

    @property
    def sizes(self) -> np.ndarray:
        """Number (n,) of points that equal each point, itself included."""
        return np.bincount(self.first, minlength=len(self.first))[self.first]

    def average(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`Q x`: rows of equal points are replaced by their mean. Without equal points it is the array itself."""
        if not self.count:
            return x
        out = x.copy()
        groups, members = self._groups
        sums = np.zeros((len(groups), x.shape[1]))
        at = np.searchsorted(groups, self.first[members])
        np.add.at(sums, at, x[members])
        out[members] = (sums / np.bincount(at)[:, None])[at]
        return out

    def average_matrix(self, array: np.ndarray) -> np.ndarray:
        """`Q A Q` of a symmetric (n, n) array."""
        return self.average(np.ascontiguousarray(self.average(array).T)) if self.count else array

    def together(self, indices: np.ndarray) -> np.ndarray:
        """Indices of all points that equal one of `indices`, ascending."""
        return np.flatnonzero(np.isin(self.first, self.first[indices]))

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """First points of the groups with more than one member, ascending, and all members of these groups."""
        groups = np.unique(self.first[self.first != np.arange(len(self.first))])
        return groups, np.flatnonzero(np.isin(self.first, groups))


class MergedOperator:
    """`Q A Q` of a stored matrix, an `Operator`.

    Args:
        operator: the matrix A.
        copies: groups of equal rows of A.
    """

    def __init__(self, operator: TileOperator, copies: Copies) -> None:
        self._operator = operator
        self._copies = copies

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._operator.n

    def matmul(self, x: Float64[np.ndarray, "n k"], products: str | None = None) -> Float64[np.ndarray, "n k"]:
        """`Q A Q x`; see `RectangularOperator.matmul`."""
        return self._copies.average(self._operator.matmul(self._copies.average(x), products))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Float64[np.ndarray, "m n"]:
        """`(m, n)` float64, rows of `Q A Q`."""
        indices = np.asarray(indices, dtype=np.int64)
        members = self._copies.together(indices)
        stored = self._copies.average(np.ascontiguousarray(self._operator.rows(members).T)).T
        same = self._copies.first[members][None, :] == self._copies.first[indices][:, None]
        return (same / same.sum(axis=1, keepdims=True)) @ stored

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """The diagonal `(n,)` of A in float64. Equal points have equal entries up to rounding."""
        return self._operator.diagonal()

    def pair_bound(self) -> float:
        """See `Operator.pair_bound`. It uses pairs of different points.

        `Q A Q` has larger Rayleigh quotients for groups with more than one member. The smaller quotients of the members are used instead.
        """
        return self._operator.pair_bound(self._copies.first)


AnyOperator = TileOperator | MergedOperator


def merged(operator: TileOperator, copies: Copies) -> AnyOperator:
    """The operator with equal points merged; without equal points it is the operator itself."""
    return MergedOperator(operator, copies) if copies.count else operator
