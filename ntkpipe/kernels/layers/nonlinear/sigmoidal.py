"""Erf and GELU. Their kernels depend on the angle between shifted vectors, see `shifted`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.apart import Apart, half_unit_rule, halves, with_bias
from ntkpipe.kernels.layers.nonlinear.arcsine import arcsin
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.shifted import shifted, sine_and_cosine2
from ntkpipe.kernels.state import Array

# 0.5 erf(x / SIGMOID_LIKE_SCALE) + 0.5 is closest to the logistic function in squared error on [-5, 5]. The value is
# that
# of neural-tangents.
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
        """Return the result of `shifted`."""
        return shifted(p, self._scale)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """Return `a^2 b^2 (4 / pi) / (cos sqrt((1 + 2 b^2 p) (1 + 2 b^2 q)))`, where cos^2 = 1 - s^2 (s: see
        `pairs`).
        """
        _, cosine2 = sine_and_cosine2(k, p, q, self._scale)
        return (self.a * self.b) ** 2 * (4.0 / math.pi) * ((p[2] * q[2]) / jnp.sqrt(cosine2))

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """Return the first result of `pairs`."""
        del derivative
        return self.a**2 * (2.0 / math.pi) * arcsin(*sine_and_cosine2(k, p, q, self._scale)) + self.c**2

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `a^2 (2 / pi) arcsin(s) + c^2`, s = 2 b^2 k / sqrt((1 + 2 b^2 p) (1 + 2 b^2 q)), and `derivative`."""
        seen = self.seen(p), self.seen(q)
        dot = self.derivative(k, *seen)
        return self.value(k, *seen, dot), dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return both moments at k = p, where the squared cosine is `(1 + 4 b^2 p) / (1 + 2 b^2 p)^2`."""
        root = jnp.sqrt(1.0 + 2.0 * self._scale * p)
        dot = (self.a * self.b) ** 2 * (4.0 / math.pi) / root
        return self.a**2 * (2.0 / math.pi) * jnp.arctan2(self._scale * p, root) + self.c**2, dot

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from differences of the arcsines of p / P, q / Q and k / sqrt(PQ), P = p + n, n = 1 / (2
        b^2).

        With m the mean of the first two arcsines and s the third, `sin(m - s) sin(m + s)` is a sum of squares.
        """
        del p, q
        noise = 0.5 / self.b**2
        norms = (apart.p + noise) * (apart.q + noise)
        minor = apart.upper * apart.lower + noise * (apart.p + apart.q + noise)  # PQ - k^2
        roots = jnp.sqrt(noise * (2.0 * apart.p + noise)), jnp.sqrt(noise * (2.0 * apart.q + noise))
        # The sum of the arcsines does not cancel where the variances are far below the noise.
        mean = 0.5 * (jnp.arctan2(apart.p, roots[0]) + jnp.arctan2(apart.q, roots[1]))
        rest = noise * jnp.square(apart.p - apart.q) / (noise + apart.p + apart.q + roots[0] * roots[1] / noise)
        sines = 0.5 * (2.0 * apart.upper * apart.lower + rest) / norms
        factor = self.a**2 * (2.0 / math.pi)
        of_p, of_q = (factor * jnp.arctan2(v, root) for v, root in zip((apart.p, apart.q), roots, strict=True))
        norm_difference = jnp.square(jnp.sqrt(of_p) - jnp.sqrt(of_q))

        def half(k: Array) -> Array:
            own = jnp.arctan2(k, jnp.sqrt(minor))
            total = jnp.sin(own + mean)
            distance = jnp.arcsin(jnp.clip(sines / jnp.where(total > 0.0, total, 1.0), -1.0, 1.0))
            # Arcsines of opposite signs do not cancel. For distant angles the sine does not determine their difference.
            distance = jnp.where((k > 0.0) & (mean - own < 0.5), distance, mean - own)
            return jnp.maximum(factor * distance - 0.5 * norm_difference, 0.0)

        made = with_bias(Apart(of_p, of_q, half(apart.k), half(-apart.k)), self.c**2)
        return made.upper, made.lower, (self.a * self.b) ** 2 * (4.0 / math.pi) * noise / jnp.sqrt(minor)


@dataclass(frozen=True)
class Gelu(Nonlinearity):
    """phi(x) = x Phi(x) with Phi the standard normal distribution function (exact, not the tanh form;
    arXiv:2002.08517).
    """

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return both moments K' and dot, with N = sqrt((1 + p) (1 + q)), s = k / N and cos = sqrt(1 - s^2).

        K' = k half + (s^2 / (N cos) + pq cos / N) / (2 pi) with half = 1/4 + arcsin(s) / (2 pi), and dot = half + (1 /
        (N cos)^2 + 1 / (1 + p) + 1 / (1 + q)) s / (2 pi cos). pq / N is computed from p / (1 + p) and q / (1 + q), so
        large variances do not overflow.
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
        """Return both moments at k = p, where N cos = sqrt(1 + 2 p) without cancellation."""
        root = jnp.sqrt(1.0 + 2.0 * p)
        half = 0.25 + jnp.arctan2(p, root) / (2.0 * math.pi)
        nngp = p * half + (p / (1.0 + p)) * (p / root) / math.pi
        return nngp, half + (1.0 / (root * root) + 2.0 / (1.0 + p)) * (p / root) / (2.0 * math.pi)

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds: the integral of `E[phi' phi']` over covariances from k to sqrt(pq), plus `_radial`.

        The variable of integration is the logarithm of y = (1 + p) (1 + q) - k^2, in which the integrand is smooth at
        every variance.
        """
        minor = apart.upper * apart.lower
        ends = 1.0 + apart.p + apart.q  # y at k = r
        width = jnp.log1p(minor / ends)
        nodes, weights = half_unit_rule(20)
        near = self._radial(apart)
        near = 0.5 * (near - jnp.square(jnp.sqrt(p) - jnp.sqrt(q)))
        for t, w in zip(nodes, weights, strict=True):
            y = ends * jnp.exp(width * t)
            k = jnp.sqrt(jnp.maximum(apart.p * apart.q - ends * jnp.expm1(width * t), 0.0))
            near += w * width * y * self._slope(k, apart, y) / (2.0 * jnp.where(k > 0.0, k, 1.0))
        plain = self.pairs(apart.k, apart.p, apart.q)[0]
        return *halves(apart, near, plain, jnp.sqrt(p) * jnp.sqrt(q)), self._slope(apart.k, apart, ends + minor)

    def _slope(self, k: Array, apart: Apart, y: Array) -> Array:
        """Return `E[phi' phi']`, given y = (1 + p) (1 + q) - k^2."""
        root, norms = jnp.sqrt(y), (1.0 + apart.p) * (1.0 + apart.q)
        bracket = 1.0 / y + (2.0 + apart.p + apart.q) / norms
        return 0.25 + (jnp.arctan2(k, root) + bracket * k / root) / (2.0 * math.pi)

    def _radial(self, apart: Apart) -> Array:
        """Return `E[(phi(a z) - phi(b z))^2]` with a^2 = p and b^2 = q.

        It is the integral of the mixed derivative of `product` over [a, b] in both arguments.
        """

        def product(a: Array, b: Array) -> Array:  # E[phi(a z) phi(b z)]
            root = jnp.sqrt(1.0 + a * a + b * b)
            rest = (a * b) ** 2 * (1.0 + root * root) / ((1.0 + a * a) * (1.0 + b * b) * root)
            return 0.25 * a * b + (a * b * jnp.arctan2(a * b, root) + rest) / (2.0 * math.pi)

        def by_first(a: Array, b: Array) -> Array:
            return jax.jvp(lambda x: product(x, b), (a,), (jnp.ones_like(a),))[1]

        start, length = jnp.sqrt(apart.q), apart.difference
        nodes, weights = half_unit_rule(6)
        total = jnp.zeros_like(start)
        for s, ws in zip(nodes, weights, strict=True):
            for t, wt in zip(nodes, weights, strict=True):
                a, b = start + s * length, start + t * length
                total += ws * wt * jax.jvp(lambda x, a=a: by_first(a, x), (b,), (jnp.ones_like(b),))[1]
        return total * length * length
