"""Nonlinearities phi: they map the covariance of Gaussian (u, v) to E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

Each nonlinearity has two forms: one for pairs `(k, p, q)` and one for single images `p`, where u = v and no angle is
rounded. All formulas act elementwise on arrays that broadcast against each other. They are symmetric in `p` and `q` to
the last bit, because factors of `p` and `q` are multiplied with each other first.

A zero image is treated as the limit of a shrinking bias: all zero images have the same activations, and their
covariance with another image is the product of both means. At a kink or jump at 0 both sides count equally: the mean of
the squared slopes. The formulas are differentiable by the covariances; see `slopes` for kinks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart, halves
from ntkpipe.kernels.geometry import Support, including_variances
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Pointwise, Signature

Moments = tuple[Array, Array]


class Nonlinearity(Pointwise):
    """An elementwise function of Gaussian activations."""

    feature_scope: ClassVar[FeatureScope] = "pixels"

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `E[phi(u) phi(v)]` and `E[phi'(u) phi'(v)]` for covariances `k` and variances `p`, `q`.

        Args:
            k: covariances of any shape, with `k^2 <= p q` up to rounding.
            p: variances `>= 0` of a shape that broadcasts to that of `k`, such as `(n1, 1)`.
            q: variances `>= 0` of a shape that broadcasts to that of `k`, such as `(1, n2)`.

        Returns:
            Two arrays of the shape of `k`.
        """
        raise NotImplementedError

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return `E[phi(u)^2]` and `E[phi'(u)^2]` for variances `p`."""
        raise NotImplementedError

    def seen(self, p: Float[Array, "*p"]) -> tuple[Array, ...]:
        """Return what pairs need of each image: arrays of the shape of the variances `p`, computed once per image."""
        return (p,)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """Return `E[phi'(u) phi'(v)]` from the results of `seen` for both images."""
        return self.pairs(k, *p, *q)[1]

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """Return `E[phi(u) phi(v)]`; some nonlinearities compute it faster from the result of `derivative`."""
        del derivative
        return self.pairs(k, *p, *q)[0]

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return `upper` and `lower` after the nonlinearity (see `Apart`) and `E[phi'(u) phi'(v)]` for nearly equal
        images.

        This default computes them from the covariances: the error of `upper` is then their rounding, and the error of
        angles is its square root. Subclasses with a better formula override it.

        Args:
            apart: the bounds before the nonlinearity, in float64.
            p: variances of the first images after the nonlinearity.
            q: variances of the second images after the nonlinearity.
        """
        norm = jnp.sqrt(p) * jnp.sqrt(q)
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        equal = (apart.upper <= 0.0) & (apart.p == apart.q)
        upper, lower = halves(apart, jnp.where(equal, 0.0, norm - plain), plain, norm)
        return upper, lower, jnp.where(equal, self.same(apart.p)[1], dot)

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer, which is not Gaussian.

        Raises:
            ConfigError: if the input is not Gaussian.
        """
        if not incoming.is_gaussian:
            raise ConfigError(
                'needs Gaussian activations: put a linear layer such as {"op": "dense"} or {"op": "conv"} right before it'
            )
        return dataclasses.replace(incoming, is_gaussian=False)

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the outgoing classes; an own block also needs class 0, which holds the variances."""
        return including_variances(incoming.spatial, support, own=own)

    def image_features(self, own: KernelState) -> tuple[Array, ...] | None:
        """Return the result of `seen` for the variance of each pixel."""
        return self.seen(layout.variances(own.nngp) if own.signature.spatial else own.nngp)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Map the NNGP to E[phi(u) phi(v)], and multiply the NTK by E[phi'(u) phi'(v)]."""
        if state.is_own:
            nngp, dot = self._own(state)
        else:
            row, column = state.row, state.column
            assert row is not None
            assert column is not None
            # Compiled as one loop, each result would compute the angles and all earlier layers a second time.
            dot = state.fusion(lambda k: self.derivative(k, row(), column()), state.nngp)
            nngp = self.value(state.nngp, row(), column(), dot)
        return state.replace(nngp=nngp, ntk=None if state.ntk is None else state.ntk * dot, signature=outgoing)

    def _own(self, state: KernelState) -> Moments:
        """Return both moments of images with themselves, where the angle between a pixel and itself is exactly 0."""
        if not state.signature.spatial:
            return self.same(state.nngp)
        variance = layout.variances(state.nngp)
        nngp, dot = self.same(variance)
        if state.signature.support == ((0,), (0,)):
            return tuple(layout.with_variances(state.nngp, x) for x in (nngp, dot))  # type: ignore[return-value]
        row, column = layout.own_views(self, state)
        others = state.fusion(lambda k: self.derivative(k, row(), column()), state.nngp)
        values = self.value(state.nngp, row(), column(), others)
        return layout.with_variances(values, nngp), layout.with_variances(others, dot)


@dataclass(frozen=True)
class Identity(Nonlinearity):
    """phi(x) = x, which is valid for activations that are not Gaussian too."""

    feature_scope: ClassVar[FeatureScope] = "nothing"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the incoming signature."""
        return incoming

    def image_features(self, own: KernelState) -> None:
        """Return None: the layer needs nothing of single images."""

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the incoming bounds."""
        del incoming
        return before

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Return the state unchanged, with the outgoing signature."""
        return state.replace(signature=outgoing)
