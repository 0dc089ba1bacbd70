"""Layers of finite networks that mix pixels: windows, pools, norms. Images are `(n, height, width, channels)`, volumes have
a depth before these.
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
        raise ConfigError(f"has windows of {len(size)} numbers, {list(size)}; here are {what}")
    return [Window(int(n), f, s, padding) for n, f, s in zip(spatial, size, strides, strict=True)]


def window_outputs(
    spatial: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: str
) -> tuple[int, ...]:
    """Output pixels along both axes.

    Raises:
        ConfigError: if no window fits.
    """
    return tuple(window.out for window in _windows(spatial, size, strides, padding))


def pad(x: Any, size: Sequence[int], strides: Sequence[int], padding: str) -> Any:
    """Zeros, or the other end of the image, where windows reach beyond it."""
    if padding == "VALID":
        return x
    widths = [tuple(max(pad, 0) for pad in w.pads) for w in _windows(x.shape[1:-1], size, strides, padding)]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap" if padding == "CIRCULAR" else "constant")


def convolve(padded: Any, w: Any, strides: Sequence[int]) -> Any:
    """Convolution of padded images with filters `(height, width, in, out)`, of volumes `(depth, height, width, in, out)`."""
    axes = "DHW"[-len(strides) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(padded, w, strides, "VALID", dimension_numbers=numbers)


def with_gaps(x: Any, size: Sequence[int], strides: Sequence[int], padding: str) -> Any:
    """Images with `stride - 1` zeros behind each pixel, padded: a convolution of stride 1 of them is the transposed one."""
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
    """Images of the layer's height and width."""
    height, width = (n if wanted < 0 else wanted for n, wanted in zip(x.shape[1:3], layer["shape"], strict=True))
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, layer["method"], antialias=layer["antialias"])


def patches(padded: Any, size: Sequence[int], strides: Sequence[int], outputs: Sequence[int]) -> list[Any]:
    """What lies under every tap of a window: arrays `(n, out_height, out_width, channels)`."""

    def under(tap: tuple[int, ...]) -> Any:
        axes = zip(tap, outputs, strides, strict=True)
        return padded[(slice(None), *(slice(a, a + (out - 1) * stride + 1, stride) for a, out, stride in axes))]

    return [under(tap) for tap in itertools.product(*map(range, size))]


def pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Sums over windows of the padded image, divided as the layer says."""
    size, strides, padding = layer["window"], layer["strides"], layer["padding"]
    window_outputs(x.shape[1:-1], size, strides, padding)

    def total(x: Any) -> Any:
        padded = pad(x, size, strides, padding)
        return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, *size, 1), (1, *strides, 1), "VALID")

    if layer["op"] == "sum_pool":
        return total(x)
    return total(x) / (total(jnp.ones_like(x)) if layer["normalize_edges"] else math.prod(size))


def global_pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Mean or sum over all pixels."""
    axes = tuple(range(1, x.ndim - 1))
    return x.mean(axis=axes) if layer["op"] == "global_avg_pool" else x.sum(axis=axes)


def normalised(layer: Mapping[str, Any], x: Any) -> Any:
    """Less the mean over the layer's axes, divided by the standard deviation there."""
    axes = (-1,) if x.ndim == 2 or layer["axis"] == [-1] else tuple(range(1, x.ndim))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + layer["eps"])
