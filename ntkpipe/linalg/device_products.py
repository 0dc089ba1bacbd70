"""Products of tiles that live on an accelerator."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_accelerator() -> bool:
    """True if JAX's default device is not the CPU."""
    return jax.default_backend() != "cpu"


def to_device(tile: np.ndarray) -> Any:
    """The tile on JAX's default device, in its own dtype."""
    with jax.enable_x64(True):
        return jax.device_put(tile)


@functools.partial(jax.jit, static_argnames=("products", "transpose"), donate_argnums=0)
def _accumulate(y: Any, tile: Any, x: Any, row: Any, col: Any, *, products: str, transpose: bool) -> Any:
    dtype = jnp.dtype(products)
    tile = tile.astype(dtype)
    height, width = tile.shape
    k = x.shape[1]

    def add(y: Any, matrix: Any, source: Any, size: int, target: Any) -> Any:
        part = jax.lax.dynamic_slice(x, (source, 0), (size, k)).astype(dtype)
        # HIGHEST: the default would run float32 in TF32 on some GPUs, errors near 3e-4.
        product = jnp.dot(matrix, part, precision=jax.lax.Precision.HIGHEST).astype(y.dtype)
        present = jax.lax.dynamic_slice(y, (target, 0), product.shape)
        return jax.lax.dynamic_update_slice(y, present + product, (target, 0))

    y = add(y, tile, col, width, row)
    return add(y, tile.T, row, height, col) if transpose else y


class DeviceProducts:
    """An `Accumulator` whose `x` and `y` stay on JAX's default device; sums over tiles are float64.

    Args:
        x: `(cols, k)` float64.
        rows: of the result.
        products: `float32` or `float64`, of the products within a tile.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str) -> None:
        self._products = products
        with jax.enable_x64(True):
            self._x = jax.device_put(np.ascontiguousarray(x, dtype=np.float64))
            self._y = jnp.zeros((rows, x.shape[1]), jnp.float64)

    def add(self, tile: Any, row: int, col: int, *, transpose: bool) -> None:
        """See `ntkpipe.linalg.products.Accumulator.add`; tiles in host memory are copied to the device first."""
        with jax.enable_x64(True):
            self._y = _accumulate(self._y, tile, self._x, row, col, products=self._products, transpose=transpose)

    def result(self) -> np.ndarray:
        """`(rows, k)` float64 on the host."""
        return np.asarray(self._y)
