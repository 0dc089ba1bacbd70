"""Linear layers: after them activations are Gaussian at infinite width (arXiv:1711.00165, arXiv:1806.07572)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.state import KernelState, Signature


@dataclass(frozen=True)
class Flatten:
    """Merge the spatial axes and the channels. The identity once activations are flat."""

    def outgoing(self, incoming: Signature) -> Signature:
        """Flat, with every pixel's channels counted as features."""
        return dataclasses.replace(incoming, spatial=(), features=incoming.features * math.prod(incoming.spatial))

    def __call__(self, state: KernelState) -> KernelState:
        """The state unchanged: the inner product of flattened images is where every state begins."""
        return state


@dataclass(frozen=True)
class Dense:
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

    def outgoing(self, incoming: Signature) -> Signature:
        """Gaussian, with this layer's features."""
        if incoming.spatial:
            shape = [*incoming.spatial, incoming.features]
            raise ConfigError(f'acts on flat activations, got images of shape {shape}: put {{"op": "flatten"}} first')
        return Signature((), self.features, is_gaussian=True)

    def __call__(self, state: KernelState) -> KernelState:
        """Scale and shift the covariances; add this layer's own gradients to the NTK."""
        w2 = self.w_std**2
        b2 = 0.0 if self.b_std is None else self.b_std**2

        def affine(covariance):
            return covariance * w2 + b2 if b2 else covariance * w2

        nngp = affine(state.nngp)
        if self.parameterization == "ntk":
            ntk = nngp
        else:
            ntk = state.nngp * float(state.signature.features)
            if self.b_std is not None:
                ntk = ntk + 1.0
        if state.ntk is not None:
            ntk = ntk + w2 * state.ntk
        return KernelState(
            nngp=nngp,
            ntk=ntk,
            p=None if state.p is None else affine(state.p),
            q=None if state.q is None else affine(state.q),
            signature=self.outgoing(state.signature),
        )
