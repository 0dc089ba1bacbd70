"""Nonlinearities phi: from the covariance of Gaussian (u, v) to E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

Each has two forms: of pairs `(k, p, q)`, and of single images `p`, where u = v and no angle is rounded. All formulas act
elementwise on arrays that broadcast against each other, and are symmetric in `p` and `q` to the last bit: factors of
either are multiplied with each other before they meet anything else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.state import Array, KernelState, Signature

Moments = tuple[Array, Array]


class Nonlinearity:
    """An elementwise function of Gaussian activations."""

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

    def outgoing(self, incoming: Signature) -> Signature:
        """No longer Gaussian."""
        if not incoming.is_gaussian:
            raise ConfigError('needs Gaussian activations: put a linear layer such as {"op": "dense"} right before it')
        return dataclasses.replace(incoming, is_gaussian=False)

    def __call__(self, state: KernelState) -> KernelState:
        """Map the covariances; the NTK is multiplied by the derivatives' covariance."""
        if state.p is None or state.q is None:
            nngp, dot = self.same(state.nngp)
            p = q = None
        else:
            nngp, dot = self.pairs(state.nngp, state.p, state.q)
            p, q = self.same(state.p)[0], self.same(state.q)[0]
        ntk = None if state.ntk is None else state.ntk * dot
        return KernelState(nngp, ntk, p, q, self.outgoing(state.signature))


def half_powers(p: Float[Array, "*p"]) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """`sqrt(p)` and `1 / sqrt(p)`, the latter 0 where p vanishes: then every cosine is 0, the limit of a shrinking bias.

    A variance below the smallest normal number counts as zero: XLA flushes it, and its inverse root squared overflows.
    """
    present = p >= jnp.finfo(p.dtype).tiny
    root = jnp.sqrt(p)
    return root, jnp.where(present, 1.0 / jnp.where(present, root, 1.0), 0.0)


def cosine_and_norm(
    k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]
) -> tuple[Float[Array, "*k"], Float[Array, "*n"]]:
    """The cosine `k / sqrt(p q)` in [-1, 1], and `sqrt(p q)`; a variance of zero has cosine 0 with everything."""
    root_p, inverse_p = half_powers(p)
    root_q, inverse_q = half_powers(q)
    return jnp.clip(k * (inverse_p * inverse_q), -1.0, 1.0), root_p * root_q


@dataclass(frozen=True)
class Identity(Nonlinearity):
    """phi(x) = x; valid for any activations."""

    def outgoing(self, incoming: Signature) -> Signature:
        """Whatever comes in."""
        return incoming

    def __call__(self, state: KernelState) -> KernelState:
        """The state itself."""
        return state
