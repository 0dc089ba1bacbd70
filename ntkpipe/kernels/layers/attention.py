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

# Pixels of an image whose embeddings are checked before anything is computed; more have no computable attention.
_CHECKED = 4096


@dataclass(frozen=True)
class SelfAttention:
    """Global self-attention with infinitely many heads and linear scaling of queries times keys.

    With C the covariance of an image's pixels with each other and G = mechanism(w_query w_key C), rows of which are how
    much a pixel attends to the others: K' = (w_out w_value)^2 G K G'^T + b^2 and
    T' = (w_out w_value)^2 G T G'^T + 2 (K' - b^2) + b^2, with G of the first and G' of the second image.

    With positional embeddings C is a C + b R, R their covariance (see `PositionalEmbedding`); if values have them too, so is K, and T is
    a T + b R: they are trained.

    Args:
        mechanism: `SOFTMAX` (over the second pixel), `IDENTITY`, `RELU` or `ABS`.
        w_key_std: of the key weights.
        w_query_std: of the query weights.
        w_value_std: of the value weights.
        w_out_std: of the outgoing weights.
        b_std: of the bias; None has none.
        features: outgoing channels.
        positions: embeddings of the pixels' positions; None has none.
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
        """Gaussian at infinitely many heads."""
        if len(incoming.spatial) != 2:
            raise ConfigError("acts on images [height, width, channels], but activations are flat here")
        if self.positions is not None and math.prod(incoming.spatial) <= _CHECKED:
            self.positions.covariance(incoming.shape[:-1])
        return dataclasses.replace(incoming, features=self.features, is_gaussian=True, support=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Everything."""
        del support, own
        return tuple(every_class(extent) for extent in incoming.spatial)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Never."""
        del incoming, outgoing
        return False

    def apart(self, before: Apart, incoming: Signature) -> None:
        """Unknown: pixels meet others of their own image."""

    def image_features(self, own: KernelState) -> tuple[Array]:
        """`(n, pixels, pixels)`: how much each pixel of an image attends to each."""
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
        """Covariances of pixels `(..., pixels, pixels)` together with their embeddings."""
        if self.positions is None:
            return matrix
        weight, of_positions = self.positions.weights(signature.features)
        return weight * matrix + jnp.asarray(
            of_positions * self.positions.covariance(signature.shape[:-1]), matrix.dtype
        )

    def values(self, x: Array, signature: Signature) -> Array:
        """What values are made of, `(..., pixels, pixels)`: with the embeddings, if values have them."""
        matrix = layout.to_matrix(x, signature)
        in_values = self.positions is not None and self.positions.in_values
        return self._placed(matrix, signature) if in_values else matrix

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Mix the pixels of both images."""
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
        elif self.positions is not None and self.positions.in_values:  # trained, though nothing before is
            ntk = ntk + mixed(jnp.zeros_like(state.nngp))
        return state.replace(nngp=weights + bias, ntk=ntk, signature=outgoing)
