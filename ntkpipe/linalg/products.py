"""Products of stored tiles with skinny blocks of vectors, and where they are accumulated.

A tile is walked through in panels of rows that stay in the cache, so that the product with the panel's transpose costs
no second trip to memory. `x` is held by rows, `(k, n)`: OpenBLAS multiplies a wide block from the left faster than from the right.
Measured on 2048^2 tiles, 9 columns, both products, milliseconds:

| products | one thread: `x` by columns / by rows | two threads |
|---|---|---|
| float32 | 3.5 / 3.3 (64 rows a panel) | |
| float64 tiles | 12.4 / 8.4 / 8.3 (128 rows; 128; 512) | 6.8 / 5.2 / 5.1 |
| float32 tiles, upcast | 10.0 / 9.0 / 9.1 | 7.9 / 7.2 / 6.6 |

The two threads read a float64 tile at 13 GB/s where summing its entries reads 13 too.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

_PANEL_BYTES_32 = 64 * 2048 * 4
_PANEL_BYTES_64 = 512 * 2048 * 8


@runtime_checkable
class Accumulator(Protocol):
    """Collects `y = A x` tile by tile, for one `x`."""

    def add(self, tile: Any, row: int, col: int, *, transpose: bool) -> None:
        """Add the part of the tile whose first entry is `(row, col)`; with `transpose` its mirror image as well."""
        ...

    def result(self) -> np.ndarray:
        """`(rows, k)` float64."""
        ...


class Float64Products:
    """Every product and sum in float64; tiles of float32 are upcast panel by panel.

    Args:
        x: `(cols, k)` float64.
        rows: of the result.
    """

    def __init__(self, x: np.ndarray, rows: int) -> None:
        self._x = np.ascontiguousarray(x.T, dtype=np.float64)
        self._y = np.zeros((x.shape[1], rows))
        self._buffer = np.empty(0)

    def add(self, tile: np.ndarray, row: int, col: int, *, transpose: bool) -> None:
        """See `Accumulator.add`."""
        height, width = tile.shape
        step = max(16, _PANEL_BYTES_64 // (8 * width))
        if tile.dtype != np.float64 and self._buffer.size < min(step, height) * width:
            self._buffer = np.empty(min(step, height) * width)
        x, y = self._x[:, col : col + width], self._y
        for low in range(0, height, step):
            panel = tile[low : low + step]
            if tile.dtype != np.float64:
                upcast = self._buffer[: panel.size].reshape(panel.shape)
                upcast[...] = panel
                panel = upcast
            high = low + len(panel)
            y[:, row + low : row + high] += x @ panel.T
            if transpose:
                y[:, col : col + width] += self._x[:, row + low : row + high] @ panel

    def result(self) -> np.ndarray:
        """See `Accumulator.result`."""
        return np.ascontiguousarray(self._y.T)


class Float32Products:
    """Products in float32, a panel's sums; between panels and tiles the sums are float64.

    The relative error of a product is about 1e-7 and does not improve if `x` is split into high and low parts: the
    sums' rounding is as large. Careful runs use `Float64Products`.

    Args:
        x: `(cols, k)`; rounded to float32.
        rows: of the result.
    """

    def __init__(self, x: np.ndarray, rows: int) -> None:
        self._x = np.ascontiguousarray(x.T, dtype=np.float32)
        self._y = np.zeros((x.shape[1], rows))

    def add(self, tile: np.ndarray, row: int, col: int, *, transpose: bool) -> None:
        """See `Accumulator.add`."""
        tile = np.asarray(tile, dtype=np.float32)
        height, width = tile.shape
        step = max(16, _PANEL_BYTES_32 // (4 * width))
        x, y = self._x[:, col : col + width], self._y
        for low in range(0, height, step):
            panel = tile[low : low + step]
            high = low + len(panel)
            y[:, row + low : row + high] += x @ panel.T
            if transpose:
                y[:, col : col + width] += self._x[:, row + low : row + high] @ panel

    def result(self) -> np.ndarray:
        """See `Accumulator.result`."""
        return np.ascontiguousarray(self._y.T)


def accumulator(products: str, x: np.ndarray, rows: int, *, device: bool = False) -> Accumulator:
    """The accumulator for `products` (`float32` or `float64`) on the CPU, or on JAX's default device.

    Raises:
        ValueError: for other names.
    """
    if products not in ("float32", "float64"):
        raise ValueError(f"solver.products={products!r} is not one of float32, float64")
    if device:
        # Imported late: JAX takes half a second and is needed on accelerators only.
        from ntkpipe.linalg.device_products import DeviceProducts

        return DeviceProducts(x, rows, products)
    return Float64Products(x, rows) if products == "float64" else Float32Products(x, rows)
