"""A sum or product of networks' kernels. Its tiles are combined from the tiles of its parts on every read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ntkpipe.gram.combined import CombinedEvaluation
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import ImageSource, Output
from ntkpipe.kernels.combined import Combination
from ntkpipe.sources.computed import ComputedSource
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix


@dataclass(frozen=True)
class CombinedTiles:
    """A `TileMatrix` that combines the tiles of other matrices on the same grid, rounded to their dtype.

    Args:
        parts: a combination of tile matrices.
    """

    parts: Combination

    @property
    def grid(self) -> TileGrid:
        """See `TileMatrix`."""
        return self.parts.leaves()[0].grid

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """See `TileMatrix`."""
        return self.parts.leaves()[0].dtype

    def read(self, i: int, j: int) -> np.ndarray:
        """See `TileMatrix`; each part's tile is read once."""
        tiles = {part: part.read(i, j) for part in dict.fromkeys(self.parts.leaves())}
        return np.ascontiguousarray(self.parts.combine(lambda part: tiles[part]), dtype=self.dtype)

    def leading(self, rows: int, cols: int | None = None) -> CombinedTiles:
        """See `TileMatrix`."""
        return CombinedTiles(self.parts.map(lambda part: part.leading(rows, cols)))


@dataclass(frozen=True)
class CombinedSource(ComputedSource):
    """Both kernels of a sum or product; see `KernelSource`. `gram` is the store of the first part.

    Args:
        parts: a combination of `NetworkSource`s whose stores have the same grid.
        combined: the identity of the combined kernel.
    """

    parts: Combination
    combined: GramIdentity

    @property
    def identity(self) -> GramIdentity:
        """See `KernelSource`."""
        return self.combined

    @property
    def where(self) -> str:
        """See `KernelSource`."""
        return f"{self.parts.kind} of {' and '.join(dict.fromkeys(one.where for one in self.parts.leaves()))}"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        found = {output.gram: output for one in self.parts.leaves() for output in one.outputs}
        return tuple(found.values())

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return CombinedEvaluation(self.parts.map(lambda one: one.evaluation(dtype)))

    def plain_evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return CombinedEvaluation(self.parts.map(lambda one: one.plain_evaluation(dtype)))

    def shorter_evaluation(self) -> Evaluates | None:
        """See `ComputedSource`."""
        if all(one.shorter_evaluation() is None for one in self.parts.leaves()):
            return None
        return CombinedEvaluation(self.parts.map(lambda one: one.shorter_evaluation() or one.evaluation("float64")))

    def of_points(self, images: ImageSource, data: str, n: int, p: int, store: ObjectStore) -> Self:
        """See `ComputedSource`."""
        moved = super().of_points(images, data, n, p, store)
        parts = self.parts.map(lambda one: one.of_points(images, data, n, p, store))
        combined = dataclasses.replace(self.combined, data=data, n_train=n, n_test=p)
        return dataclasses.replace(moved, parts=parts, combined=combined)

    def matrix(self, kernel: Kernel, block: Block, rows: int, cols: int) -> TileMatrix:
        """See `KernelSource`."""
        if not self.stored:
            return super().matrix(kernel, block, rows, cols)
        return CombinedTiles(self.parts.map(lambda one: one.matrix(kernel, block, rows, cols)))

    def diagonal(self, kernel: Kernel, block: Block, rows: int, *, plain: bool = False) -> np.ndarray:
        """See `KernelSource`."""
        return self.parts.combine(lambda one: one.diagonal(kernel, block, rows, plain=plain))

    def describe(self) -> dict[str, Any]:
        """See `KernelSource`."""
        return {**self.parts.describe(lambda one: list(one.spec)), **super().describe()}

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`: the largest value of the parts for a sum, and their product for a product (Schur).

        `trace` is not used, because it does not bound the parts.
        """
        return self.parts.reduce(
            lambda one: one.dominance(np.inf, smallest),
            lambda weights, values: max(value for weight, value in zip(weights, values, strict=True) if weight),
            lambda values: float(np.prod(values)),
        )
