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

    At infinite width the mean over features is zero and the mean square is the variance v. The NTK is divided by the
    same number as K (as in neural-tangents).

    Args:
        axis: the normalised axes. `(-1,)` normalises the channels of each pixel, and v is the variance of the pixel.
            `(1, 2, 3)` normalises the whole image, and v is the mean variance of its pixels.
        eps: added to the variances, above 0.
    """

    axis: tuple[int, ...]
    eps: float

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the incoming signature: Gaussian stays Gaussian, because the norm does not fluctuate at infinite
        width.

        Raises:
            ConfigError: if the input is not Gaussian.
        """
        if not incoming.is_gaussian:
            raise ConfigError(
                'needs Gaussian activations: put a linear layer such as {"op": "dense"} or {"op": "conv"} right before it'
            )
        return incoming

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the outgoing classes; an own block also needs class 0, which holds the variances."""
        return including_variances(incoming.spatial, support, own=own)

    def image_features(self, own: KernelState) -> tuple[Array]:
        """Return the inverse root mean square of each pixel or image."""
        if not own.signature.spatial:
            return (1.0 / jnp.sqrt(own.nngp + self.eps),)
        variance = layout.variances(own.nngp)
        if self.axis != (-1,):
            variance = variance.mean(axis=(0, 1), keepdims=True)
        return (1.0 / jnp.sqrt(variance + self.eps),)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the bounds divided by the product of the norms."""
        axes = (0, 1) if incoming.spatial and self.axis != (-1,) else ()
        p, q = (variance.mean(axis=axes, keepdims=True) if axes else variance for variance in before[:2])
        first, second = 1.0 / jnp.sqrt(p + self.eps), 1.0 / jnp.sqrt(q + self.eps)
        both = first * second
        return Apart(before.p * first**2, before.q * second**2, before.upper * both, before.lower * both)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Divide both kernels by the product of the norms."""
        row, column = layout.own_views(self, state) if state.is_own else (state.row, state.column)
        assert row is not None
        assert column is not None
        return state.map(lambda x: x * (row()[0] * column()[0]), outgoing)
