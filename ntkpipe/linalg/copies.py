"""Training points that equal each other: a kernel cannot tell them apart, and neither does what is computed here.

With `Q` the projection onto vectors that are equal on equal points, an exact kernel has `T = Q T Q` and `T_* = T_* Q`. Hence
`f(T) y = f(Q T Q) Q y` on everything that a prediction sees: equal points may be given the mean of their targets, and all of
their weights then are equal as well. Stored entries of equal points differ by rounding, which `Q T Q` takes away: the null
directions between them are exact, and no target lies along them.
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
    """Which points equal which.

    Args:
        first: (n,) for every point the first one that equals it, itself if there is none before.
    """

    first: np.ndarray

    @staticmethod
    def of(pairs: Sequence[tuple[int, int]] | np.ndarray, n: int) -> Copies:
        """From pairs `(first, copy)`, of which those beyond the leading n points are left out."""
        first = np.arange(n)
        for i, j in pairs:
            if j < n:
                first[j] = i
        return Copies(first)

    def of_rows(self, each: int) -> Copies:
        """Of rows, so many of each point one after another."""
        if each == 1:
            return self
        return Copies((each * self.first[:, None] + np.arange(each)).ravel())

    @cached_property
    def count(self) -> int:
        """Points that equal an earlier one: the dimension of the null space that they make."""
        return int(np.count_nonzero(self.first != np.arange(len(self.first))))

    @property
    def sizes(self) -> np.ndarray:
        """(n,) how many points equal each, itself included."""
        return np.bincount(self.first, minlength=len(self.first))[self.first]

    def average(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`Q x`: rows of equal points replaced by their mean; the array itself if there are none."""
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
        """All points that equal one of these, ascending."""
        return np.flatnonzero(np.isin(self.first, self.first[indices]))

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """First points of the groups with more than one member, ascending, and all members of these."""
        groups = np.unique(self.first[self.first != np.arange(len(self.first))])
        return groups, np.flatnonzero(np.isin(self.first, groups))


class MergedOperator:
    """`Q A Q` of a stored matrix, an `Operator`.

    Args:
        operator: A.
        copies: of its rows.
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
        """`(n,)` float64, that of A: of equal points all entries are one."""
        return self._operator.diagonal()

    def pair_bound(self) -> float:
        """See `Operator.pair_bound`: from pairs of points that do not equal each other.

        Of groups with more than one member the quotients of `Q A Q` are larger; those of their members are taken, to be safe.
        """
        return self._operator.pair_bound(self._copies.first)


AnyOperator = TileOperator | MergedOperator


def merged(operator: TileOperator, copies: Copies) -> AnyOperator:
    """The operator itself where no points are equal."""
    return MergedOperator(operator, copies) if copies.count else operator
