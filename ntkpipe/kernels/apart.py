"""Distances of nearly equal images, carried through the layers where the covariance is not accurate enough.

An angle of 1e-8 changes a cosine by half a unit in the last place of float64. Angles computed from the cosine are
therefore wrong by up to the square root of the rounding, and so is every kernel that depends on them. For nearly equal
images the layers map r - k and r + k instead of the covariance k, with r = sqrt(pq) and variances p and q. These are
sums of squares at the input, and sums of terms `>= 0` after each layer, so nothing cancels. An error of eps sqrt(r (r -
k)) in r - k gives an error of eps in the angle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntkpipe.kernels.state import Array


class Apart(NamedTuple):
    """Variances and distances of pairs: `(h, w, n)` for equal pixels of images, `(n,)` for flat activations.

    Args:
        p: variances of the first images.
        q: variances of the second images.
        upper: `sqrt(pq) - k >= 0`, half the squared distance between the directions, times the norms.
        lower: `sqrt(pq) + k >= 0`, the same for opposite directions.
    """

    p: Float[Array, "*n"]
    q: Float[Array, "*n"]
    upper: Float[Array, "*n"]
    lower: Float[Array, "*n"]

    @property
    def k(self) -> Float[Array, "*n"]:
        """The covariance k."""
        return 0.5 * (self.lower - self.upper)

    @property
    def norm(self) -> Float[Array, "*n"]:
        """`sqrt(pq)`."""
        return jnp.sqrt(self.p) * jnp.sqrt(self.q)

    @property
    def difference(self) -> Float[Array, "*n"]:
        """`sqrt(p) - sqrt(q)`; `p + q - 2k` is its square plus twice `upper`."""
        return jnp.sqrt(self.p) - jnp.sqrt(self.q)

    @property
    def angle(self) -> Float[Array, "*n"]:
        """The angle in radians, 0 to pi; pi / 2 where one variance is zero, and 0 where both are."""
        limit = jnp.where(self.p + self.q > 0.0, 0.5 * np.pi, 0.0)
        vanishing = self.upper + self.lower <= 0.0
        return jnp.where(vanishing, limit, 2.0 * jnp.arctan2(jnp.sqrt(self.upper), jnp.sqrt(self.lower)))

    @property
    def supplement(self) -> Float[Array, "*n"]:
        """Pi minus the angle, accurate where it is small."""
        vanishing = self.upper + self.lower <= 0.0
        return jnp.where(vanishing, np.pi - self.angle, 2.0 * jnp.arctan2(jnp.sqrt(self.lower), jnp.sqrt(self.upper)))

    def times(self, scale: float | Array) -> Apart:
        """Return the bounds after all variances and covariances are multiplied by `scale`."""
        return Apart(*(scale * part for part in self))


def between(f: Float[Array, " d *n"], g: Float[Array, " d *n"], sign: float = 1.0) -> Float[Array, "*n"]:
    """Return `|f| |g| - sign f . g` for vectors along the first axis, or 0 if either is zero.

    The result has the relative accuracy of `f - sign g`. It is `|g / m - sign m f|^2 / 2` with m^2 = |g| / |f|,
    computed from the difference of g and f, which is exact for nearly equal vectors.
    """
    norm_f, norm_g = (jnp.sqrt(jnp.sum(jnp.square(x), axis=0)) for x in (f, g))
    present = (norm_f > 0.0) & (norm_g > 0.0)
    norm_f, norm_g = (jnp.where(present, norm, 1.0) for norm in (norm_f, norm_g))
    apart, together = sign * g - f, sign * g + f
    excess = jnp.sum(apart * together, axis=0) / (norm_f * (norm_f + norm_g))  # m^2 - 1
    square = 0.5 * jnp.sum(jnp.square(apart - excess * f), axis=0) * (norm_f / norm_g)
    return jnp.where(present, square, 0.0)


def stacked(parts: Sequence[Apart]) -> Apart:
    """Stack several bounds along a new first axis."""
    return Apart(*(jnp.stack(part) for part in zip(*parts, strict=True)))


def multiplied(one: Apart, other: Apart) -> Apart:
    """Return the bounds of products of independent activations, as sums of terms `>= 0`, so nothing cancels."""
    upper = 0.5 * (one.upper * other.lower + one.lower * other.upper)
    lower = 0.5 * (one.upper * other.upper + one.lower * other.lower)
    return Apart(one.p * other.p, one.q * other.q, upper, lower)


def joined(parts: Apart) -> Apart:
    """Return the bounds of sums of independent activations, summed along the first axis.

    The norm of a sum exceeds the sum of the norms if the variances of the parts are not proportional; both bounds grow
    by the difference.
    """
    rest = between(jnp.sqrt(parts.p), jnp.sqrt(parts.q))
    p, q, upper, lower = (jnp.sum(part, axis=0) for part in parts)
    return Apart(p, q, upper + rest, lower + rest)


def with_bias(apart: Apart, constant: float) -> Apart:
    """Return the bounds after a bias adds a constant to all covariances."""
    if constant == 0.0:
        return apart
    bias = (constant, constant, 0.0, 2.0 * constant)
    return joined(
        Apart(*(jnp.stack([part, jnp.full_like(part, value)]) for part, value in zip(apart, bias, strict=True)))
    )


def series(apart: Apart, f: Float[Array, " d *n"], g: Float[Array, " d *n"], powers: Int[np.ndarray, " d"]) -> Array:
    """Return `upper` of functions whose covariance is the sum over j of `f_j g_j cosine^powers_j`."""
    norm = apart.norm
    log_cosine = jnp.log1p(-jnp.minimum(apart.upper / jnp.where(norm > 0.0, norm, 1.0), 0.5))
    lost = jnp.expm1(jnp.asarray(powers, log_cosine.dtype).reshape(-1, *(1,) * log_cosine.ndim) * log_cosine)
    return between(f, g) - jnp.sum(f * g * lost, axis=0)


def halves(apart: Apart, near: Array, plain: Array, norm: Array) -> tuple[Array, Array]:
    """Return `upper` and `lower` after a nonlinearity: from `near` for nearly equal images, else from `plain`.

    Args:
        apart: the bounds before the nonlinearity.
        near: `upper` after it, accurate for nearly equal images.
        plain: the covariance after it, accurate for other images.
        norm: square root of the product of the variances after it.
    """
    upper = jnp.where(is_near(apart), jnp.maximum(near, 0.0), jnp.clip(norm - plain, 0.0, 2.0 * norm))
    return upper, 2.0 * norm - upper


def is_near(apart: Apart) -> Array:
    """Return where the cosine is at least 0.95 and the norms agree within about a fifth."""
    norm = apart.norm
    return (apart.upper <= 0.05 * norm) & (jnp.square(apart.difference) <= 0.04 * norm)


def half_unit_rule(nodes: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return 0.5 * (x + 1.0), 0.5 * w
