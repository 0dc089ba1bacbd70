"""Monomials and Hermite polynomials. Their kernels are exact at every variance, by counting pairings (Isserlis
1918).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkpipe.kernels.apart import Apart, half_unit_rule, halves, series
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.state import Array


@dataclass(frozen=True)
class Monomial(Nonlinearity):
    """phi(x) = x^degree. The kernel overflows where `p^degree` does.

    Args:
        degree: the exponent, at least 0; 0 is the constant 1.
    """

    degree: int

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return E[u^n v^n], and n^2 times the same for n - 1."""
        product = p * q
        nngp = _mixed_power(_monomial_coefficients(self.degree), self.degree, k, product)
        if self.degree == 0:
            return nngp, jnp.zeros_like(nngp)
        lower = self.degree - 1
        return nngp, self.degree**2 * _mixed_power(_monomial_coefficients(lower), lower, k, product)

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return `(2n - 1)!! p^n`, and n^2 times the same for n - 1."""
        nngp = odd_factorial(self.degree) * p**self.degree
        if self.degree == 0:
            return nngp, jnp.zeros_like(p)
        lower = self.degree - 1
        return nngp, self.degree**2 * odd_factorial(lower) * p**lower

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from the integral of the polynomial `E[phi' phi']` over covariances from k to sqrt(pq)."""
        nodes, weights = half_unit_rule(1 + self.degree // 2)
        near = jnp.zeros_like(apart.upper)
        for t, w in zip(nodes, weights, strict=True):
            k = apart._replace(upper=apart.upper * t, lower=2.0 * apart.norm - apart.upper * t).k
            near += w * apart.upper * self.pairs(k, apart.p, apart.q)[1]
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        return *halves(apart, near, plain, jnp.sqrt(p) * jnp.sqrt(q)), dot


@dataclass(frozen=True)
class Hermite(Nonlinearity):
    """phi = He_degree / sqrt(degree!), the Hermite polynomial normalised to unit variance for unit variance.

    At p = q = 1 the kernel is `k^degree`. neural-tangents uses this at every variance. Here the kernel is the Gaussian
    expectation at the actual variance, to which finite networks converge.

    Args:
        degree: degree of the polynomial, at least 0.
    """

    degree: int

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return both moments, as powers of k and (p - 1) (q - 1); the derivative is sqrt(n) times the polynomial n -
        1.
        """
        return self._moments(k, (p - 1.0) * (q - 1.0))

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return both moments at k = p."""
        return self._moments(p, jnp.square(p - 1.0))

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from the Hermite expansion of phi at each variance."""
        powers = self.degree - 2 * np.array(_halves(self.degree))
        near = series(apart, self._expanded(apart.p, powers), self._expanded(apart.q, powers), powers)
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        return *halves(apart, near, plain, jnp.sqrt(p) * jnp.sqrt(q)), dot

    def _expanded(self, p: Float[Array, "*n"], powers: np.ndarray) -> Array:
        """Return the coefficients of `He_n(sqrt(p) z) / sqrt(n!)` in normalised Hermite polynomials of z, `(powers,
        *n)`.
        """
        roots = [math.sqrt(value) for value in _hermite_coefficients(self.degree)]
        terms = zip(roots, powers, strict=True)
        return jnp.stack([c * jnp.sqrt(p) ** int(j) * (p - 1.0) ** ((self.degree - int(j)) // 2) for c, j in terms])

    def _moments(self, k: Float[Array, "*k"], product: Float[Array, "*n"]) -> Moments:
        nngp = _mixed_power(_hermite_coefficients(self.degree), self.degree, k, product)
        if self.degree == 0:
            return nngp, jnp.zeros_like(nngp)
        lower = self.degree - 1
        return nngp, self.degree * _mixed_power(_hermite_coefficients(lower), lower, k, product)


def odd_factorial(n: int) -> float:
    """Return `(2n - 1)!! = 1 * 3 * ... * (2n - 1)`, the moment of order 2n of a standard normal variable."""
    return float(math.prod(range(1, 2 * n, 2)))


def _monomial_coefficients(n: int) -> list[float]:
    """Return the coefficients of `k^(n - 2m) (pq)^m` in E[u^n v^n].

    They count the ways to choose n - 2m cross pairs and to pair the rest within u and within v.
    """
    return [float(math.comb(n, 2 * m) ** 2 * math.factorial(n - 2 * m)) * odd_factorial(m) ** 2 for m in _halves(n)]


def _hermite_coefficients(n: int) -> list[float]:
    """Return the coefficients of `k^(n - 2m) ((p - 1) (q - 1))^m`.

    They follow from He_n(s z) = sum over m of n! / (2^m m! (n - 2m)!) s^(n - 2m) (s^2 - 1)^m He_(n - 2m)(z).
    """
    return [math.factorial(n) / (4**m * math.factorial(m) ** 2 * math.factorial(n - 2 * m)) for m in _halves(n)]


def _halves(n: int) -> range:
    return range(n // 2 + 1)


def _mixed_power(
    coefficients: list[float], n: int, k: Float[Array, "*k"], product: Float[Array, "*n"]
) -> Float[Array, "*k"]:
    """Return the sum over m of `coefficients[m] k^(n - 2m) product^m`, of the shape of `k`, by Horner's rule."""
    square, power = k * k, jnp.ones_like(product)
    value = jnp.full_like(k, coefficients[0])
    for coefficient in coefficients[1:]:
        power = power * product
        value = value * square + coefficient * power
    return value * k if n % 2 else value
