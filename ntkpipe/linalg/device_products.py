"""Products of tiles on an accelerator."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.accelerator import default_platform, to_host

# Tiles per call. A call takes the host about 0.1 ms. Meanwhile a GPU reads twenty tiles of 2048 rows.
_TOGETHER = 16
# Largest memory of the tiles of one call, because tiles that are not kept on the device wait in its memory.
_WAITING_BYTES = 1 << 28


def on_accelerator() -> bool:
    """True if JAX's default device is not the CPU."""
    return default_platform() != "cpu"


def to_device(tile: np.ndarray) -> Any:
    """The tile on JAX's default device, in its own dtype."""
    with jax.enable_x64(True):
        return jax.device_put(tile)


@functools.partial(jax.jit, static_argnames=("products", "transpose"), donate_argnums=0)
def _accumulate(y: Any, tiles: list[Any], x: Any, places: Any, *, products: str, transpose: bool) -> Any:
    """Add to `y` the products of tiles of one shape. `places` `(tiles, 2)` are the row and column of their first entries."""
    dtype = jnp.dtype(products)

    def add(y: Any, matrix: Any, source: Any, target: Any) -> Any:
        part = jax.lax.dynamic_slice_in_dim(x, source, matrix.shape[1]).astype(dtype)
        # HIGHEST: the default would run float32 in TF32 on some GPUs, errors near 3e-4.
        product = jnp.dot(matrix, part, precision=jax.lax.Precision.HIGHEST).astype(y.dtype)
        present = jax.lax.dynamic_slice_in_dim(y, target, len(product))
        return jax.lax.dynamic_update_slice_in_dim(y, present + product, target, axis=0)

    for tile, (row, col) in zip(tiles, places, strict=True):
        matrix = tile.astype(dtype)
        y = add(y, matrix, col, row)
        if transpose:
            y = add(y, matrix.T, row, col)
    return y


class DeviceProducts:
    """An `Accumulator` with `x` and `y` on JAX's default device. Sums over tiles are float64.

    Tiles of one shape are multiplied in groups, in the order in which they are added.

    Args:
        x: `(cols, k)` float64.
        rows: number of rows of the result.
        products: precision of products within a tile, `float32` or `float64`.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str) -> None:
        self._products = products
        self._waiting: defaultdict[Any, list[tuple[Any, int, int]]] = defaultdict(list)
        with jax.enable_x64(True):
            self._x = jax.device_put(np.ascontiguousarray(x, dtype=np.float64))
            self._y = jnp.zeros((rows, x.shape[1]), jnp.float64)

    def add(self, tile: Any, row: int, col: int, *, transpose: bool) -> None:
        """See `ntkpipe.linalg.products.Accumulator.add`. Tiles in host memory are copied to the device."""
        kind = (tile.shape, str(tile.dtype), transpose)
        waiting = self._waiting[kind]
        waiting.append((tile, row, col))
        if len(waiting) == max(1, min(_TOGETHER, _WAITING_BYTES // max(1, tile.nbytes))):
            self._multiply(kind)

    def _multiply(self, kind: Any) -> None:
        waiting = self._waiting.pop(kind)
        places = np.array([place for _, *place in waiting], np.int32)
        with jax.enable_x64(True):
            self._y = _accumulate(
                self._y,
                [tile for tile, *_ in waiting],
                self._x,
                places,
                products=self._products,
                transpose=kind[-1],
            )

    def result(self) -> np.ndarray:
        """The result `(rows, k)` in float64, on the host."""
        for kind in list(self._waiting):
            self._multiply(kind)
        return to_host(self._y)
