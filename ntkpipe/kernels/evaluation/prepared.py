"""Blocks of images with their per-image features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from ntkpipe.kernels.evaluation.fold import PerImageFeatures, no_features
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step


@dataclass(frozen=True)
class Prepared:
    """A block of images and their per-image features; `Architecture.prepare` makes it.

    Args:
        images: images of the block, `(n, ...)`.
        seen: features of each image.
        masked: features for every network if sequences have different lengths; `seen` is then empty.
    """

    images: np.ndarray
    seen: PerImageFeatures
    masked: tuple[PerImageFeatures, ...] = ()

    @cached_property
    def on_device(self) -> jax.Array:
        """The images on JAX's default device, copied once; read it within `precision_context(images.dtype)`."""
        return jax.device_put(self.images)

    def along(self, steps: Sequence[Step]) -> PerImageFeatures:
        """Return the features for each step; taps and the steps after the last one with features have none."""
        return along(steps, self.seen)


def along(steps: Sequence[Step], seen: PerImageFeatures) -> PerImageFeatures:
    """Return the features for each step, from the features of the same network without taps."""
    left, nothing = iter(seen), no_features(steps)
    return tuple(
        none if isinstance(step.layer, Tap) else next(left, none) for step, none in zip(steps, nothing, strict=True)
    )
