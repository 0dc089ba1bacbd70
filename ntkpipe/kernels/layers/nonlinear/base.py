"""Nonlinearities phi: from the covariance of Gaussian (u, v) to E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

Each has two forms: of pairs `(k, p, q)`, and of single images `p`, where u = v and no angle is rounded. All formulas act
elementwise on arrays that broadcast against each other, and are symmetric in `p` and `q` to the last bit: factors of
either are multiplied with each other before they meet anything else.

The activations of a zero image are the limit of a shrinking bias: one function of all such images, whose covariance with any
other image's goes to the product of both means. Where phi is continuous, that is its value at 0. Of a kink or a jump at 0 both sides
count alike: the mean of the squared slopes. Formulas are differentiable by the covariances; see `slopes` for kinks.
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
        """`E[phi(u) phi(v)]` and `E[phi'(u) phi'(v)]` for covariances `k` and variances `p`, `q`.

        Args:
            k: of any shape; `k^2 <= p q` up to rounding.
            p: of a shape that broadcasts to that of `k`, such as `(n1, 1)`; not negative.
            q: likewise, such as `(1, n2)`.

        Returns:
            Two arrays of the shape of `k`.
        """
        raise NotImplementedError

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """`E[phi(u)^2]` and `E[phi'(u)^2]` for variances `p`."""
        raise NotImplementedError

    def seen(self, p: Float[Array, "*p"]) -> tuple[Array, ...]:
        """What pairs take of their images: arrays of the shape of the variances `p`, computed once per image."""
        return (p,)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """`E[phi'(u) phi'(v)]` from what was `seen` of both images."""
        return self.pairs(k, *p, *q)[1]

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """`E[phi(u) phi(v)]`, which may be had from the derivative's covariance for less."""
        del derivative
        return self.pairs(k, *p, *q)[0]

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """`upper` and `lower` after it (see `Apart`) and `E[phi'(u) phi'(v)]`, in float64, accurate where images nearly coincide.

        Where nothing better is known, from the covariances: `upper` is then off by their rounding, and angles by its root.

        Args:
            apart: before it.
            p: variances after it, of the first images.
            q: likewise of the second images.
        """
        norm = jnp.sqrt(p) * jnp.sqrt(q)
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        equal = (apart.upper <= 0.0) & (apart.p == apart.q)
        upper, lower = halves(apart, jnp.where(equal, 0.0, norm - plain), plain, norm)
        return upper, lower, jnp.where(equal, self.same(apart.p)[1], dot)

    def outgoing(self, incoming: Signature) -> Signature:
        """No longer Gaussian."""
        if not incoming.is_gaussian:
            raise ConfigError(
                'needs Gaussian activations: put a linear layer such as {"op": "dense"} or {"op": "conv"} right before it'
            )
        return dataclasses.replace(incoming, is_gaussian=False)

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """The same; of own blocks class 0 holds the variances."""
        return including_variances(incoming.spatial, support, own=own)

    def image_features(self, own: KernelState) -> tuple[Array, ...] | None:
        """What is `seen` of each pixel's variance."""
        return self.seen(layout.variances(own.nngp) if own.signature.spatial else own.nngp)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Map the covariances; the NTK is multiplied by the derivatives' covariance."""
        if state.is_own:
            nngp, dot = self._own(state)
        else:
            row, column = state.row, state.column
            assert row is not None
            assert column is not None
            # Compiled as one, each of the results would compute the other's angles anew, and all layers before.
            dot = state.fusion(lambda k: self.derivative(k, row(), column()), state.nngp)
            nngp = self.value(state.nngp, row(), column(), dot)
        return state.replace(nngp=nngp, ntk=None if state.ntk is None else state.ntk * dot, signature=outgoing)

    def _own(self, state: KernelState) -> Moments:
        """Of images with themselves: the angle between a pixel and itself is exactly 0."""
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
    """phi(x) = x; valid for any activations."""

    feature_scope: ClassVar[FeatureScope] = "nothing"

    def outgoing(self, incoming: Signature) -> Signature:
        """Whatever comes in."""
        return incoming

    def image_features(self, own: KernelState) -> None:
        """Nothing."""

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """What came in."""
        del incoming
        return before

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """The state itself."""
        return state.replace(signature=outgoing)
