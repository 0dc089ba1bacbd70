"""Layers of finite networks that mix pixels: windows, pools and norms.

Images are `(n, height, width, channels)`, volumes `(n, depth, height, width, channels)`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.geometry import Window
from ntkpipe.kernels.layers.transposed import TransposedWindow


def _windows(spatial: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: str) -> list[Window]:
    if len(size) != len(spatial):
        what = (
            "volumes and need three numbers, [depth, height, width]"
            if len(spatial) == 3
            else "images and need two, [height, width]"
        )
        raise ConfigError(f"has windows of {len(size)} numbers, {list(size)}, but the inputs are {what}")
    return [Window(int(n), f, s, padding) for n, f, s in zip(spatial, size, strides, strict=True)]


def window_outputs(
    spatial: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: str
) -> tuple[int, ...]:
    """Return the number of output pixels along each spatial axis.

    Raises:
        ConfigError: if no window fits, or if the windows and the inputs differ in their number of axes.
    """
    return tuple(window.out for window in _windows(spatial, size, strides, padding))


def pad(x: Any, size: Sequence[int], strides: Sequence[int], padding: str) -> Any:
    """Return the images padded for their windows: with zeros, or from the other end if the padding is circular."""
    if padding == "VALID":
        return x
    widths = [tuple(max(pad, 0) for pad in w.pads) for w in _windows(x.shape[1:-1], size, strides, padding)]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap" if padding == "CIRCULAR" else "constant")


def convolve(padded: Any, w: Any, strides: Sequence[int]) -> Any:
    """Return the convolution of padded images or volumes.

    Filters are `(height, width, in, out)` for images and `(depth, height, width, in, out)` for volumes.
    """
    axes = "DHW"[-len(strides) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(padded, w, strides, "VALID", dimension_numbers=numbers)


def with_gaps(x: Any, size: Sequence[int], strides: Sequence[int], padding: str) -> Any:
    """Return padded images with `stride - 1` zeros after each pixel.

    Their convolution with stride 1 is the transposed convolution of the images.
    """
    axes = zip(x.shape[1:3], size, strides, strict=True)
    windows = [TransposedWindow(int(n), f, s, padding) for n, f, s in axes]
    n, h, w, channels = x.shape
    (s, t), (height, width) = strides, (h * strides[0], w * strides[1])
    x = jnp.pad(x[:, :, None, :, None], [(0, 0), (0, 0), (0, s - 1), (0, 0), (0, t - 1), (0, 0)])
    x = x.reshape(n, height, width, channels)
    for axis, window in enumerate(windows, 1):
        low, high = window.low, window.out + window.size - 1 - window.low - x.shape[axis]
        if high < 0:
            x, high = jax.lax.slice_in_dim(x, 0, x.shape[axis] + high, axis=axis), 0
        widths = [(0, 0)] * 4
        widths[axis] = (low, high)
        x = jnp.pad(x, widths, mode="wrap" if padding == "CIRCULAR" else "constant")
    return x


def resized(layer: Mapping[str, Any], x: Any) -> Any:
    """Return the images resized to the layer's height and width."""
    height, width = (n if wanted < 0 else wanted for n, wanted in zip(x.shape[1:3], layer["shape"], strict=True))
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, layer["method"], antialias=layer["antialias"])


def patches(padded: Any, size: Sequence[int], strides: Sequence[int], outputs: Sequence[int]) -> list[Any]:
    """Return the values under each tap of a window, one array `(n, out_height, out_width, channels)` per tap."""

    def under(tap: tuple[int, ...]) -> Any:
        axes = zip(tap, outputs, strides, strict=True)
        return padded[(slice(None), *(slice(a, a + (out - 1) * stride + 1, stride) for a, out, stride in axes))]

    return [under(tap) for tap in itertools.product(*map(range, size))]


def pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Return the sums or means over windows of the padded images."""
    size, strides, padding = layer["window"], layer["strides"], layer["padding"]
    window_outputs(x.shape[1:-1], size, strides, padding)

    def total(x: Any) -> Any:
        padded = pad(x, size, strides, padding)
        return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, *size, 1), (1, *strides, 1), "VALID")

    if layer["op"] == "sum_pool":
        return total(x)
    return total(x) / (total(jnp.ones_like(x)) if layer["normalize_edges"] else math.prod(size))


def global_pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Return the mean or sum over all pixels, `(n, channels)`."""
    axes = tuple(range(1, x.ndim - 1))
    return x.mean(axis=axes) if layer["op"] == "global_avg_pool" else x.sum(axis=axes)


def normalised(layer: Mapping[str, Any], x: Any) -> Any:
    """Return `(x - mean) / sqrt(variance + eps)`, with the moments over the layer's axes."""
    axes = (-1,) if x.ndim == 2 or layer["axis"] == [-1] else tuple(range(1, x.ndim))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + layer["eps"])
