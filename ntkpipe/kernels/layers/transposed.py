"""Transposed convolutions, which enlarge images (arXiv:1603.07285)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ntkpipe.kernels.geometry import AnyWindow, Window
from ntkpipe.kernels.layers.convolution import Conv, require_plane
from ntkpipe.kernels.state import Signature


@dataclass(frozen=True)
class TransposedWindow(Window):
    """A window that slides over pixels with `stride - 1` gaps between them.

    Output position o covers the positions `o - low + tap` of the image with its gaps; pixels are at multiples of the
    stride. As in `jax.lax.conv_transpose`, the output of `SAME` and `CIRCULAR` is `stride` times as long as the input,
    and the output of `VALID` ends with the last window that covers a pixel.
    """

    slides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Skip the checks of `Window`: every window fits."""

    @property
    def out(self) -> int:
        """Number of output positions."""
        more = max(self.size - self.stride, 0) if self.padding == "VALID" else 0
        return self.extent * self.stride + more

    @property
    def low(self) -> int:
        """Number of positions before the first pixel that the first window covers."""
        if self.padding == "VALID" or self.stride >= self.size:
            return self.size - 1
        return -(-(self.size + self.stride - 2) // 2)

    def positions(self, tap: int) -> np.ndarray:
        """Return the pixel under a tap for each output position, `(out,)`; -1 in the padding and in the gaps."""
        at = np.arange(self.out) - self.low + tap
        if self.padding == "CIRCULAR":
            at = at % self.out
        meets = (at % self.stride == 0) & (at >= 0) & (at < self.extent * self.stride)
        return np.where(meets, at // self.stride, -1)

    @property
    def is_exact(self) -> bool:
        """False: most output classes come from no input class."""
        return False


@dataclass(frozen=True)
class ConvTranspose(Conv):
    """A convolution of the image with gaps between its pixels.

    The parameters are those of `Conv`, and the sum over taps is divided by the size of the filter in the same way.
    """

    def _windows(self, incoming: Signature) -> tuple[Window, AnyWindow]:
        require_plane(incoming)
        axes = zip(incoming.spatial, self.filter, self.strides, strict=True)
        rows, columns = (TransposedWindow(extent, size, stride, self.padding) for extent, size, stride in axes)
        return rows, columns
