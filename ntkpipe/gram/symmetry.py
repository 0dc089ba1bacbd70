"""Checks on a few pairs of images in float64 whether a kernel may be symmetrised under flips."""

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

# Number of images whose pairs are checked.
_SAMPLE = 4


def check_flips(specs: Sequence[Sequence[Mapping[str, Any]]], image_shape: Sequence[int]) -> None:
    """Refuse images without a width, and kernels with `k(f x, f y)` different from `k(x, y)` for the horizontal flip f.

    The check uses images of random noise: if the kernels of some images differ, those of almost all images differ.

    Args:
        specs: layers of the networks.
        image_shape: `(height, width, channels)`.

    Raises:
        ConfigError: with the kernel and the two values.
    """
    if len(image_shape) != 3 or image_shape[1] < 2:
        raise ConfigError(
            f"augment=hflip needs images with a width, but these have shape {list(image_shape)}: set augment=none"
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
                    f"augment=hflip needs a kernel that is invariant under flips of both images, but the {kernel} of "
                    f"two images is {plain[kernel][worst]:.6g} and that of their mirror images is "
                    f"{flipped[kernel][worst]:.6g}. Strided SAME convolutions and pools cause this: use strides of 1, "
                    "or CIRCULAR padding without strides, or augment=none"
                )


def _rounding(spec: Sequence[Any], kernels: Mapping[str, np.ndarray], kernel: str, pixels: int) -> np.ndarray:
    """The largest difference between the two kernels that rounding can cause.

    The sum of `pixels` products is computed in another order, and every layer rounds some tens of times. A map of the
    angle between two images amplifies these errors by up to `1 / sin(angle)`. The correlation `rho` of the output bounds
    this factor, because correlations grow from layer to layer.
    """
    own = kernels[kernel].diagonal()
    scale = np.sqrt(np.outer(own, own))
    nngp = kernels["nngp"]
    rho = nngp / np.sqrt(np.outer(nngp.diagonal(), nngp.diagonal()))
    sine = np.sqrt(np.clip(1.0 - rho**2, EPS, None))
    layers = json.dumps(list(unrolled(canonical_spec(spec)))).count('"op"')
    return 8 * (pixels + 64 * layers) * EPS * scale / sine
