"""Layers of finite networks that mix pixels: windows, pools, norms. Images are `(n, height, width, channels)`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntkpipe.kernels.geometry import Window


def _windows(spatial: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: str) -> list[Window]:
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
    widths = [tuple(max(pad, 0) for pad in w.pads) for w in _windows(x.shape[1:3], size, strides, padding)]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap" if padding == "CIRCULAR" else "constant")


def convolve(padded: Any, w: Any, strides: Sequence[int]) -> Any:
    """Convolution of padded images with filters `(height, width, in, out)`."""
    return jax.lax.conv_general_dilated(padded, w, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def patches(padded: Any, size: Sequence[int], strides: Sequence[int], outputs: Sequence[int]) -> list[Any]:
    """What lies under every tap of a window: arrays `(n, out_height, out_width, channels)`."""
    return [
        padded[
            :,
            a : a + (outputs[0] - 1) * strides[0] + 1 : strides[0],
            b : b + (outputs[1] - 1) * strides[1] + 1 : strides[1],
        ]
        for a in range(size[0])
        for b in range(size[1])
    ]


def pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Sums over windows of the padded image, divided as the layer says."""
    size, strides, padding = layer["window"], layer["strides"], layer["padding"]
    window_outputs(x.shape[1:3], size, strides, padding)

    def total(x: Any) -> Any:
        padded = pad(x, size, strides, padding)
        return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, *size, 1), (1, *strides, 1), "VALID")

    if layer["op"] == "sum_pool":
        return total(x)
    return total(x) / (total(jnp.ones_like(x)) if layer["normalize_edges"] else math.prod(size))


def global_pool(layer: Mapping[str, Any], x: Any) -> Any:
    """Mean or sum over all pixels."""
    return x.mean(axis=(1, 2)) if layer["op"] == "global_avg_pool" else x.sum(axis=(1, 2))


def normalised(layer: Mapping[str, Any], x: Any) -> Any:
    """Less the mean over the layer's axes, divided by the standard deviation there."""
    axes = tuple(layer["axis"]) if x.ndim == 4 else (-1,)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + layer["eps"])
