"""Gaussian moments of a formula by Gauss-Legendre quadrature on panels that end at its kinks.

For v of the same variance q and correlation c, both depend on a common part: `u = sqrt q (sqrt c z + sqrt(1 - c) a)`. The
difference `E phi^2 - E phi(u) phi(v)` is therefore the mean over z of the variance over a, in which nothing cancels near c = 1.
Panels around a kink shrink with `sqrt(1 - c)`, the width to which the average over a smooths the kink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.layers.nonlinear.formula import parse
from ntkpipe.kernels.layers.nonlinear.operations import apply_formula
from ntkpipe.kernels.state import Array

# Beyond these deviations the weights are below 1e-290 (one integral) and 1e-40 (two).
_FAR, _FAR_OF_PAIRS = 37.0, 14.0
# Distances of panel ends from a kink, for functions that change over a distance of about 1.
_STEPS = np.array([2.0**k for k in range(-4, 6)])
_STEPS_WITHIN = np.array([2.0**k for k in range(-2, 4)])
_GRADED = 22


@dataclass(frozen=True)
class Panels:
    """Moments of a formula.

    Args:
        function: the formula of x.
        kinks: places where it or its derivative jumps.
        nodes: nodes of every panel.
    """

    function: str
    kinks: tuple[float, ...]
    nodes: int = 16

    def same(self, p: Array) -> tuple[Array, Array]:
        """Return `E phi^2` and `E phi'^2` at variances of shape `(n,)`."""
        made = jax.lax.map(lambda q: _single(self, q), jnp.ravel(p), batch_size=64)
        return made[0].reshape(p.shape), made[1].reshape(p.shape)

    def fourth(self, p: Array) -> tuple[Array, Array]:
        """Return `E phi'^2` and `E phi'^4` at one variance."""
        z, weights = self.rule(p)
        slope = _both(self, z * _root(p))[1]
        return weights @ slope**2, weights @ slope**4

    def rule(self, q: Array) -> tuple[Array, Array]:
        """Return nodes, symmetric about 0, and weights of the standard normal density for one variance."""
        steps = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
        places = jnp.concatenate([jnp.asarray(centre + steps) for centre in self._centres()]) / _root(q)
        return _rule(jnp.asarray(np.linspace(-_FAR, _FAR, 75)), places, _FAR, self.nodes)

    def expand(self, q: Array, degree: int) -> tuple[Array, Array]:
        """Return for phi and phi' the squared Hermite coefficients up to `degree` and the squares that even and odd
        polynomials leave out, `(degree + 3, n)` each.
        """
        made = jax.lax.map(lambda one: _coefficients(self, one, degree), q, batch_size=16)
        return made[0].T, made[1].T

    def pairs(self, q: Array, gap: Array) -> tuple[Array, Array]:
        """Return `E phi^2 - E phi(u) phi(v)` and `E phi'(u) phi'(v)` at correlations `1 - gap`, `(n,)` each."""
        return jax.lax.map(lambda one: _pair(self, *one), (q, gap))

    def _centres(self) -> list[float]:
        return sorted({0.0, *self.kinks, *(-place for place in self.kinks)})


def _root(q: Array) -> Array:
    return jnp.sqrt(jnp.maximum(q, jnp.finfo(q.dtype).tiny))


def _rule(base: Array, places: Array, far: float, nodes: int) -> tuple[Array, Array]:
    """Return nodes and weights of the normal density on panels between sorted ends."""
    ends = jnp.sort(jnp.clip(jnp.concatenate([base, places]), -far, far))
    x, weights = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * jnp.diff(ends)[:, None]
    z = (0.5 * (ends[1:] + ends[:-1])[:, None] + half * x).ravel()
    return z, (half * weights).ravel() * jnp.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)


def _both(panels: Panels, x: Array) -> tuple[Array, Array]:
    tree = parse(panels.function, ("x",))
    return jax.jvp(lambda x: apply_formula(tree, x=x), (x,), (jnp.ones_like(x),))


def _single(panels: Panels, q: Array) -> tuple[Array, Array]:
    z, weights = panels.rule(q)
    value, slope = _both(panels, z * _root(q))
    return weights @ value**2, weights @ slope**2


def _coefficients(panels: Panels, q: Array, degree: int) -> tuple[Array, Array]:
    z, weights = panels.rule(q)
    both = jnp.stack(_both(panels, z * _root(q)))
    scaled = both * jnp.sqrt(weights)

    def following(before: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Array]:
        last, current = before
        after = (z * current - jnp.sqrt(j) * last) / jnp.sqrt(j + 1.0)
        return (current, after), scaled @ current

    # sqrt(weight) h_j(z), which does not overflow
    start = (jnp.zeros_like(z), jnp.sqrt(weights))
    squares = jnp.square(jax.lax.scan(following, start, jnp.arange(degree + 1.0))[1])
    made = []
    for k in (0, 1):
        mirrored = both[k][::-1]
        left = [
            jnp.maximum(weights @ jnp.square(0.5 * (both[k] + sign * mirrored)) - jnp.sum(squares[parity::2, k]), 0.0)
            for parity, sign in ((0, 1.0), (1, -1.0))
        ]
        made.append(jnp.concatenate([squares[:, k], jnp.stack(left)]))
    return made[0], made[1]


@partial(jax.jit, static_argnums=0)
def moments_of_pairs(panels: Panels, q: Array, gap: Array) -> tuple[Array, Array]:
    """Return `panels.pairs(q, gap)`, compiled."""
    return panels.pairs(q, gap)


def _pair(panels: Panels, q: Array, gap: Array) -> tuple[Array, Array]:
    c = jnp.abs(1.0 - gap)
    own = jnp.where(gap <= 1.0, gap, 2.0 - gap)  # the variance of a, `1 - |c|`
    common, width = jnp.sqrt(c) * _root(q), jnp.maximum(jnp.sqrt(own) * _root(q), 1e-150)
    centres = jnp.asarray(panels._centres())
    # around a kink from the smaller of its own scales to 1
    least = 0.25 * jnp.minimum(jnp.minimum(width, 1.0) / jnp.maximum(common, 1e-12), 1.0)
    steps = least ** jnp.linspace(1.0, 0.0, _GRADED)
    around = jnp.concatenate([-steps[::-1], jnp.zeros(1), steps])
    places = (centres[:, None] / jnp.maximum(common, 1e-12) + around).ravel()
    z, weights = _rule(jnp.asarray(np.linspace(-_FAR_OF_PAIRS, _FAR_OF_PAIRS, 21)), places, _FAR_OF_PAIRS, 12)
    steps_within = jnp.asarray(np.concatenate([-_STEPS_WITHIN[::-1], [0.0], _STEPS_WITHIN]))
    base = jnp.asarray(np.linspace(-_FAR_OF_PAIRS, _FAR_OF_PAIRS, 15))

    def within(z: Array) -> tuple[Array, Array, Array]:
        """Return the variance and the mean of phi and the mean of phi' over a, at one z."""
        kinks = ((centres[:, None] + steps_within - common * z) / width).ravel()
        a, inner = _rule(base, kinks, _FAR_OF_PAIRS, 12)
        value, slope = _both(panels, common * z + width * a)
        mean = inner @ value
        return inner @ jnp.square(value - mean), mean, inner @ slope

    spread, mean, slope = jax.lax.map(within, z, batch_size=256)
    negative = weights @ (spread + mean**2 - mean * mean[::-1])
    upper = jnp.where(gap <= 1.0, weights @ spread, negative)
    return upper, weights @ (slope * jnp.where(gap <= 1.0, slope, slope[::-1]))
