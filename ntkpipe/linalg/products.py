"""Products of stored tiles with skinny blocks of vectors, and where they are accumulated.

A tile is walked through in panels of rows that stay in the cache, so that the product with the panel's transpose costs
no second trip to memory. Measured on one core (2048^2 float32 tile, 9 columns, both products, milliseconds):

| products | whole tile at once | panels |
|---|---|---|
| float32, `x` by columns / by rows | 4.3 / 3.9 | 3.5 / 3.3 (64 rows) |
| float64, upcast | 13.2 | 6.5 / 6.3 / 6.8 / 6.3 (32, 64, 128, 256 rows; `x` by columns) |

Reading the tile alone takes 0.8, upcasting it in panels 1.3. Hence rows-first `x` in float32, columns in float64.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

_PANEL_BYTES_32 = 64 * 2048 * 4
_PANEL_BYTES_64 = 128 * 2048 * 8


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
        self._x = np.ascontiguousarray(x, dtype=np.float64)
        self._y = np.zeros((rows, x.shape[1]))
        self._buffer = np.empty(0)

    def add(self, tile: np.ndarray, row: int, col: int, *, transpose: bool) -> None:
        """See `Accumulator.add`."""
        height, width = tile.shape
        step = max(16, _PANEL_BYTES_64 // (8 * width))
        if tile.dtype != np.float64 and self._buffer.size < step * width:
            self._buffer = np.empty(step * width)
        x, y = self._x[col : col + width], self._y
        for low in range(0, height, step):
            panel = tile[low : low + step]
            if tile.dtype != np.float64:
                upcast = self._buffer[: panel.size].reshape(panel.shape)
                upcast[...] = panel
                panel = upcast
            high = low + len(panel)
            y[row + low : row + high] += panel @ x
            if transpose:
                y[col : col + width] += panel.T @ self._x[row + low : row + high]

    def result(self) -> np.ndarray:
        """See `Accumulator.result`."""
        return self._y


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
