"""Masks for sequences of different lengths (see `kernels.sequences`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ntkpipe.kernels import layout
from ntkpipe.kernels.geometry import Windows, out_lengths
from ntkpipe.kernels.layers.attention import SelfAttention
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Pointwise, Signature


@dataclass(frozen=True)
class Mask(Pointwise):
    """Multiply activations by 0 after the end of their sequence, and by `(N / L)^power` before it.

    N is the number of positions and L the length of the sequence. With power 1 a mean over all N positions becomes a
    mean over the sequence; with power 1/2 the same holds for a mean of squares.

    Args:
        windows: the windows that the sequence has passed through.
        power: the exponent above.
    """

    windows: Windows
    power: float

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the incoming signature."""
        return incoming

    def image_features(self, own: KernelState) -> tuple[Array]:
        """Return the factors, `(positions, 1, n)`."""
        assert own.lengths is not None
        return (factors(self.windows, self.power, own.lengths, own.signature.spatial[0], own.nngp.dtype).T[:, None, :],)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Multiply both kernels by the factors of both sequences."""
        row, column = layout.own_views(self, state) if state.is_own else (state.row, state.column)
        assert row is not None
        assert column is not None
        return state.map(lambda x: x * (row()[0] * column()[0]), outgoing)


def factors(windows: Windows, power: float, lengths: Any, positions: int, dtype: Any) -> jax.Array:
    """Return the factors of a `Mask`, `(n, positions)`.

    Args:
        windows: the windows of the mask.
        power: the power of the mask.
        lengths: `(n,)` lengths of the sequences at the input.
        positions: number of positions at this layer.
        dtype: dtype of the factors.
    """
    left = jnp.maximum(out_lengths(windows, jnp.asarray(lengths)), 1)[:, None]
    inside = (jnp.arange(positions) < left).astype(dtype)
    return inside if power == 0.0 else inside * (positions / left.astype(dtype)) ** power


@dataclass(frozen=True)
class MaskedSelfAttention(SelfAttention):
    """Self-attention in which no position attends to positions after the end of its sequence.

    Args:
        windows: the windows that the sequence has passed through. The other parameters are those of `SelfAttention`.
    """

    windows: Windows

    def _weights(self, scores: Array, own: KernelState) -> Array:
        if self.mechanism != "SOFTMAX":
            return super()._weights(scores, own)
        assert own.lengths is not None
        rows, columns = own.signature.spatial
        inside = factors(self.windows, 0.0, own.lengths, rows, scores.dtype)
        keys = jnp.repeat(inside, columns, axis=1)[:, None, :]
        return jax.nn.softmax(jnp.where(keys > 0.0, scores, -jnp.inf), axis=-1)
