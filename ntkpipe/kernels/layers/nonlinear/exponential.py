"""Exponentials, real and imaginary: their kernels are exponentials or rational functions of the covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity, cosine_and_norm
from ntkpipe.kernels.state import Array


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

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
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

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """At k = p the first exponential is 1."""
        b2 = self.b**2
        lost = -jnp.expm1(-2.0 * b2 * p)
        cos2c, sin2 = math.cos(2.0 * self.c), math.sin(self.c) ** 2
        nngp = self.a**2 * (sin2 + 0.5 * cos2c * lost)
        return nngp, (self.a * self.b) ** 2 * 0.5 * (1.0 + cos2c * (1.0 - lost))


@dataclass(frozen=True)
class Rbf(Nonlinearity):
    """phi(x) = sqrt(2) sin(sqrt(2 gamma) x + pi / 4), whose covariance is the squared exponential kernel.

    The exponent is a difference of variances: its absolute error is some units in the last place of gamma (p + q).

    Args:
        gamma: 1 / (2 l^2) for a length scale l of the mean squared difference per feature.
    """

    gamma: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """`exp(-gamma (p + q - 2k))`, and 2 gamma times that."""
        nngp = jnp.exp(-self.gamma * jnp.maximum((p + q) - 2.0 * k, 0.0))
        return nngp, 2.0 * self.gamma * nngp

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """1 and 2 gamma."""
        return jnp.ones_like(p), jnp.full_like(p, 2.0 * self.gamma)


@dataclass(frozen=True)
class Exp(Nonlinearity):
    """phi(x) = a exp(b x).

    Its moments grow exponentially: where `2 b^2` times a variance passes 88 (709 in float64) they are infinite. Put
    layer_norm before the layer that feeds it.

    Args:
        a: amplitude.
        b: rate.
    """

    a: float
    b: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """`a^2 exp(b^2 ((p + q) / 2 + k))`, and b^2 times that."""
        nngp = self.a**2 * jnp.exp(self.b**2 * (0.5 * (p + q) + k))
        return nngp, self.b**2 * nngp

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """`a^2 exp(2 b^2 p)`, and b^2 times that."""
        nngp = self.a**2 * jnp.exp(2.0 * self.b**2 * p)
        return nngp, self.b**2 * nngp


@dataclass(frozen=True)
class Gaussian(Nonlinearity):
    """phi(x) = a exp(b x^2) with b < 0, as neural-tangents writes it.

    Args:
        a: amplitude.
        b: below 0, so that every variance has finite moments.
    """

    a: float
    b: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """`a^2 / sqrt(D)` and `4 a^2 b^2 k / D^(3/2)`, D = (1 - 2b p) (1 - 2b q) - 4 b^2 k^2.

        D is formed as `1 - 2b (p + q) + 4 b^2 (pq - k^2)`, a sum of terms that are not negative.
        """
        norm, size = jnp.sqrt(p) * jnp.sqrt(q), jnp.abs(k)
        scale = -2.0 * self.b
        minor = (scale * jnp.maximum(norm - size, 0.0)) * (scale * (norm + size))
        inverse = 1.0 / jnp.sqrt(1.0 + scale * (p + q) + minor)
        return self.a**2 * inverse, (self.a * scale) ** 2 * ((k * inverse) * (inverse * inverse))

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """At k = p, D = 1 - 4b p."""
        inverse = 1.0 / jnp.sqrt(1.0 - 4.0 * self.b * p)
        return self.a**2 * inverse, (2.0 * self.a * self.b) ** 2 * ((p * inverse) * (inverse * inverse))


@dataclass(frozen=True)
class ExpNormalized(Nonlinearity):
    """The normalised Gaussian kernel (arXiv:2003.02237), given as a kernel: `sqrt(pq) exp(gamma (cosine + shift))`.

    Positively homogeneous, as ReLU's: scaling an image scales its row. The cosine is clipped to [-1, 1].

    Args:
        gamma: above 0.
        shift: added to the cosine; -1 keeps variances.
    """

    gamma: float
    shift: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """The kernel, and its derivative by k."""
        cosine, norm = cosine_and_norm(k, p, q)
        value = jnp.exp(self.gamma * (cosine + self.shift))
        return norm * value, self.gamma * value

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """At cosine 1."""
        value = math.exp(self.gamma * (1.0 + self.shift))
        return p * value, jnp.full_like(p, self.gamma * value)
