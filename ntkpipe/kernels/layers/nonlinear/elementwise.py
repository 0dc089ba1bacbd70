"""Nonlinearities that users give as a formula of the function or of its kernel (arXiv:2209.04121)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkpipe.kernels.apart import Apart, halves, series
from ntkpipe.kernels.layers.nonlinear.base import Moments, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.formula import parse
from ntkpipe.kernels.layers.nonlinear.operations import apply_formula, clipped_sqrt
from ntkpipe.kernels.layers.nonlinear.quadrature import hermite_rule
from ntkpipe.kernels.layers.nonlinear.slopes import by_price, cosine, half_powers
from ntkpipe.kernels.state import Array

# Number of variances expanded at once: the function values at 130 nodes then take 4 MiB in float32.
_BATCH = 8192


class Expansion(NamedTuple):
    """The Hermite expansion of a function under N(0, p), for every p.

    Args:
        coefficients: a_j(p) = E[f(sqrt(p) z) h_j(z)], `(degree + 1, *p)`.
        even: square root of the part of E[f^2] that the even polynomials up to `degree` leave out, `(*p)`.
        odd: the same for the odd polynomials.
    """

    coefficients: Float[Array, " d *p"]
    even: Float[Array, "*p"]
    odd: Float[Array, "*p"]


@dataclass(frozen=True)
class Elementwise(Nonlinearity):
    """phi given by a formula in x, integrated numerically.

    With rho the cosine and h_j the normalised Hermite polynomials, Mehler's formula gives E[phi(u) phi(v)] = sum over j
    of a_j(p) a_j(q) rho^j with a_j(p) = E[phi(sqrt(p) z) h_j(z)]. This takes one one-dimensional integral per image and
    j, instead of one two-dimensional integral per pair. E[phi' phi'] is computed in the same way, with the formula
    differentiated.

    The series ends at `degree`. It leaves out t(p) = E[phi^2] - sum of a_j^2, which is split into even and odd parts.
    They are represented by two more terms: `sqrt(t_even(p) t_even(q)) rho^J` at the next even power J, and the same at
    the next odd power. The kernel is therefore positive semi-definite, exact at equal images for every function, and
    even or odd if phi is. Its error is at most `error_bound`.

    The error depends on phi: a_j^2 falls as e^(-2 d sqrt(2j / p)) if phi is analytic within distance d of the real
    line. The bounds on E[phi phi] and E[phi' phi'] at degree 64 and variance 1, relative to E[phi^2] and E[phi'^2], are

    - rounding for swish and softplus,
    - 3e-10 and 1e-8 for tanh,
    - 3e-6 and 2e-4 for elu,
    - 3e-4 and 6e-2 for `relu(x)`,
    - 7e-4 and 0.13 for `abs(x)`.

    The largest errors are a tenth of the bounds and occur near cosine 1; at half of all angles the error is below
    1e-11. Use the closed forms for functions with kinks. The bounds grow with the variance, because a steep sigmoid is
    nearly a jump. At variance 10 they are 5e-4 and 2e-2 for tanh, and 2e-7 and 1e-5 for swish. Degree 128 takes twice
    the time and reduces the bounds of tanh to 2e-5 and 1e-3.

    The bound does not include the error of the quadrature. That error is rounding for functions that are smooth on
    either side of 0, and of order 1 / `nodes` for a kink or jump elsewhere, such as `relu(x - 1)`. A jump contributes
    nothing to the derivative: `step(x)` has E[phi' phi'] = 0, as `sign` has.

    Args:
        function: the formula; see `formula.parse`.
        degree: degree of the last Hermite polynomial, at least 1.
        nodes: number of quadrature nodes, even and at least `2 degree + 2`.
    """

    function: str
    degree: int
    nodes: int

    def seen(self, p: Float[Array, "*p"]) -> tuple[Array, ...]:
        """Return the inverse square root of the variance and both expansions."""
        function, slope = self.expand(p)
        return half_powers(p)[1], *_packed(function), *_packed(slope)

    def derivative(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...]) -> Array:
        """Return Mehler's series of phi'."""
        first = 1 + len(p) // 2
        return self._series(cosine(k, p[0], q[0]), p[first:], q[first:])

    def value(self, k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], derivative: Array) -> Array:
        """Return Mehler's series of phi."""
        last = 1 + len(p) // 2
        series = self._series(cosine(k, p[0], q[0]), p[1:last], q[1:last])
        return by_price(series, k, derivative, p[0], q[0])

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return both series."""
        seen = self.seen(p), self.seen(q)
        derivative = self.derivative(k, *seen)
        return self.value(k, *seen, derivative), derivative

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return E[phi^2] and E[phi'^2] by quadrature; the series at cosine 1 equals them up to rounding."""
        nngp, dot = (jnp.sum(jnp.square(f.coefficients), axis=0) + f.even**2 + f.odd**2 for f in self.expand(p))
        return nngp, dot

    def near(self, apart: Apart, p: Float[Array, "*n"], q: Float[Array, "*n"]) -> tuple[Array, Array, Array]:
        """Return the bounds from the same series in `1 - rho^j`.

        The remainders are small differences of large sums, so subtracting them from each other would lose all digits.
        Only their product is used; their ratio is taken from the coefficients.
        """
        (f, _), (g, _) = self.expand(apart.p), self.expand(apart.q)
        of_f, of_g = (jnp.sqrt(jnp.sum(jnp.square(e.coefficients), axis=0)) for e in (f, g))
        ratio = jnp.sqrt(jnp.where((of_f > 0.0) & (of_g > 0.0), of_f / jnp.where(of_g > 0.0, of_g, 1.0), 1.0))
        rest = jnp.sqrt(jnp.stack([f.even * g.even, f.odd * g.odd]))
        j = np.arange(self.degree + 1)
        even = self.degree + 2 - self.degree % 2
        powers = np.array([*j, even, 2 * self.degree + 3 - even])
        of_f = jnp.concatenate([f.coefficients, rest * ratio])
        of_g = jnp.concatenate([g.coefficients, rest / ratio])
        plain, dot = self.pairs(apart.k, apart.p, apart.q)
        return *halves(apart, series(apart, of_f, of_g, powers), plain, jnp.sqrt(p) * jnp.sqrt(q)), dot

    def error_bound(self, p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return bounds on the truncation errors of both results of `pairs(k, p, q)`, valid for every k.

        By the Cauchy-Schwarz inequality, the terms left out are at most `sqrt(t(p) t(q))` for each parity, and so are
        the two terms that represent them. At cosine rho the error is at most |rho|^(degree + 1) times this bound. If no
        coefficients of p and q differ in sign and rho > 0, it is at most half of that.
        """
        made = [2.0 * (f.even * g.even + f.odd * g.odd) for f, g in zip(self.expand(p), self.expand(q), strict=True)]
        return made[0], made[1]

    def expand(self, p: Float[Array, "*p"]) -> tuple[Expansion, Expansion]:
        """Return the Hermite expansions of phi and of its derivative.

        In float32 the error of a coefficient is a few units in the last place of sqrt(E[phi^2]), and its effect on the
        kernel is as small: the matrix of the rule is orthonormal up to its weights and is computed in float64.
        """
        flat = jnp.ravel(p)
        if flat.size <= _BATCH:
            made = self._expand_flat(flat)
        else:
            made = jax.lax.map(lambda value: self._expand_flat(value[None]), flat, batch_size=_BATCH)
            made = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., 0], 0, -1), made)
        return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], *p.shape), made)

    def _expand_flat(self, p: Float[Array, " n"]) -> tuple[Expansion, Expansion]:
        tree = parse(self.function, ("x",))
        z, matrix = (jnp.asarray(part, p.dtype) for part in hermite_rule(self.degree, self.nodes))

        def function(x: Array) -> Array:
            return apply_formula(tree, x=x)

        # At variance 0 the limit is needed, not the value at 0: abs has slopes of -1 and 1 there.
        x = z[:, None] * jnp.sqrt(jnp.maximum(p, jnp.finfo(p.dtype).tiny))
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return self._expand_values(value, matrix), self._expand_values(slope, matrix)

    def _expand_values(self, value: Float[Array, "nodes n"], matrix: Float[Array, "nodes d"]) -> Expansion:
        # HIGHEST, because a GPU may compute float32 products in TF32 by default.
        coefficients = jnp.einsum("id,in->dn", matrix, value, precision=jax.lax.Precision.HIGHEST)
        mirrored, tails = value[::-1], []
        for parity, part in enumerate((0.5 * (value + mirrored), 0.5 * (value - mirrored))):
            square = jnp.einsum("i,in->n", matrix[:, 0], part * part, precision=jax.lax.Precision.HIGHEST)
            tail = square - jnp.sum(jnp.square(coefficients[parity::2]), axis=0)
            tails.append(clipped_sqrt(tail))
        return Expansion(coefficients, *tails)

    def _series(self, cosine: Array, f: tuple[Array, ...], g: tuple[Array, ...]) -> Array:
        """Evaluate the series by Horner's rule, beginning with the two terms that represent powers beyond `degree`."""
        even, odd = f[-2] * g[-2], f[-1] * g[-1]
        of_same_parity, of_other_parity = (odd, even) if self.degree % 2 else (even, odd)
        value = of_same_parity * cosine + of_other_parity
        for j in range(self.degree, -1, -1):
            value = value * cosine + f[j] * g[j]
        return value


def _packed(f: Expansion) -> tuple[Array, ...]:
    return *f.coefficients, f.even, f.odd


@dataclass(frozen=True)
class ElementwiseKernel(Nonlinearity):
    """A nonlinearity given by the formula of its kernel, `E[phi(u) phi(v)]` in k, p and q.

    E[phi' phi'] is its derivative by k (Price's theorem), by automatic differentiation. Where terms of the formula
    cancel, as those of an arc-cosine do near equal images, the terms of its derivative cancel too. The smaller variance
    is passed as p and the larger one as q, so the kernel is symmetric to the last bit. A variance below the square root
    of the smallest normal number (1e-19 in float32) is raised to that value, so a formula may divide by it.

    Only the symmetry of the formula is checked. The user must make sure that it is the kernel of some function.

    Args:
        nngp: the formula; see `formula.parse`.
    """

    nngp: str

    def pairs(self, k: Float[Array, "*k"], p: Float[Array, "*p"], q: Float[Array, "*q"]) -> Moments:
        """Return the formula and its derivative by k."""
        tree = parse(self.nngp, ("k", "p", "q"))
        # Zero images have cosine 1 with each other.
        absent = jnp.finfo(k.dtype).tiny
        k = jnp.where((p < absent) & (q < absent), self._floor(k), k)
        p, q = self._raised(p), self._raised(q)
        smaller, larger = jnp.minimum(p, q), jnp.maximum(p, q)
        return jax.jvp(lambda k: apply_formula(tree, k=k, p=smaller, q=larger), (k,), (jnp.ones_like(k),))

    def same(self, p: Float[Array, "*p"]) -> Moments:
        """Return the formula at k = p = q. Infinite derivatives of roots and inverse cosines are left out: they
        cancel.
        """
        p = self._raised(p)
        return self.pairs(p, p, p)

    def _raised(self, variance: Float[Array, "*p"]) -> Float[Array, "*p"]:
        return jnp.maximum(variance, self._floor(variance))

    def _floor(self, like: Array) -> Array:
        return jnp.sqrt(jnp.finfo(like.dtype).tiny)
