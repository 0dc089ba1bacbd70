"""Tiles of a kernel that is the product of given features: `J J^T / scale`, summed over blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.gram.function import as_tile
from ntkpipe.gram.numbered import runs_of
from ntkpipe.gram.plan import ITEM_BYTES
from ntkpipe.kernels.accelerator import default_platform, precision_context
from ntkpipe.kernels.cost import KernelCost

# Bytes of feature columns that are read at once, for the rows and for the columns of a tile.
_AT_ONCE = 64 << 20
# Block size of points for which only `k(x, x)` is needed.
_OWN_ROWS = 256


@dataclass(frozen=True)
class FeatureKernel:
    """An `Evaluator` of the kernel of given features.

    Args:
        features: that were checked.
    """

    features: GivenFeatures

    def evaluation(self, dtype: str) -> FeatureEvaluation:
        """See `Evaluator.evaluation`."""
        return FeatureEvaluation(self.features, dtype)


@dataclass(frozen=True, eq=False)
class Rows:
    """Points of a tile, with all their features if these are few.

    Args:
        numbers: (n, 2), see `RowNumbers`.
        held: features (n, P) in the dtype of the computation; None if they are read when they are needed.
    """

    numbers: np.ndarray
    held: np.ndarray | None


@dataclass(frozen=True)
class FeatureEvaluation:
    """The `Evaluates` of a feature kernel.

    Args:
        features: of the points.
        dtype: of the products; sums over blocks of columns are float64.
    """

    features: GivenFeatures
    dtype: str

    @property
    def flips(self) -> bool:
        """False: there are no images."""
        return False

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> Rows:
        """See `Evaluates.prepare`. Few features are read here; many features are read while tiles are computed."""
        del flipped
        whole = columns_at_once(self.features, len(images), self.dtype) >= self.features.count
        return Rows(images, self._read(images, slice(0, self.features.count)) if whole else None)

    def tile(
        self,
        rows: Rows,
        columns: Rows | None,
        flipped: None = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.tile`; exactly symmetric if the rows are paired with themselves."""
        del flipped, pad_to, pairs_per_step
        other = rows if columns is None else columns
        count = self.features.count
        step = columns_at_once(self.features, max(len(rows.numbers), len(other.numbers)), self.dtype)
        made = np.zeros((len(rows.numbers), len(other.numbers)))
        for start in range(0, count, step):
            here = slice(start, min(start + step, count))
            left = self._part(rows, here)
            made += _product(left, left if columns is None else self._part(other, here), self.dtype)
        made /= self.features.scale
        return [{"gram": as_tile(made, out_dtype, symmetric=columns is None)}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        made = np.zeros(len(images))
        for top in range(0, len(images), _OWN_ROWS):
            numbers = images[top : top + _OWN_ROWS]
            step = columns_at_once(self.features, len(numbers), "float64")
            for start in range(0, self.features.count, step):
                part = self._read(numbers, slice(start, min(start + step, self.features.count))).astype(np.float64)
                made[top : top + len(numbers)] += np.einsum("ik,ik->i", part, part)
        return [{"gram": made / self.features.scale}]

    def _part(self, rows: Rows, columns: slice) -> np.ndarray:
        return self._read(rows.numbers, columns) if rows.held is None else rows.held[:, columns]

    def _read(self, numbers: np.ndarray, columns: slice) -> np.ndarray:
        """Some columns of some points, in the dtype of the computation; consecutive points are read together."""
        parts = [self.features.array(block).read(rows, columns) for block, rows in runs_of(numbers)]
        made = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(made, dtype=self.dtype)


def _product(left: np.ndarray, right: np.ndarray, dtype: str) -> np.ndarray:
    """`left right^T`. On a CPU the libraries of NumPy multiply faster than those of JAX."""
    if default_platform() == "cpu":
        return left @ right.T
    with precision_context(dtype), jax.default_matmul_precision("highest"):
        return np.asarray(jnp.asarray(left) @ jnp.asarray(right).T)


def columns_at_once(features: GivenFeatures, rows: int, dtype: str) -> int:
    """Number of feature columns to read at once for so many rows: whole chunks of up to 64 MiB, at least one chunk."""
    fitting = max(1, _AT_ONCE // (rows * ITEM_BYTES[dtype]))
    return min(features.count, max(features.chunk, fitting // features.chunk * features.chunk))


def feature_cost(features: GivenFeatures, rows: int, dtype: str) -> KernelCost:
    """Arithmetic of one pair of points, and memory per point of a tile."""
    return KernelCost(0.0, 2.0 * features.count, 1, 1, columns_at_once(features, rows, dtype), 4)
