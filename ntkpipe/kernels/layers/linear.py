"""Linear layers: after them activations are Gaussian at infinite width (arXiv:1711.00165, arXiv:1806.07572)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.apart import Apart, joined, with_bias
from ntkpipe.kernels.geometry import Support
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Pointwise, Signature


@runtime_checkable
class _Weights(Protocol):
    @property
    def b_std(self) -> float | None: ...
    @property
    def parameterization(self) -> str: ...


def affine(covariance: Array, scale: float, b_std: float | None) -> Array:
    """`scale * covariance + b_std^2`."""
    scaled = covariance * scale
    return scaled + b_std**2 if b_std else scaled


def own_gradients(layer: _Weights, nngp: Array, inputs: Array) -> Array:
    """What a linear layer's own weights and biases add to the NTK (arXiv:1806.07572).

    Args:
        layer: its parameterisation, and whether it has a bias.
        nngp: covariance after the layer: the addition in the `ntk` parameterisation.
        inputs: sum of the covariances over the layer's fan-in: the addition of the weights in the `standard` one.
    """
    if layer.parameterization == "ntk":
        return nngp
    return inputs if layer.b_std is None else inputs + 1.0


@dataclass(frozen=True)
class Flatten:
    """Merge the spatial axes and the channels: the mean over the spatial diagonal. The identity once activations are flat."""

    is_linear = False
    feature_scope: ClassVar[FeatureScope] = "nothing"

    def outgoing(self, incoming: Signature) -> Signature:
        """Flat, with every pixel's channels counted as features."""
        return dataclasses.replace(
            incoming, spatial=(), support=(), grid=(), features=incoming.features * math.prod(incoming.spatial)
        )

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Pixels with themselves."""
        del support, own
        return ((0,),) * len(incoming.spatial)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Nothing is left to keep, if it was an image."""
        del outgoing
        return not incoming.spatial

    def image_features(self, own: KernelState) -> None:
        """Nothing."""

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Of the mean over pixels."""
        if not incoming.spatial:
            return before
        pixels = math.prod(incoming.spatial)
        return joined(Apart(*(part.reshape(pixels, -1) for part in before))).times(1.0 / pixels)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """The mean over pixels."""
        if not state.signature.spatial:
            return state.replace(signature=outgoing)
        scale = 1.0 / math.prod(state.signature.spatial)
        return state.settled().map(lambda x: x.sum(axis=(0, 1, 2, 3)) * scale, outgoing)


@dataclass(frozen=True)
class Dense(Pointwise):
    """A fully connected layer, `w_std / sqrt(fan_in) W x + b_std b` with independent standard normal W and b.

    With K and T before the layer (arXiv:1806.07572): K' = w_std^2 K + b_std^2, and
    `ntk` parameterisation: T' = K' + w_std^2 T;
    `standard`, in which w_std / sqrt(fan_in) and b_std are the scales of the weights at initialisation instead of
    factors: T' = fan_in K + w_std^2 T + (1 if there is a bias).

    Args:
        features: outgoing; the fan-in of the next dense layer.
        w_std: of the weights.
        b_std: of the bias; 0.0 has a trainable bias that begins at zero, None has none.
        parameterization: `ntk` or `standard`.
    """

    features: int
    w_std: float
    b_std: float | None
    parameterization: str

    is_linear = True

    def outgoing(self, incoming: Signature) -> Signature:
        """Gaussian, with this layer's features."""
        if incoming.spatial:
            shape = list(incoming.shape)
            raise ConfigError(
                f'acts on flat activations, got images of shape {shape}: put {{"op": "flatten"}} or '
                '{"op": "global_avg_pool"} first'
            )
        return Signature((), self.features, is_gaussian=True)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Scaled and shifted."""
        return with_bias(before.times(self.w_std**2), (self.b_std or 0.0) ** 2)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Scale and shift the covariances; add this layer's own gradients to the NTK."""
        nngp = affine(state.nngp, self.w_std**2, self.b_std)
        ntk = own_gradients(self, nngp, state.nngp * float(state.signature.features))
        if state.ntk is not None:
            ntk = ntk + self.w_std**2 * state.ntk
        return state.replace(nngp=nngp, ntk=ntk, signature=outgoing)
