"""Functions of the normal distribution: erf and GELU. Their kernels are those of an angle between shifted vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.arcsine import arcsin
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.shifted import shifted, sine_and_cosine2
from ntkpipe.kernels.state import Array

# 0.5 erf(x / this) + 0.5 is nearest to the logistic function in squared error on [-5, 5] (neural-tangents' constant).
SIGMOID_LIKE_SCALE = 2.4020563531719796


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

    @property
    def _scale(self) -> float:
        return 2.0 * self.b**2

    def seen(self, p: Float[Array, "*p"]) -> tuple[Array, ...]:
        """See `shifted`."""
        return shifted(p, self._scale)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """`a^2 b^2 (4 / pi) / (cos sqrt((1 + 2 b^2 p) (1 + 2 b^2 q)))`, cos the cosine of the angle whose sine is s."""
        _, cosine2 = sine_and_cosine2(k, p, q, self._scale)
        return (self.a * self.b) ** 2 * (4.0 / math.pi) * ((p[2] * q[2]) / jnp.sqrt(cosine2))

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """See `pairs`."""
        del derivative
        return self.a**2 * (2.0 / math.pi) * arcsin(*sine_and_cosine2(k, p, q, self._scale)) + self.c**2

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """`a^2 (2 / pi) arcsin(s) + c^2` with s = 2 b^2 k / sqrt((1 + 2 b^2 p) (1 + 2 b^2 q))."""
        seen = self.seen(p), self.seen(q)
        dot = self.derivative(k, *seen)
        return self.value(k, *seen, dot), dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """At k = p the cosine's square is `(1 + 4 b^2 p) / (1 + 2 b^2 p)^2`, without cancellation."""
        root = jnp.sqrt(1.0 + 2.0 * self._scale * p)
        dot = (self.a * self.b) ** 2 * (4.0 / math.pi) / root
        return self.a**2 * (2.0 / math.pi) * jnp.arctan2(self._scale * p, root) + self.c**2, dot


@dataclass(frozen=True)
class Gelu(Nonlinearity):
    """phi(x) = x Phi(x), Phi the standard normal distribution function (exact, not the tanh form; arXiv:2002.08517)."""

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """With N = sqrt((1 + p) (1 + q)), s = k / N, the sine of an angle, and its cosine `cos`.

        K' = k half + (s^2 / (N cos) + pq cos / N) / 2 pi, half = 1/4 + arcsin(s) / 2 pi, and
        dot = half + (1 / (N cos)^2 + 1 / (1 + p) + 1 / (1 + q)) s / (2 pi cos). pq / N is formed from p / (1 + p) and
        q / (1 + q), so that large variances do not overflow.
        """
        seen = shifted(p, 1.0), shifted(q, 1.0)
        sine, cosine2 = sine_and_cosine2(k, *seen, 1.0)
        (_, share_p, inverse_p), (_, share_q, inverse_q) = seen
        cosine, inverse = jnp.sqrt(cosine2), inverse_p * inverse_q  # 1 / N
        ratio = ((p * share_p) * (q * share_q)) * (jnp.sqrt(1.0 + p) * jnp.sqrt(1.0 + q))  # pq / N
        half = 0.25 + arcsin(sine, cosine2) / (2.0 * math.pi)
        nngp = k * half + ((sine * sine) * (inverse / cosine) + ratio * cosine) / (2.0 * math.pi)
        bracket = (inverse / cosine) * (inverse / cosine) + (share_p + share_q)
        return nngp, half + bracket * (sine / cosine) / (2.0 * math.pi)

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """At k = p, N cos = sqrt(1 + 2 p), without cancellation."""
        root = jnp.sqrt(1.0 + 2.0 * p)
        half = 0.25 + jnp.arctan2(p, root) / (2.0 * math.pi)
        nngp = p * half + (p / (1.0 + p)) * (p / root) / math.pi
        return nngp, half + (1.0 / (root * root) + 2.0 / (1.0 + p)) * (p / root) / (2.0 * math.pi)
