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
    """Return `scale * covariance + b_std^2`."""
    scaled = covariance * scale
    return scaled + b_std**2 if b_std else scaled


def own_gradients(layer: _Weights, nngp: Array, inputs: Array) -> Array:
    """Return the contribution of a linear layer's own weights and biases to the NTK (arXiv:1806.07572).

    Args:
        layer: gives the parameterisation and whether there is a bias.
        nngp: covariance after the layer, which is the whole contribution in the `ntk` parameterisation.
        inputs: sum of the covariances over the fan-in, which is the contribution of the weights in the `standard`
            parameterisation.
    """
    if layer.parameterization == "ntk":
        return nngp
    return inputs if layer.b_std is None else inputs + 1.0


@dataclass(frozen=True)
class Flatten:
    """Merge the spatial axes and the channels: both kernels become means over equal pixels. Flat activations pass
    unchanged.
    """

    is_linear = False
    feature_scope: ClassVar[FeatureScope] = "nothing"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the flat signature, whose features are channels times pixels."""
        return dataclasses.replace(
            incoming, spatial=(), support=(), grid=(), features=incoming.features * math.prod(incoming.spatial)
        )

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return class 0, the covariances of equal pixels."""
        del support, own
        return ((0,),) * len(incoming.spatial)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return True for flat activations: an image has no classes left after this layer."""
        del outgoing
        return not incoming.spatial

    def image_features(self, own: KernelState) -> None:
        """Return None: the layer needs nothing of single images."""

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the bounds of the mean over pixels."""
        if not incoming.spatial:
            return before
        pixels = math.prod(incoming.spatial)
        return joined(Apart(*(part.reshape(pixels, -1) for part in before))).times(1.0 / pixels)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Average both kernels over equal pixels."""
        if not state.signature.spatial:
            return state.replace(signature=outgoing)
        scale = 1.0 / math.prod(state.signature.spatial)
        return state.settled().map(lambda x: x.sum(axis=(0, 1, 2, 3)) * scale, outgoing)


@dataclass(frozen=True)
class Dense(Pointwise):
    """A fully connected layer, `w_std / sqrt(fan_in) W x + b_std b` with independent standard normal W and b.

    With K and T before the layer (arXiv:1806.07572), K' = w_std^2 K + b_std^2. The NTK depends on the parameterisation:

    - `ntk`: T' = K' + w_std^2 T.
    - `standard`: T' = fan_in K + w_std^2 T + (1 if there is a bias). Here w_std / sqrt(fan_in) and b_std are the
      standard deviations of the weights and biases at initialisation, not factors.

    Args:
        features: number of outputs, which is the fan-in of the next dense layer.
        w_std: standard deviation of the weights.
        b_std: standard deviation of the bias; 0.0 means a trainable bias that starts at zero, None means no bias.
        parameterization: `ntk` or `standard`.
    """

    features: int
    w_std: float
    b_std: float | None
    parameterization: str

    is_linear = True

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer: Gaussian, with this layer's features.

        Raises:
            ConfigError: if the input is an image.
        """
        if incoming.spatial:
            shape = list(incoming.shape)
            raise ConfigError(
                f'acts on flat activations, got images of shape {shape}: put {{"op": "flatten"}} or '
                '{"op": "global_avg_pool"} first'
            )
        return Signature((), self.features, is_gaussian=True)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the scaled and shifted bounds."""
        return with_bias(before.times(self.w_std**2), (self.b_std or 0.0) ** 2)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Scale and shift the covariances; add this layer's own gradients to the NTK."""
        nngp = affine(state.nngp, self.w_std**2, self.b_std)
        ntk = own_gradients(self, nngp, state.nngp * float(state.signature.features))
        if state.ntk is not None:
            ntk = ntk + self.w_std**2 * state.ntk
        return state.replace(nngp=nngp, ntk=ntk, signature=outgoing)
