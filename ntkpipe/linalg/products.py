"""Products of stored tiles with narrow blocks of vectors, and their sums.

A tile is processed in panels of rows that stay in the cache, so the product with the panel's transpose does not read memory again.
`x` is stored by rows, `(k, n)`, because OpenBLAS multiplies a wide block from the left faster than from the right. The table gives
milliseconds for both products of 2048^2 tiles with 9 columns in one thread:

| products | `x` by columns / by rows |
|---|---|
| float32 | 3.5 / 3.3 (64 rows a panel) |
| float64 tiles | 12.4 / 8.4 / 8.3 (128 rows; 128; 512) |
| float32 tiles, upcast | 10.0 / 9.0 / 9.1 |

A pass over 5,000 points with panels of 128, 256 and 512 rows took 18.9, 15.8 and 22.3 ms (float32 tiles, two lanes), 27.4, 26.1 and 29.7 ms
(float32 tiles, one thread), and 16.3, 14.7 and 15.0 ms (float64 tiles, two lanes). Lanes share the panels of a tile, so with few panels a
lane may be idle.

Long solves with few vectors use `fused.both` instead, which takes a third of the time in float64 (`benchmarks/passes.py`).
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.linalg.lanes import Lanes

_PANEL_BYTES_32 = 64 * 2048 * 4
_PANEL_BYTES_64 = 256 * 2048 * 8

# Fused products. Rows of a panel: lanes share the four panels of a tile of 2,048 rows. Largest number of vectors: BLAS is faster for more.
# Least length of vectors: all passes of a shorter solve take less than the half second that loading Numba takes.
_FUSED_ROWS = 512
_FUSED_VECTORS = 32
_FUSED_LENGTH = 4096


@runtime_checkable
class Accumulator(Protocol):
    """Collects `y = A x` tile by tile, for one `x`."""

    def add(self, tile: Any, row: int, col: int, *, transpose: bool) -> None:
        """Add the product of the tile whose first entry is `(row, col)`. With `transpose`, also add that of its mirror image."""
        ...

    def result(self) -> np.ndarray:
        """The sum `(rows, k)` in float64."""
        ...


class _Panels:
    """An accumulator that processes tiles by panels. Lanes share the panels of a tile.

    Different panels add to different rows of the result. Their contributions to mirrored rows overlap. These are added in the order of
    the panels when all panels of the tile are done, so the result does not depend on the number of lanes.

    Args:
        x: `(cols, k)`, stored as `(k, cols)` in the precision of products, with at least `vectors` rows.
        rows: number of rows of the result.
        products: precision of products, `float32` or `float64`. Sums over panels are float64.
        lanes: threads that share a tile; None is only the calling thread.
        vectors: rows of zeros are added to `x` until it has this number of rows.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None, vectors: int = 1) -> None:
        self._x = self._zeros(max(x.shape[1], vectors), x.shape[0], products)
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

    def _zeros(self, rows: int, cols: int, dtype: str) -> np.ndarray:
        """An array of zeros for `x`."""
        return np.zeros((rows, cols), dtype)

    def _step(self, width: int) -> int:
        """Number of rows of a panel of tiles with this width."""
        raise NotImplementedError

    def _products(
        self, panel: np.ndarray, row: int, col: int, *, transpose: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The products of a panel whose first entry is `(row, col)`: for its own rows `(k, h)`, and for mirrored rows `(k, w)`."""
        raise NotImplementedError


class BlasProducts(_Panels):
    """Products by BLAS with panels that stay in the cache. Panels are converted to the precision of the products.

    Products in float32 have a relative error of about 1e-7. Splitting `x` into high and low parts does not reduce it, because the
    rounding of the sums is as large. Use float64 for higher accuracy.

    Args:
        x: `(cols, k)`.
        rows: number of rows of the result.
        products: precision of products, `float32` or `float64`.
        lanes: threads that share a tile; None is only the calling thread.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None = None) -> None:
        super().__init__(x, rows, products, lanes)
        self._buffers: list[np.ndarray] = []  # buffers for converted panels, one for each lane

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
        """The panel in the precision of the products, and the buffer that contains it; None if no conversion was needed."""
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
    """Products by `fused.both`, which reads a panel once for both products and makes no converted copy.

    Args:
        x: `(cols, k)`.
        rows: number of rows of the result.
        products: precision of products, `float32` or `float64`.
        lanes: threads that share a tile; None is only the calling thread.

    Raises:
        ImportError: if Numba is not installed.
    """

    def __init__(self, x: np.ndarray, rows: int, products: str, lanes: Lanes | None = None) -> None:
        from ntkpipe.linalg.fused import both, skewed

        self._both, self._skewed = both, skewed
        super().__init__(x, rows, products, lanes, vectors=2)

    def _zeros(self, rows: int, cols: int, dtype: str) -> np.ndarray:
        return self._skewed(rows, cols, dtype)

    def _step(self, width: int) -> int:
        return _FUSED_ROWS

    def _products(
        self, panel: np.ndarray, row: int, col: int, *, transpose: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        own, mirrored = self._both(panel, self._x, row, col)
        return own, mirrored if transpose else None


def fused_pays(x: np.ndarray) -> bool:
    """Whether `FusedProducts` are faster for `x` `(cols, k)`: it has few vectors, and they are long enough to be worth loading Numba."""
    return x.shape[1] <= _FUSED_VECTORS and x.shape[0] >= _FUSED_LENGTH and _fused_installed()


@functools.cache
def _fused_installed() -> bool:
    """Whether Numba is installed and works with this NumPy."""
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
    """The accumulator for products on the CPU, or on JAX's default device.

    Args:
        products: precision of products, `float32` or `float64`.
        x: `(cols, k)`.
        rows: number of rows of the result.
        mirrored: whether the mirror images of most tiles are multiplied as well.
        device: whether to use JAX's default device.
        lanes: threads of the CPU that share a tile; None is only the calling thread.

    Raises:
        ValueError: if `products` has another value.
    """
    if products not in ("float32", "float64"):
        raise ValueError(f"solver.products={products!r} is not one of float32, float64")
    if device:
        # Imported here, because JAX takes half a second to import and only accelerators need it.
        from ntkpipe.linalg.device_products import DeviceProducts

        return DeviceProducts(x, rows, products)
    return (FusedProducts if mirrored and fused_pays(x) else BlasProducts)(x, rows, products, lanes)
