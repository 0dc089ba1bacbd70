"""Self-attention over all pixels of an image (arXiv:2006.10540)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.lax import Precision

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.geometry import Support, every_class
from ntkpipe.kernels.layers.positions import PositionalEmbedding
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Signature

# The covariance of the position embeddings is checked up to this many pixels. Attention over more does not fit in
# memory.
_CHECKED = 4096


@dataclass(frozen=True)
class SelfAttention:
    """Global self-attention with infinitely many heads and linear scaling of queries times keys.

    C is the covariance between the pixels of one image, and G = mechanism(w_query w_key C) holds the attention weights:
    row i says how much pixel i attends to each pixel. With G of the first image and G' of the second,

    - K' = (w_out w_value)^2 G K G'^T + b^2,
    - T' = (w_out w_value)^2 G T G'^T + 2 (K' - b^2) + b^2.

    Positional embeddings with covariance R replace C by a C + b R (see `PositionalEmbedding`). If the values contain
    them too, K is replaced by a K + b R and T by a T + b R, because the embeddings are trained.

    Args:
        mechanism: `SOFTMAX` (over the second pixel), `IDENTITY`, `RELU` or `ABS`.
        w_key_std: standard deviation of the key weights.
        w_query_std: standard deviation of the query weights.
        w_value_std: standard deviation of the value weights.
        w_out_std: standard deviation of the output weights.
        b_std: standard deviation of the bias; None means no bias.
        features: number of output channels.
        positions: positional embeddings of the pixels; None means none.
    """

    mechanism: str
    w_key_std: float
    w_query_std: float
    w_value_std: float
    w_out_std: float
    b_std: float | None
    features: int
    positions: PositionalEmbedding | None

    is_linear = True
    feature_scope: ClassVar[FeatureScope] = "matrices"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer: with infinitely many heads, its output is Gaussian."""
        if len(incoming.spatial) != 2:
            raise ConfigError("acts on images [height, width, channels], but activations are flat here")
        if self.positions is not None and math.prod(incoming.spatial) <= _CHECKED:
            self.positions.covariance(incoming.shape[:-1])
        return dataclasses.replace(incoming, features=self.features, is_gaussian=True, support=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return all classes: attention reads every pair of pixels."""
        del support, own
        return tuple(every_class(extent) for extent in incoming.spatial)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return False: attention mixes all classes."""
        del incoming, outgoing
        return False

    def apart(self, before: Apart, incoming: Signature) -> None:
        """Return None: attention combines different pixels, so the distance of equal pixels is not enough."""

    def image_features(self, own: KernelState) -> tuple[Array]:
        """Return the attention weights of each image, `(n, pixels, pixels)`."""
        covariance = self._placed(layout.to_matrix(own.nngp, own.signature), own.signature)
        return (self._weights((self.w_query_std * self.w_key_std) * covariance, own),)

    def _weights(self, scores: Array, own: KernelState) -> Array:
        del own
        if self.mechanism == "SOFTMAX":
            return jax.nn.softmax(scores, axis=-1)
        if self.mechanism == "ABS":
            return jnp.abs(scores)
        return jnp.maximum(scores, 0.0) if self.mechanism == "RELU" else scores

    def _placed(self, matrix: Array, signature: Signature) -> Array:
        """Add the positional embeddings to the pixel covariances `(..., pixels, pixels)`."""
        if self.positions is None:
            return matrix
        weight, of_positions = self.positions.weights(signature.features)
        return weight * matrix + jnp.asarray(
            of_positions * self.positions.covariance(signature.shape[:-1]), matrix.dtype
        )

    def values(self, x: Array, signature: Signature) -> Array:
        """Return the covariance of the values, `(..., pixels, pixels)`, with positional embeddings if the values
        contain them.
        """
        matrix = layout.to_matrix(x, signature)
        in_values = self.positions is not None and self.positions.in_values
        return self._placed(matrix, signature) if in_values else matrix

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Apply the attention weights of both images to both kernels."""
        if state.is_own:
            seen = self.image_features(state)
            first = second = seen[0]
        else:
            assert state.row is not None
            assert state.column is not None
            first, second = state.row()[0], state.column()[0]
        scale = (self.w_out_std * self.w_value_std) ** 2
        state = state.settled()

        def mixed(x: Array) -> Array:
            matrix = self.values(x, state.signature)
            product = jnp.matmul(first, matrix, precision=Precision.HIGHEST)
            product = jnp.matmul(product, jnp.swapaxes(second, -1, -2), precision=Precision.HIGHEST)
            return layout.from_matrix(product * scale, outgoing)

        weights = mixed(state.nngp)
        bias = 0.0 if self.b_std is None else self.b_std**2
        ntk = 2.0 * weights + bias
        if state.ntk is not None:
            ntk = ntk + mixed(state.ntk)
        elif self.positions is not None and self.positions.in_values:  # embeddings are always trained
            ntk = ntk + mixed(jnp.zeros_like(state.nngp))
        return state.replace(nngp=weights + bias, ntk=ntk, signature=outgoing)
