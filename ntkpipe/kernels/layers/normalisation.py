"""Normalisation of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.geometry import Support, including_variances
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Pointwise, Signature


@dataclass(frozen=True)
class LayerNorm(Pointwise):
    """Divide activations by their root mean square over some axes: K / sqrt((v + eps) (v' + eps)).

    At infinite width the mean over features is zero and their mean square is the variance, so that the NTK is
    divided by the same number (as in neural-tangents).

    Args:
        axis: normalised axes: `(-1,)`, the channels of each pixel, whose mean square is the pixel's variance; or
            `(1, 2, 3)`, the whole image, whose mean square is the mean variance of its pixels.
        eps: added to the variances, above 0.
    """

    axis: tuple[int, ...]
    eps: float

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def outgoing(self, incoming: Signature) -> Signature:
        """The same signature: a Gaussian stays Gaussian, since its norm does not fluctuate at infinite width."""
        if not incoming.is_gaussian:
            raise ConfigError(
                'needs Gaussian activations: put a linear layer such as {"op": "dense"} or {"op": "conv"} right before it'
            )
        return incoming

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """The same; of own blocks class 0 holds the variances."""
        return including_variances(incoming.spatial, support, own=own)

    def image_features(self, own: KernelState) -> tuple[Array]:
        """One over the root mean square of each pixel or image."""
        if not own.signature.spatial:
            return (1.0 / jnp.sqrt(own.nngp + self.eps),)
        variance = layout.variances(own.nngp)
        if self.axis != (-1,):
            variance = variance.mean(axis=(0, 1), keepdims=True)
        return (1.0 / jnp.sqrt(variance + self.eps),)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Divided by the product of the norms."""
        axes = (0, 1) if incoming.spatial and self.axis != (-1,) else ()
        p, q = (variance.mean(axis=axes, keepdims=True) if axes else variance for variance in before[:2])
        first, second = 1.0 / jnp.sqrt(p + self.eps), 1.0 / jnp.sqrt(q + self.eps)
        both = first * second
        return Apart(before.p * first**2, before.q * second**2, before.upper * both, before.lower * both)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Divide by the product of the norms."""
        row, column = layout.own_views(self, state) if state.is_own else (state.row, state.column)
        assert row is not None
        assert column is not None
        return state.map(lambda x: x * (row()[0] * column()[0]), outgoing)
