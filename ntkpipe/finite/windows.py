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
