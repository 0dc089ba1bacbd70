"""Products of stored tiles with skinny blocks of vectors, and where they are accumulated.

A tile is walked through in panels of rows that stay in the cache, so that the product with the panel's transpose costs
no second trip to memory. `x` is held by rows, `(k, n)`: OpenBLAS multiplies a wide block from the left faster than from the right.
Measured on 2048^2 tiles, 9 columns, both products, one thread, milliseconds:

| products | `x` by columns / by rows |
|---|---|
| float32 | 3.5 / 3.3 (64 rows a panel) |
| float64 tiles | 12.4 / 8.4 / 8.3 (128 rows; 128; 512) |
| float32 tiles, upcast | 10.0 / 9.0 / 9.1 |

A pass over 5,000 points by panels of 128, 256 and 512 rows, milliseconds: float32 tiles, two lanes, 18.9, 15.8, 22.3; one thread
27.4, 26.1, 29.7; float64 tiles, two lanes, 16.3, 14.7, 15.0. Lanes share the panels of a tile: few panels leave a lane idle.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.linalg.lanes import Lanes

_PANEL_BYTES_32 = 64 * 2048 * 4
_PANEL_BYTES_64 = 256 * 2048 * 8


@runtime_checkable
class Accumulator(Protocol):
    """Collects `y = A x` tile by tile, for one `x`."""

    def add(self, tile: Any, row: int, col: int, *, transpose: bool) -> None:
        """Add the part of the tile whose first entry is `(row, col)`; with `transpose` its mirror image as well."""
        ...

    def result(self) -> np.ndarray:
        """`(rows, k)` float64."""
        ...


class _Panels:
    """Accumulates panel by panel; lanes share the panels of a tile.

    A panel's own rows of the result are its own. What a panel adds to the mirrored rows is added when all panels of the tile are done, in
    their order: the result does not depend on the number of lanes.

    Args:
        x: `(cols, k)`.
        rows: of the result.
        dtype: of products.
        panel_bytes: of a panel.
        lanes: threads that share a tile; None is the calling one.
    """

    def __init__(self, x: np.ndarray, rows: int, dtype: type, panel_bytes: int, lanes: Lanes | None) -> None:
        self._x = np.ascontiguousarray(x.T, dtype=dtype)
        self._y = np.zeros((x.shape[1], rows))
        self._panel_bytes, self._lanes = panel_bytes, lanes or Lanes()
        self._buffers: list[np.ndarray] = []  # of panels that are converted, one for each lane

    def add(self, tile: np.ndarray, row: int, col: int, *, transpose: bool) -> None:
        """See `Accumulator.add`."""
        height, width = tile.shape
        step = max(16, self._panel_bytes // (self._x.itemsize * width))
        lows = range(0, height, step)
        mirrored: list[np.ndarray | None] = [None] * len(lows)
        x, y = self._x[:, col : col + width], self._y

        def work(k: int) -> None:
            low, high = lows[k], min(lows[k] + step, height)
            panel, buffer = self._converted(tile[low:high], step * width)
            y[:, row + low : row + high] += x @ panel.T
            if transpose:
                mirrored[k] = self._x[:, row + low : row + high] @ panel
            if buffer is not None:
                self._buffers.append(buffer)

        self._lanes.each(work, range(len(lows)))
        for part in mirrored:
            if part is not None:
                y[:, col : col + width] += part

    def _converted(self, panel: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The panel in the precision of the products, and the buffer that holds it, if one had to."""
        if panel.dtype == self._x.dtype:
            return panel, None
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = np.empty(0, self._x.dtype)
        if buffer.size < size:
            buffer = np.empty(size, self._x.dtype)
        converted = buffer[: panel.size].reshape(panel.shape)
        converted[...] = panel
        return converted, buffer

    def result(self) -> np.ndarray:
        """See `Accumulator.result`."""
        return np.ascontiguousarray(self._y.T)


class Float64Products(_Panels):
    """Every product and sum in float64; tiles of float32 are upcast panel by panel.

    Args:
        x: `(cols, k)` float64.
        rows: of the result.
        lanes: threads that share a tile; None is the calling one.
    """

    def __init__(self, x: np.ndarray, rows: int, lanes: Lanes | None = None) -> None:
        super().__init__(x, rows, np.float64, _PANEL_BYTES_64, lanes)


class Float32Products(_Panels):
    """Products in float32, a panel's sums; between panels and tiles the sums are float64.

    The relative error of a product is about 1e-7 and does not improve if `x` is split into high and low parts: the
    sums' rounding is as large. Careful runs use `Float64Products`.

    Args:
        x: `(cols, k)`; rounded to float32.
        rows: of the result.
        lanes: threads that share a tile; None is the calling one.
    """

    def __init__(self, x: np.ndarray, rows: int, lanes: Lanes | None = None) -> None:
        super().__init__(x, rows, np.float32, _PANEL_BYTES_32, lanes)


def accumulator(
    products: str, x: np.ndarray, rows: int, *, device: bool = False, lanes: Lanes | None = None
) -> Accumulator:
    """The accumulator for `products` (`float32` or `float64`) on the CPU, or on JAX's default device.

    Args:
        products: `float32` or `float64`.
        x: `(cols, k)`.
        rows: of the result.
        device: on JAX's default device.
        lanes: threads that share a tile, of the CPU; None is the calling one.

    Raises:
        ValueError: for other names.
    """
    if products not in ("float32", "float64"):
        raise ValueError(f"solver.products={products!r} is not one of float32, float64")
    if device:
        # Imported late: JAX takes half a second and is needed on accelerators only.
        from ntkpipe.linalg.device_products import DeviceProducts

        return DeviceProducts(x, rows, products)
    return Float64Products(x, rows, lanes) if products == "float64" else Float32Products(x, rows, lanes)
