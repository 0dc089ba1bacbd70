"""Functions that are a power on each side of zero: ReLU and its variants, sign, rectified monomials.

Their kernels depend on the angle between two images (arc-cosine kernels, Cho and Saul 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from ntkpipe.kernels.apart import Apart, half_unit_rule, halves
from ntkpipe.kernels.layers.nonlinear.arcsine import angle_and_sine, arcsin
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.polynomial import Monomial
from ntkpipe.kernels.layers.nonlinear.slopes import by_price, cosine, half_powers, to_unit
from ntkpipe.kernels.state import Array


@dataclass(frozen=True)
class ABRelu(Nonlinearity):
    """phi(x) = a min(x, 0) + b max(x, 0), the arc-cosine kernel of order 1 (Cho and Saul 2009; arXiv:1711.00165).

    A zero image has no direction. Its angle is pi / 2 to every other image and 0 to zero images (see `cosine`). At
    equal images E[phi' phi'] has a kink, and its derivative is set to 0 (see `slopes`).

    Args:
        a: slope of the negative half.
        b: slope of the positive half.
    """

    a: float
    b: float

    @property
    def _c(self) -> float:
        return (self.a - self.b) ** 2 / (2.0 * math.pi)

    def seen(self, p: Float[Array, "*p"]) -> tuple[Array, ...]:
        """Return the square root of the variance and its inverse."""
        return half_powers(p)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """Return `(a^2 + b^2) / 2 - c angle` with c = (a - b)^2 / (2 pi)."""
        angle, _ = angle_and_sine(cosine(k, p[1], q[1]))
        return (self.a**2 + self.b**2) / 2.0 - self._c * angle

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """Return `c sine sqrt(pq) + derivative k`."""
        # For zero images the product of the roots is 0, so their angle does not matter.
        cosine = to_unit(k * (p[1] * q[1]))
        sine = jnp.sqrt((1.0 - cosine) * (1.0 + cosine))
        # The derivatives of the sine and of the angle cancel, c sqrt(pq) d sine = -k d derivative, and both are
        # infinite
        # at equal images: leave both out.
        sine, derivative = lax.stop_gradient((sine, derivative))
        return self._c * sine * (p[0] * q[0]) + derivative * k

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return both moments."""
        seen = self.seen(p), self.seen(q)
        dot = self.derivative(k, *seen)
        return self.value(k, *seen, dot), dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return `(a^2 + b^2) / 2` times the variance, and that factor: the angle is 0."""
        factor = (self.a**2 + self.b**2) / 2.0
        return p * factor, jnp.full_like(p, factor)

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds of phi as a sum of two uncorrelated parts, `(a + b) / 2 x` and `(b - a) / 2 |x|`.

        The kernel of |x| is `2 / pi (r sine + (pi / 2 - angle) k)` with r = sqrt(pq).
        """
        del p, q
        linear, bent = (self.a + self.b) ** 2 / 4.0, (self.b - self.a) ** 2 / 4.0
        angle, norm = apart.angle, apart.norm
        acute = jnp.minimum(angle, apart.supplement)
        lost = (2.0 / math.pi) * norm * _sine_less_chord(acute)
        upper = jnp.maximum(jnp.minimum(apart.upper, apart.lower) - lost, 0.0)
        dot = linear + bent * (1.0 - (2.0 / math.pi) * angle)
        return linear * apart.upper + bent * upper, linear * apart.lower + bent * (2.0 * norm - upper), dot


@dataclass(frozen=True)
class Sign(Nonlinearity):
    """phi(x) = sign(x).

    Use it for the NNGP only. The derivative is zero almost everywhere, so E[phi' phi'] is zero, as in finite networks
    and in neural-tangents. The NTK is that of the layers after the last sign.
    """

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `(2 / pi) arcsin(cosine)` and zero."""
        c = cosine(k, half_powers(p)[1], half_powers(q)[1])
        nngp = (2.0 / math.pi) * arcsin(c, (1.0 - c) * (1.0 + c))
        return nngp, jnp.zeros_like(nngp)

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return 1 and zero."""
        return jnp.ones_like(p), jnp.zeros_like(p)

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds: `2 / pi` times the angle, and `2 / pi` times its supplement."""
        upper, lower = (p * q * (2.0 / math.pi) * angle for angle in (apart.angle, apart.supplement))
        return upper, lower, jnp.zeros_like(upper)


@dataclass(frozen=True)
class RectifiedMonomial(Nonlinearity):
    """phi(x) = x^degree if x > 0, else 0: the arc-cosine kernel of order `degree` (Cho and Saul 2009).

    Degree 0 is the step function: its derivative is zero almost everywhere, so E[phi' phi'] is zero. The kernel
    overflows where `p^degree` does. Its error relative to `sqrt(K'(x, x) K'(x', x'))` is that of the angle, about 1e-6
    in float32.

    Args:
        degree: the exponent, at least 0.
    """

    degree: int

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return `(p q)^(n / 2) J_n / (2 pi)` for degree n, and n^2 times the same for degree n - 1."""
        (root_p, inverse_p), (root_q, inverse_q) = half_powers(p), half_powers(q)
        c, norm = cosine(k, inverse_p, inverse_q), root_p * root_q
        nngp = norm**self.degree * (_angular(self.degree, c) / (2.0 * math.pi))
        if self.degree == 0:
            return nngp, jnp.zeros_like(nngp)
        lower = self.degree - 1
        dot = norm**lower * (self.degree**2 / (2.0 * math.pi) * _angular(lower, c))
        return by_price(nngp, k, dot, inverse_p, inverse_q), dot

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return half of the moments of the monomial on the whole line."""
        nngp, dot = Monomial(self.degree).same(p)
        return 0.5 * nngp, 0.5 * dot

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from the integral of `E[phi' phi']` over covariances from k to sqrt(pq).

        The integrand is smooth in the angle, so the quadrature uses a variable proportional to it.
        """
        if self.degree == 1:
            return ABRelu(0.0, 1.0).near(apart, p, q)
        norm = jnp.sqrt(p) * jnp.sqrt(q)
        if self.degree == 0:
            upper = apart.angle * norm / math.pi
            return upper, 2.0 * norm - upper, jnp.zeros_like(upper)
        nodes, weights = half_unit_rule(16)
        near = jnp.zeros_like(norm)
        for t, w in zip(nodes, weights, strict=True):
            upper = apart.upper * t**2
            slope = self._slope(apart._replace(upper=upper, lower=2.0 * apart.norm - upper))
            near += (2.0 * w * t) * apart.upper * slope
        return *halves(apart, near, self.pairs(apart.k, apart.p, apart.q)[0], norm), self._slope(apart)

    def _slope(self, apart: Apart) -> Array:
        norm, lower = apart.norm, self.degree - 1
        sine = jnp.sqrt(apart.upper * apart.lower) / jnp.where(norm > 0.0, norm, 1.0)
        angular = _angular_of(lower, jnp.cos(apart.angle), apart.angle, sine)
        return norm**lower * (self.degree**2 / (2.0 * math.pi) * angular)


def _sine_less_chord(angle: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return `sin a - a cos a` for angles up to pi / 2, by a series where the two terms cancel."""
    square = angle * angle
    small = angle * square / 3.0 * (1.0 - square / 10.0 * (1.0 - square / 28.0 * (1.0 - square / 54.0)))
    return jnp.where(angle < 0.1, small, jnp.sin(angle) - angle * jnp.cos(angle))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _angular(degree: int, cosine: Float[Array, "*k"]) -> Float[Array, "*k"]:
    """Return the angular function J_n of the arc-cosine kernels, `A(cos) (pi - angle) + B(cos) sin`.

    J_n = sin^(2n + 1) (d / d cos)^n ((pi - angle) / sin). With c the cosine, the polynomials A and B follow from
    A_(n+1) = (1 - c^2) A' + (2n + 1) c A and B_(n+1) = A + (1 - c^2) B' + 2n c B, with A_0 = 1 and B_0 = 0. Their
    coefficients are `>= 0` and of one parity, so evaluating them loses no accuracy. The derivative of J_n is n^2
    J_(n-1).
    """
    return _angular_of(degree, cosine, *angle_and_sine(cosine))


def _angular_of(
    degree: int, cosine: Float[Array, "*k"], angle: Float[Array, "*k"], sine: Float[Array, "*k"]
) -> Float[Array, "*k"]:
    a, b = [1], [0]
    for n in range(degree):
        a, b = (
            _sum(_rotated(a), [0] + [(2 * n + 1) * value for value in a]),
            _sum(a, _sum(_rotated(b), [0] + [2 * n * value for value in b])),
        )
    return _polynomial(a, cosine) * (math.pi - angle) + _polynomial(b, cosine) * sine


@_angular.defjvp
def _(degree, primals, tangents):
    (cosine,), (slope,) = primals, tangents
    if degree == 0:
        return _angular(0, cosine), -jax.jvp(lambda c: angle_and_sine(c)[0], (cosine,), (slope,))[1]
    return _angular(degree, cosine), degree**2 * _angular(degree - 1, cosine) * slope


def _rotated(polynomial: list[int]) -> list[int]:
    """Return `(1 - c^2)` times the derivative of a polynomial, with coefficients from the constant term up."""
    derivative = [power * value for power, value in enumerate(polynomial)][1:]
    return _sum(derivative, [0, 0] + [-value for value in derivative])


def _sum(a: list[int], b: list[int]) -> list[int]:
    length = max(len(a), len(b))
    return [x + y for x, y in zip(a + [0] * (length - len(a)), b + [0] * (length - len(b)), strict=True)]


def _polynomial(coefficients: list[int], x: Float[Array, "*k"]) -> Float[Array, "*k"]:
    value = jnp.full_like(x, float(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        value = value * x + float(coefficient)
    return value
