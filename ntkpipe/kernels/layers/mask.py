"""Where sequences of different lengths end: factors of 0 after it (see `kernels.sequences`)."""

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
    """Multiplies activations by 0 after the end of their sequence, and up to it by `(N / L)^power`, L of N positions being its own.

    So a mean over all positions is one over its own with a power of 1, and a mean of squares with 1/2.

    Args:
        windows: that the sequence has gone through.
        power: see above.
    """

    windows: Windows
    power: float

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def outgoing(self, incoming: Signature) -> Signature:
        """The same."""
        return incoming

    def image_features(self, own: KernelState) -> tuple[Array]:
        """`(positions, 1, n)`: the factors."""
        assert own.lengths is not None
        return (factors(self.windows, self.power, own.lengths, own.signature.spatial[0], own.nngp.dtype).T[:, None, :],)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Multiply by the factors of both."""
        row, column = layout.own_views(self, state) if state.is_own else (state.row, state.column)
        assert row is not None
        assert column is not None
        return state.map(lambda x: x * (row()[0] * column()[0]), outgoing)


def factors(windows: Windows, power: float, lengths: Any, positions: int, dtype: Any) -> jax.Array:
    """`(n, positions)`, see `Mask`.

    Args:
        windows: of the mask.
        power: likewise.
        lengths: `(n,)` of the sequences at the input.
        positions: of the array here.
        dtype: of the factors.
    """
    left = jnp.maximum(out_lengths(windows, jnp.asarray(lengths)), 1)[:, None]
    inside = (jnp.arange(positions) < left).astype(dtype)
    return inside if power == 0.0 else inside * (positions / left.astype(dtype)) ** power


@dataclass(frozen=True)
class MaskedSelfAttention(SelfAttention):
    """Self-attention to the positions of one's own sequence.

    Args:
        windows: that the sequence has gone through; others as of `SelfAttention`.
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
