"""Normalisation of activations."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.state import KernelState, Signature


@dataclass(frozen=True)
class LayerNorm:
    """Divide activations by their root mean square over the features of one image: K / sqrt((p + eps) (q + eps)).

    At infinite width the mean over features is zero and their mean square is the variance, so that the NTK is
    divided by the same number (as in neural-tangents).

    Args:
        axis: normalised axes; only `(-1,)`, the features of flat activations.
        eps: added to the variances, above 0.
    """

    axis: tuple[int, ...]
    eps: float

    def outgoing(self, incoming: Signature) -> Signature:
        """The same signature: a Gaussian stays Gaussian, since its norm does not fluctuate at infinite width."""
        if not incoming.is_gaussian:
            raise ConfigError('needs Gaussian activations: put a linear layer such as {"op": "dense"} right before it')
        return incoming

    def __call__(self, state: KernelState) -> KernelState:
        """Divide by the product of the norms."""
        if state.p is None or state.q is None:
            scale = 1.0 / (state.nngp + self.eps)
            ntk = None if state.ntk is None else state.ntk * scale
            return state.replace(nngp=state.nngp * scale, ntk=ntk)
        scale = (1.0 / jnp.sqrt(state.p + self.eps)) * (1.0 / jnp.sqrt(state.q + self.eps))
        return state.replace(
            nngp=state.nngp * scale,
            ntk=None if state.ntk is None else state.ntk * scale,
            p=state.p / (state.p + self.eps),
            q=state.q / (state.q + self.eps),
        )
