"""Blocks of images with what layers see of each."""

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
    """A block of images and what layers see of each, from `Architecture.prepare`.

    Args:
        images: of the block.
        seen: of each.
        masked: of sequences that end at different places, what every network sees; `seen` is then empty.
    """

    images: np.ndarray
    seen: PerImageFeatures
    masked: tuple[PerImageFeatures, ...] = ()

    @cached_property
    def on_device(self) -> jax.Array:
        """The images on JAX's default device, copied once. Ask within `precision_context(images.dtype)`."""
        return jax.device_put(self.images)

    def along(self, steps: Sequence[Step]) -> PerImageFeatures:
        """What each step of the network sees: a tap nothing, and nor do those after the last that does."""
        return along(steps, self.seen)


def along(steps: Sequence[Step], seen: PerImageFeatures) -> PerImageFeatures:
    """What each step sees, of what those of the network without taps have seen."""
    left, nothing = iter(seen), no_features(steps)
    return tuple(
        none if isinstance(step.layer, Tap) else next(left, none) for step, none in zip(steps, nothing, strict=True)
    )
