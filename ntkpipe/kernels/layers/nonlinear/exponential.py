"""Sines, exponentials and Gaussians: their kernels are exponentials or algebraic functions of the covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.apart import Apart, halves
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.shifted import shifted, sine_and_cosine2
from ntkpipe.kernels.layers.nonlinear.slopes import by_price, cosine, half_powers
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
        """Return half of `exp(-b^2 (p + q - 2k) / 2) -+ cos(2c) exp(-b^2 (p + q + 2k) / 2)`, times a^2 and a^2 b^2."""
        of_difference, of_sum, difference = _mean_cosines(self.b**2, k, p, q)
        cos2c, sin2 = math.cos(2.0 * self.c), math.sin(self.c) ** 2
        nngp = self.a**2 * (of_difference * sin2 + 0.5 * cos2c * difference)
        dot = (self.a * self.b) ** 2 * 0.5 * (of_difference + cos2c * of_sum)
        return nngp, dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return both moments at k = p, where the first exponential is 1."""
        b2 = self.b**2
        lost = -jnp.expm1(-2.0 * b2 * p)
        cos2c, sin2 = math.cos(2.0 * self.c), math.sin(self.c) ** 2
        nngp = self.a**2 * (sin2 + 0.5 * cos2c * lost)
        return nngp, (self.a * self.b) ** 2 * 0.5 * (1.0 + cos2c * (1.0 - lost))

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from the squared distance, computed as a difference of exponentials, minus that of the
        norms.
        """
        b2, radial = self.b**2, 0.5 * self.b**2 * jnp.square(apart.difference)
        # `halves` uses the plain form where the norms differ much or k is far below sqrt(pq), so clipping is safe.
        ratio, within = (jnp.clip(b2 * part, -1.0, 1.0) for part in (apart.p - apart.q, apart.upper))
        sums = jnp.exp(-b2 * (0.5 * (apart.p + apart.q) + apart.norm))
        sums = sums * (jnp.expm1(-radial) * jnp.cosh(ratio) + 2.0 * jnp.sinh(0.5 * ratio) ** 2 - jnp.expm1(within))
        distance = -jnp.expm1(-radial - b2 * apart.upper) - math.cos(2.0 * self.c) * sums
        near = 0.5 * (self.a**2 * distance - jnp.square(jnp.sqrt(p) - jnp.sqrt(q)))
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        norm = jnp.sqrt(p) * jnp.sqrt(q)
        mild = (jnp.abs(b2 * (apart.p - apart.q)) < 1.0) & (b2 * apart.upper < 1.0)
        return *halves(apart, jnp.where(mild, near, norm - plain), plain, norm), dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mean_cosines(b2: float, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> tuple[Array, ...]:
    """Return E cos(b (u - v)), E cos(b (u + v)), and the first minus the second.

    Both are computed from the larger one and `1 - exp(-2 b^2 |k|)`, so nothing overflows and the difference keeps its
    relative accuracy where k is small. The derivatives are those of the exponentials, not of the sign of k.
    """
    size = jnp.abs(k)
    larger = jnp.exp(-0.5 * b2 * jnp.maximum(p + q - 2.0 * size, 0.0))
    lost = -jnp.expm1(-2.0 * b2 * size)
    difference = jnp.sign(k) * larger * lost
    smaller = larger * (1.0 - lost)
    return jnp.where(k < 0, smaller, larger), jnp.where(k < 0, larger, smaller), difference


@_mean_cosines.defjvp
def _(b2, primals, tangents):
    of_difference, of_sum, difference = _mean_cosines(b2, *primals)
    dk, dp, dq = tangents
    less = of_difference * (-0.5 * b2 * ((dp + dq) - 2.0 * dk))
    more = of_sum * (-0.5 * b2 * ((dp + dq) + 2.0 * dk))
    return (of_difference, of_sum, difference), (less, more, less - more)


@dataclass(frozen=True)
class Rbf(Nonlinearity):
    """phi(x) = sqrt(2) sin(sqrt(2 gamma) x + pi / 4), whose covariance is the squared exponential kernel.

    The exponent is a difference of variances, and its absolute error is a few units in the last place of gamma (p + q).

    Args:
        gamma: 1 / (2 l^2), where l is the length scale of the root mean squared difference per feature.
    """

    gamma: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `exp(-gamma (p + q - 2k))`, and 2 gamma times that."""
        nngp = jnp.exp(-self.gamma * jnp.maximum((p + q) - 2.0 * k, 0.0))
        return nngp, 2.0 * self.gamma * nngp

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return 1 and 2 gamma."""
        return jnp.ones_like(p), jnp.full_like(p, 2.0 * self.gamma)

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds; the exponent is a squared distance."""
        del p, q
        upper = -jnp.expm1(-self.gamma * (jnp.square(apart.difference) + 2.0 * apart.upper))
        return upper, 2.0 - upper, 2.0 * self.gamma * (1.0 - upper)


@dataclass(frozen=True)
class Exp(Nonlinearity):
    """phi(x) = a exp(b x).

    Its moments grow exponentially. They are infinite where `2 b^2` times a variance exceeds 88 (709 in float64). Put a
    `layer_norm` before the linear layer in front of it.

    Args:
        a: amplitude.
        b: rate.
    """

    a: float
    b: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `a^2 exp(b^2 ((p + q) / 2 + k))`, and b^2 times that."""
        nngp = self.a**2 * jnp.exp(self.b**2 * (0.5 * (p + q) + k))
        return nngp, self.b**2 * nngp

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return `a^2 exp(2 b^2 p)`, and b^2 times that."""
        nngp = self.a**2 * jnp.exp(2.0 * self.b**2 * p)
        return nngp, self.b**2 * nngp

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds; the kernel is the product of norms times `exp(-b^2 |u - v|^2 / 2)`."""
        norm = jnp.sqrt(p) * jnp.sqrt(q)
        upper = -norm * jnp.expm1(-(self.b**2) * (0.5 * jnp.square(apart.difference) + apart.upper))
        return upper, 2.0 * norm - upper, self.b**2 * (norm - upper)


@dataclass(frozen=True)
class Gaussian(Nonlinearity):
    """phi(x) = a exp(b x^2) with b < 0, as neural-tangents writes it.

    Args:
        a: amplitude.
        b: below 0, so the moments are finite at every variance.
    """

    a: float
    b: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `a^2 / sqrt(D)` and `4 a^2 b^2 k / D^(3/2)` with D = (1 - 2b p) (1 - 2b q) - 4 b^2 k^2.

        D is computed as (1 - 2b p) (1 - 2b q) times a squared cosine; see `shifted`.
        """
        scale = -2.0 * self.b
        seen = shifted(p, scale), shifted(q, scale)
        inverse = (seen[0][2] * seen[1][2]) / jnp.sqrt(sine_and_cosine2(k, *seen, scale)[1])
        return self.a**2 * inverse, (self.a * scale) ** 2 * ((k * inverse) * (inverse * inverse))

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return both moments at k = p, where D = 1 - 4b p."""
        inverse = 1.0 / jnp.sqrt(1.0 - 4.0 * self.b * p)
        return self.a**2 * inverse, (2.0 * self.a * self.b) ** 2 * ((p * inverse) * (inverse * inverse))

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds: `upper` is `a^2 / sqrt(G) - a^2 / sqrt(D)` with G = sqrt((1 - 4b p) (1 - 4b q)), from D -
        G.
        """
        scale, norm = -2.0 * self.b, jnp.sqrt(p) * jnp.sqrt(q)
        total = 1.0 + scale * (apart.p + apart.q)
        own = jnp.sqrt(1.0 + 2.0 * scale * apart.p) * jnp.sqrt(1.0 + 2.0 * scale * apart.q)
        minor = scale**2 * apart.upper * apart.lower
        rest = minor + (scale * (apart.p - apart.q)) ** 2 / (total + own)
        root, root_own = jnp.sqrt(total + minor), jnp.sqrt(own)
        upper = self.a**2 * rest / ((root + root_own) * root * root_own)
        inverse = 1.0 / root
        return upper, 2.0 * norm - upper, (self.a * scale) ** 2 * ((apart.k * inverse) * (inverse * inverse))


@dataclass(frozen=True)
class ExpNormalized(Nonlinearity):
    """The normalised Gaussian kernel `sqrt(pq) exp(gamma (cosine + shift))` (arXiv:2003.02237), defined by its kernel.

    The kernel is positively homogeneous, as that of ReLU: scaling an image scales its row. The cosine is clipped to
    [-1, 1].

    Args:
        gamma: rate of the exponential, above 0.
        shift: added to the cosine; -1 preserves variances.
    """

    gamma: float
    shift: float

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return the kernel and its derivative by k."""
        (root_p, inverse_p), (root_q, inverse_q) = half_powers(p), half_powers(q)
        value = jnp.exp(self.gamma * (cosine(k, inverse_p, inverse_q) + self.shift))
        dot = self.gamma * value
        return by_price((root_p * root_q) * value, k, dot, inverse_p, inverse_q), dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return both moments at cosine 1."""
        value = math.exp(self.gamma * (1.0 + self.shift))
        return p * value, jnp.full_like(p, self.gamma * value)

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds; the exponent is linear in the cosine."""
        before, norm = apart.norm, jnp.sqrt(p) * jnp.sqrt(q)
        lost = -jnp.expm1(-self.gamma * apart.upper / jnp.where(before > 0.0, before, 1.0))
        dot = self.gamma * math.exp(self.gamma * (1.0 + self.shift)) * (1.0 - lost)
        return norm * lost, norm * (2.0 - lost), dot
