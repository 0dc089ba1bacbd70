"""The covariance of images: x . x' / (height * width * channels), where every fully connected kernel begins."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.state import KernelState, Pointwise, Signature


def squared_norms(x: np.ndarray) -> np.ndarray:
    """`x . x` of every image, `(n,)`, in the dtype of `x`.

    Every element of a row of the kernel is divided by it, so that its error would be the same in all of them: runs of 64
    values are summed in that dtype, and the runs in float64. (All in float64 takes 5 times longer: 5 ms for 2048 images
    of 3072 values, 8% of a tile.)
    """
    x = x.reshape(len(x), -1)
    whole = x.shape[1] // 64 * 64
    runs = x[:, :whole].reshape(len(x), -1, 64)
    total = np.einsum("nrj,nrj->nr", runs, runs).sum(axis=1, dtype=np.float64)
    rest = x[:, whole:]
    return (total + np.einsum("nj,nj->n", rest, rest, dtype=np.float64)).astype(x.dtype)


@dataclass(frozen=True)
class Input(Pointwise):
    """Where every fully connected network begins: inner products of flattened images become covariances.

    Args:
        features: height * width * channels, by which they are divided.
    """

    features: int

    def outgoing(self, incoming: Signature) -> Signature:
        """Flat, and not Gaussian: pixels are what they are."""
        return Signature((), self.features)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Divided likewise."""
        del incoming
        return before.times(1.0 / self.features)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Divide the inner products."""
        return state.replace(nngp=state.nngp * (1.0 / self.features), signature=outgoing)


def device_products(x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x1 x2^T` and both squared norms, on the device and under tracing."""
    x1, x2 = x1.reshape(x1.shape[0], -1), x2.reshape(x2.shape[0], -1)
    # HIGHEST: a GPU's default float32 product may run in TF32, with errors near 3e-4.
    products = jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST)
    return products, jnp.sum(x1 * x1, axis=1), jnp.sum(x2 * x2, axis=1)
