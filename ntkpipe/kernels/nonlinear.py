"""Nonlinearities phi: from the covariance of Gaussian (u, v) to E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

Each has two closed forms: of pairs `(k, p, q)`, and of single images `p`, where u = v and no angle is rounded.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.arcsine import angle_and_sine, arcsin
from ntkpipe.kernels.state import Array, KernelState, Signature

Moments = tuple[Array, Array]


class Nonlinearity:
    """An elementwise function of Gaussian activations."""

    def pairs(self, k: Float[Array, "n1 n2"], p: Float[Array, "n1 1"], q: Float[Array, "1 n2"]) -> Moments:
        """`E[phi(u) phi(v)]` and `E[phi'(u) phi'(v)]`, `(n1, n2)` each, for covariance `k` and variances `p`, `q`."""
        raise NotImplementedError

    def same(self, p: Float[Array, "*n"]) -> Moments:
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


@dataclass(frozen=True)
class Identity(Nonlinearity):
    """phi(x) = x; valid for any activations."""

    def outgoing(self, incoming: Signature) -> Signature:
        """Whatever comes in."""
        return incoming

    def __call__(self, state: KernelState) -> KernelState:
        """The state itself."""
        return state


@dataclass(frozen=True)
class ABRelu(Nonlinearity):
    """phi(x) = a min(x, 0) + b max(x, 0), the arc-cosine kernel of order 1 (Cho and Saul 2009; arXiv:1711.00165).

    A zero image has no direction: its angle to every other one is pi / 2, the limit of a shrinking bias.

    Args:
        a: slope of the negative half.
        b: slope of the positive half.
    """

    a: float
    b: float

    def pairs(self, k: Float[Array, "n1 n2"], p: Float[Array, "n1 1"], q: Float[Array, "1 n2"]) -> Moments:
        """`c sine sqrt(pq) + dot k` with c = (a - b)^2 / 2 pi, and dot = (a^2 + b^2) / 2 - c angle."""
        root_p, root_q = jnp.sqrt(p), jnp.sqrt(q)
        inverse_p = jnp.where(p > 0, 1.0 / jnp.where(p > 0, root_p, 1.0), 0.0)
        inverse_q = jnp.where(q > 0, 1.0 / jnp.where(q > 0, root_q, 1.0), 0.0)
        # The vectors are multiplied with each other first: the result is then symmetric to the last bit.
        angle, sine = angle_and_sine(jnp.clip(k * (inverse_p * inverse_q), -1.0, 1.0))
        c = (self.a - self.b) ** 2 / (2.0 * math.pi)
        dot = (self.a**2 + self.b**2) / 2.0 - c * angle
        return c * sine * (root_p * root_q) + dot * k, dot

    def same(self, p: Float[Array, "*n"]) -> Moments:
        """The angle is 0: `(a^2 + b^2) / 2` times the variance, and that factor."""
        factor = (self.a**2 + self.b**2) / 2.0
        return p * factor, jnp.full_like(p, factor)


@dataclass(frozen=True)
class Erf(Nonlinearity):
    """phi(x) = a erf(b x) + c (Williams 1996; arXiv:1711.00165).

    Args:
        a: amplitude.
        b: scale of the argument.
        c: offset.
    """

    a: float
    b: float
    c: float

    def pairs(self, k: Float[Array, "n1 n2"], p: Float[Array, "n1 1"], q: Float[Array, "1 n2"]) -> Moments:
        """`a^2 (2 / pi) arcsin(s) + c^2` with s = 2 b^2 k / sqrt((1 + 2 b^2 p) (1 + 2 b^2 q))."""
        scale = 2.0 * self.b**2
        inverse = (1.0 / jnp.sqrt(1.0 + scale * p)) * (1.0 / jnp.sqrt(1.0 + scale * q))
        sine = jnp.clip(scale * k * inverse, -1.0, 1.0)
        # The floor is reached only by rounding: |s| <= 1 - inverse for every valid covariance.
        cosine2 = jnp.maximum((1.0 - jnp.abs(sine)) * (1.0 + jnp.abs(sine)), jnp.finfo(sine.dtype).eps)
        dot = (self.a * self.b) ** 2 * (4.0 / math.pi) * inverse / jnp.sqrt(cosine2)
        return self.a**2 * (2.0 / math.pi) * arcsin(sine) + self.c**2, dot

    def same(self, p: Float[Array, "*n"]) -> Moments:
        """At k = p the cosine's square is `(1 + 4 b^2 p) / (1 + 2 b^2 p)^2`, without cancellation."""
        scale = 2.0 * self.b**2
        root = jnp.sqrt(1.0 + 2.0 * scale * p)
        dot = (self.a * self.b) ** 2 * (4.0 / math.pi) / root
        return self.a**2 * (2.0 / math.pi) * jnp.arctan2(scale * p, root) + self.c**2, dot


@dataclass(frozen=True)
class Gelu(Nonlinearity):
    """phi(x) = x Phi(x), Phi the standard normal distribution function (exact, not the tanh form; arXiv:2002.08517)."""

    def pairs(self, k: Float[Array, "n1 n2"], p: Float[Array, "n1 1"], q: Float[Array, "1 n2"]) -> Moments:
        """With N = sqrt((1 + p) (1 + q)), s = k / N, the sine of an angle, and its cosine `cos`.

        K' = k half + (s^2 / (N cos) + pq cos / N) / 2 pi, half = 1/4 + arcsin(s) / 2 pi, and
        dot = half + (1 / (N cos)^2 + (1 - pq) / N^2 + 1) s / (2 pi cos). pq / N^2 is formed from p / (1 + p) and
        q / (1 + q), so that large variances do not overflow.
        """
        inverse = (1.0 / jnp.sqrt(1.0 + p)) * (1.0 / jnp.sqrt(1.0 + q))  # 1 / N
        norm = jnp.sqrt(1.0 + p) * jnp.sqrt(1.0 + q)
        ratio = (p / (1.0 + p)) * (q / (1.0 + q))  # pq / N^2
        sine = jnp.clip(k * inverse, -1.0, 1.0)
        cosine2 = jnp.maximum((1.0 - jnp.abs(sine)) * (1.0 + jnp.abs(sine)), jnp.finfo(sine.dtype).eps)
        cosine = jnp.sqrt(cosine2)
        half = 0.25 + arcsin(sine) / (2.0 * math.pi)
        nngp = k * half + (sine * sine * inverse / cosine + ratio * norm * cosine) / (2.0 * math.pi)
        bracket = inverse * inverse / cosine2 + inverse * inverse - ratio + 1.0
        return nngp, half + bracket * sine / cosine / (2.0 * math.pi)

    def same(self, p: Float[Array, "*n"]) -> Moments:
        """At k = p, N cos = sqrt(1 + 2 p), without cancellation."""
        root = jnp.sqrt(1.0 + 2.0 * p)
        half = 0.25 + jnp.arctan2(p, root) / (2.0 * math.pi)
        nngp = p * half + (p / (1.0 + p)) * (p / root) / math.pi
        return nngp, half + (1.0 / (root * root) + 2.0 / (1.0 + p)) * (p / root) / (2.0 * math.pi)


@dataclass(frozen=True)
class Sin(Nonlinearity):
    """phi(x) = a sin(b x + c) (random Fourier features; Rahimi and Recht 2007).

    Args:
        a: amplitude.
        b: scale of the argument.
        c: phase in radians.
    """

    a: float
    b: float
    c: float

    def pairs(self, k: Float[Array, "n1 n2"], p: Float[Array, "n1 1"], q: Float[Array, "1 n2"]) -> Moments:
        """Half of `exp(-b^2 (p + q - 2k) / 2) -+ cos(2c) exp(-b^2 (p + q + 2k) / 2)`, times a^2 and a^2 b^2.

        Both exponentials come from the larger one and `1 - exp(-2 b^2 |k|)`: no overflow, and their difference keeps
        its relative accuracy where k is small.
        """
        b2 = self.b**2
        size = jnp.abs(k)
        larger = jnp.exp(-0.5 * b2 * jnp.maximum(p + q - 2.0 * size, 0.0))
        lost = -jnp.expm1(-2.0 * b2 * size)
        difference = jnp.sign(k) * larger * lost
        smaller = larger * (1.0 - lost)
        of_difference = jnp.where(k < 0, smaller, larger)  # E cos(b (u - v))
        of_sum = jnp.where(k < 0, larger, smaller)  # E cos(b (u + v))
        cos2c, sin2 = math.cos(2.0 * self.c), math.sin(self.c) ** 2
        nngp = self.a**2 * (of_difference * sin2 + 0.5 * cos2c * difference)
        dot = (self.a * self.b) ** 2 * 0.5 * (of_difference + cos2c * of_sum)
        return nngp, dot

    def same(self, p: Float[Array, "*n"]) -> Moments:
        """At k = p the first exponential is 1."""
        b2 = self.b**2
        lost = -jnp.expm1(-2.0 * b2 * p)
        cos2c, sin2 = math.cos(2.0 * self.c), math.sin(self.c) ** 2
        nngp = self.a**2 * (sin2 + 0.5 * cos2c * lost)
        return nngp, (self.a * self.b) ** 2 * 0.5 * (1.0 + cos2c * (1.0 - lost))
