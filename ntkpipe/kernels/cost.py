"""Arithmetic and memory of a tile, for plans: integers and floats only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ntkpipe.kernels.spec import canonical_spec

# Floating-point operations per image pair of the two kernels together, counted from the formulas, a square root or a
# division as one. They matter for deep networks on small images only: an inner product takes 2 * 3072.
_FLOPS: Mapping[str, float] = {
    "flatten": 0.0,
    "dense": 4.0,
    "relu": 32.0,
    "leaky_relu": 32.0,
    "ab_relu": 32.0,
    "erf": 40.0,
    "gelu": 60.0,
    "sin": 50.0,
    "identity": 0.0,
    "layer_norm": 3.0,
}


def flops_per_pair(spec: Sequence[Mapping[str, Any]], image_shape: Sequence[int]) -> float:
    """Floating-point operations of both kernels of one pair of images.

    Args:
        spec: the layers.
        image_shape: `(height, width, channels)` or `(features,)`.

    Raises:
        ConfigError: if the spec is not one.
    """
    return 2.0 * math.prod(image_shape) + sum(_FLOPS[layer["op"]] for layer in canonical_spec(spec))


def tile_bytes(rows: int, cols: int, image_shape: Sequence[int], dtype: str, out_dtype: str) -> int:
    """Memory that one tile needs while it is computed: both blocks of images, both results, and the strips.

    Args:
        rows: of the tile.
        cols: of the tile.
        image_shape: of one image.
        dtype: of the computation, `float32` or `float64`.
        out_dtype: of the results.
    """
    size, out_size = _itemsize(dtype), _itemsize(out_dtype)
    images = (rows + cols) * math.prod(image_shape) * size
    results = 2 * rows * cols * out_size
    # One strip of products, of 4 MiB or 64 rows, and some of the map, of 1 MiB or 16 rows (see kernels/host.py).
    strips = max(4 << 20, 64 * cols * size) + 8 * max(1 << 20, 16 * cols * size)
    return images + results + strips


def _itemsize(dtype: str) -> int:
    return {"float32": 4, "float64": 8}[dtype]
