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

Long solves with few vectors take `fused.both` instead, which needs a third of the time in float64: `benchmarks/passes.py`.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.linalg.lanes import Lanes

_PANEL_BYTES_32 = 64 * 2048 * 4
_PANEL_BYTES_64 = 256 * 2048 * 8

# Fused products: rows of a panel, of which lanes share the four of a tile of 2,048; most vectors, beyond which BLAS is the faster one;
# least length of vectors: below it all passes of a solve take less than the half second that it takes to load Numba.
_FUSED_ROWS = 512
_FUSED_VECTORS = 32
_FUSED_LENGTH = 4096


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
        x: `(cols, k)`, held as `(k, cols)` in the precision of products, with at least `vectors` rows.
        rows: of the result.
        products: `float32` or `float64`, of products. Sums between panels are float64.
        lanes: threads that share a tile; None is the calling one.
        vectors: rows of zeros are added to `x` up to this many.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None, vectors: int = 1) -> None:
        self._x = np.zeros((max(x.shape[1], vectors), x.shape[0]), products)
        self._x[: x.shape[1]] = x.T
        self._y = np.zeros((x.shape[1], rows))
        self._lanes = lanes or Lanes()

    def add(self, tile: np.ndarray, row: int, col: int, *, transpose: bool) -> None:
        """See `Accumulator.add`."""
        height, width = tile.shape
        step, k, y = self._step(width), len(self._y), self._y
        lows = range(0, height, step)
        mirrored: list[np.ndarray | None] = [None] * len(lows)

        def work(part: int) -> None:
            low, high = lows[part], min(lows[part] + step, height)
            own, mirror = self._products(tile[low:high], row + low, col, transpose=transpose)
            y[:, row + low : row + high] += own[:k]
            mirrored[part] = mirror

        self._lanes.each(work, range(len(lows)))
        for part in mirrored:
            if part is not None:
                y[:, col : col + width] += part[:k]

    def result(self) -> np.ndarray:
        """See `Accumulator.result`."""
        return np.ascontiguousarray(self._y.T)

    def _step(self, width: int) -> int:
        """Rows of a panel of tiles this wide."""
        raise NotImplementedError

    def _products(
        self, panel: np.ndarray, row: int, col: int, *, transpose: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What the panel whose first entry is `(row, col)` adds to its own rows, `(k, h)`, and to the mirrored ones, `(k, w)`."""
        raise NotImplementedError


class BlasProducts(_Panels):
    """Products by BLAS, panels that stay in the cache; a panel of another precision than the products' is converted first.

    Products in float32 have a relative error of about 1e-7, which does not improve if `x` is split into high and low parts: the
    sums' rounding is as large. Careful runs use float64.

    Args:
        x: `(cols, k)`.
        rows: of the result.
        products: `float32` or `float64`.
        lanes: threads that share a tile; None is the calling one.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None = None) -> None:
        super().__init__(x, rows, products, lanes)
        self._buffers: list[np.ndarray] = []  # of panels that are converted, one for each lane

    def _step(self, width: int) -> int:
        size = _PANEL_BYTES_64 if self._x.itemsize == 8 else _PANEL_BYTES_32
        return max(16, size // (self._x.itemsize * width))

    def _products(
        self, panel: np.ndarray, row: int, col: int, *, transpose: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        height, width = panel.shape
        panel, buffer = self._converted(panel, self._step(width) * width)
        own = self._x[:, col : col + width] @ panel.T
        mirrored = self._x[:, row : row + height] @ panel if transpose else None
        if buffer is not None:
            self._buffers.append(buffer)
        return own, mirrored

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


class FusedProducts(_Panels):
    """Both products of a panel from one reading, without a converted copy, by `fused.both`.

    Args:
        x: `(cols, k)`.
        rows: of the result.
        products: `float32` or `float64`.
        lanes: threads that share a tile; None is the calling one.

    Raises:
        ImportError: without Numba.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None = None) -> None:
        from ntkpipe.linalg.fused import both

        super().__init__(x, rows, products, lanes, vectors=2)
        self._both = both

    def _step(self, width: int) -> int:
        return _FUSED_ROWS

    def _products(
        self, panel: np.ndarray, row: int, col: int, *, transpose: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        own, mirrored = self._both(panel, self._x, row, col)
        return own, mirrored if transpose else None


def fused_pays(x: np.ndarray) -> bool:
    """Whether `FusedProducts` are the faster ones for `x`, `(cols, k)`: few vectors, and enough work to load Numba for."""
    return x.shape[1] <= _FUSED_VECTORS and x.shape[0] >= _FUSED_LENGTH and _fused_installed()


@functools.cache
def _fused_installed() -> bool:
    """Whether Numba is here and works with this NumPy."""
    try:
        import ntkpipe.linalg.fused  # noqa: F401
    except ImportError:
        return False
    return True


def accumulator(
    products: str,
    x: np.ndarray,
    rows: int,
    *,
    mirrored: bool = True,
    device: bool = False,
    lanes: Lanes | None = None,
) -> Accumulator:
    """The accumulator for `products` (`float32` or `float64`) on the CPU, or on JAX's default device.

    Args:
        products: `float32` or `float64`.
        x: `(cols, k)`.
        rows: of the result.
        mirrored: most tiles are to be multiplied with their mirror image as well.
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
    return (FusedProducts if mirrored and fused_pays(x) else BlasProducts)(x, rows, products, lanes)
