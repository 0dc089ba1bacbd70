"""Stationary kernels, as baselines for networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.layers.nonlinear.slopes import half_powers
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Pointwise, Signature


@dataclass(frozen=True)
class Stationary(Pointwise):
    """A kernel of the distance r between inputs, where r^2 = p + q - 2k is the mean squared difference per feature.

    `rbf`: exp(-r^2 / (2 l^2)); `laplace`: exp(-r / l); `matern` (Rasmussen and Williams 2006, section 4.2): with
    s = sqrt(2 nu) r / l, exp(-s) times 1, 1 + s, or 1 + s + s^2 / 3 for nu = 1/2, 3/2, 5/2.

    A baseline has no network and nothing to train. Both kernels are set to this one, so predictions from `nngp` and
    from `ntk` are the same kernel regression. It acts on flattened images or on activations.

    r^2 is clipped at 0, and is exactly 0 for an image with itself. Its absolute error is that of the inner products,
    about 1e-6 (p + q) in float32. The kernels `rbf` and `matern` with nu > 1/2 have the same error at l = 1. The error
    of r, and so of `laplace` and `matern` with nu = 1/2, is up to 2e-5 sqrt(p + q) at a cosine of 0.999. Closer images
    are evaluated again from their difference.

    Args:
        kernel: `rbf`, `laplace` or `matern`.
        nu: smoothness of `matern`: 0.5 (equal to `laplace`), 1.5 or 2.5; None for the other kernels.
        length_scale: l, in the units of a feature.
    """

    kernel: str
    nu: float | None
    length_scale: float

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Float[Array, "*k"]:
        """Return the kernel of pairs from inner products `k` and squared norms `p`, `q`, each divided by the number of
        features.
        """
        return self._value(jnp.maximum((p + q) - 2.0 * k, 0.0) * (1.0 / self.length_scale**2))

    def _value(self, square: Float[Array, "*k"]) -> Float[Array, "*k"]:
        """Return the kernel at squared distances in units of the squared length scale."""
        if self.kernel == "rbf":
            return jnp.exp(-0.5 * square)
        nu = 0.5 if self.nu is None else self.nu
        scaled = half_powers(2.0 * nu * square)[0]  # its derivative is 0 at equal images
        # At an infinite distance the product below would be infinity times zero.
        scaled = jnp.minimum(scaled, 2.0 * math.log(jnp.finfo(scaled.dtype).max))
        polynomial = {0.5: 1.0, 1.5: 1.0 + scaled, 2.5: 1.0 + scaled + scaled * scaled / 3.0}[nu]
        return polynomial * jnp.exp(-scaled)

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer, which is not Gaussian.

        Raises:
            ConfigError: if the input is an image.
        """
        if incoming.spatial:
            shape = list(incoming.shape)
            raise ConfigError(f'acts on flat inputs, got images of shape {shape}: put {{"op": "flatten"}} first')
        return replace(incoming, is_gaussian=False)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the bounds after the layer, computed from the squared distance without cancellation."""
        del incoming
        square = (jnp.square(before.difference) + 2.0 * before.upper) * (1.0 / self.length_scale**2)
        upper = -jnp.expm1(-0.5 * square) if self.kernel == "rbf" else 1.0 - self._value(square)
        return Apart(jnp.ones_like(upper), jnp.ones_like(upper), upper, 2.0 - upper)

    def image_features(self, own: KernelState) -> tuple[Array]:
        """Return the squared norms of the images, divided by the number of features."""
        return (own.nngp,)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Set both kernels to the kernel of the distances; it is 1 for an image with itself."""
        if state.is_own:
            made = jnp.ones_like(state.nngp)
        else:
            assert state.row is not None
            assert state.column is not None
            made = self.pairs(state.nngp, *state.row(), *state.column())
        return state.replace(nngp=made, ntk=made, signature=outgoing)
