"""The covariance of images: x . x' / (height * width * channels), where every fully connected kernel begins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkpipe.kernels.state import Array, KernelState, Signature


def squared_norms(x: np.ndarray) -> np.ndarray:
    """`x . x` of every image, `(n,)`, in the dtype of `x`, summed in float64.

    Every element of a row of the kernel is divided by it, so that its error would be the same in all of them.
    """
    x = x.reshape(len(x), -1)
    return np.einsum("ij,ij->i", x, x, dtype=np.float64).astype(x.dtype)


def pair_state(
    products: Float[Array, "n1 n2"], p: Float[Array, " n1"], q: Float[Array, " n2"], features: int
) -> KernelState:
    """The state of a block of pairs, from inner products and squared norms of flattened images.

    Args:
        products: x . x', not yet divided.
        p: squared norms of the row images.
        q: squared norms of the column images.
        features: height * width * channels.
    """
    scale = 1.0 / features
    return KernelState(products * scale, None, (p * scale)[:, None], (q * scale)[None, :], Signature((), features))


def diagonal_state(norms: Float[Array, " n"], features: int) -> KernelState:
    """The state of single images, from their squared norms; see `pair_state`."""
    return KernelState(norms * (1.0 / features), None, None, None, Signature((), features))


def device_products(x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x1 x2^T` and both squared norms, on the device and under tracing."""
    x1, x2 = x1.reshape(x1.shape[0], -1), x2.reshape(x2.shape[0], -1)
    # HIGHEST: a GPU's default float32 product may run in TF32, with errors near 3e-4.
    products = jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST)
    return products, jnp.sum(x1 * x1, axis=1), jnp.sum(x2 * x2, axis=1)
