"""May a kernel be symmetrised under flips? Asked of a few pairs of images, in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.gram.worker import compute_tile, flip
from ntkpipe.kernels.spec import canonical_json, canonical_spec, unrolled
from ntkpipe.tiles.layout import KERNELS

EPS = float(np.finfo(np.float64).eps)

# Images whose pairs are looked at.
_SAMPLE = 4


def check_flips(specs: Sequence[Sequence[Mapping[str, Any]]], image_shape: Sequence[int]) -> None:
    """Refuse kernels for which `k(f x, f y)` is not `k(x, y)`, f the horizontal flip, and images that have no left and right.

    Args:
        specs: layers of the networks.
        image_shape: `(height, width, channels)`. The images that are looked at are noise: if the kernels of some images
            differ, so do those of almost all.

    Raises:
        ConfigError: saying which kernel, and by how much.
    """
    if len(image_shape) != 3 or image_shape[1] < 2:
        raise ConfigError(
            f"augment=hflip needs images with a left and a right; these have shape {list(image_shape)}: set augment=none"
        )
    x = np.random.default_rng(0).standard_normal((_SAMPLE, *image_shape))
    for spec in {canonical_json(spec): spec for spec in specs}.values():
        plain, flipped = (
            compute_tile(spec, some, None, diagonal=True, dtype="float64", out_dtype="float64") for some in (x, flip(x))
        )
        for kernel in KERNELS:
            far = np.abs(flipped[kernel] - plain[kernel]) - _rounding(spec, plain, kernel, x[0].size)
            if (far > 0).any():
                worst = np.unravel_index(np.argmax(far), far.shape)
                raise ConfigError(
                    f"augment=hflip needs a kernel that flips leave as it is, and this one's {kernel} of two images is "
                    f"{plain[kernel][worst]:.6g}, of their mirror images {flipped[kernel][worst]:.6g}. Strided SAME "
                    "convolutions and pools do that: use strides of 1, or CIRCULAR padding without strides, or augment=none"
                )


def _rounding(spec: Sequence[Any], kernels: Mapping[str, np.ndarray], kernel: str, pixels: int) -> np.ndarray:
    """How far rounding may carry the two apart.

    The inner product of `pixels` products is summed in another order, and every layer rounds some tens of times. A map of
    the angle between two images multiplies that by up to `1 / sin(angle)`, which `rho`, the correlation at the end, bounds:
    it grows from layer to layer.
    """
    own = kernels[kernel].diagonal()
    scale = np.sqrt(np.outer(own, own))
    nngp = kernels["nngp"]
    rho = nngp / np.sqrt(np.outer(nngp.diagonal(), nngp.diagonal()))
    sine = np.sqrt(np.clip(1.0 - rho**2, EPS, None))
    layers = json.dumps(list(unrolled(canonical_spec(spec)))).count('"op"')
    return 8 * (pixels + 64 * layers) * EPS * scale / sine
