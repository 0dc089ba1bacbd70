"""How far apart two images are, carried where they nearly coincide: there their covariance says too little.

An angle of 1e-8 changes a cosine by half a unit in the last place of float64: computed from the cosine, angles are wrong by up to the
root of the rounding, and with them every kernel that depends on angles. So what is carried is not the covariance k of two
variances p and q but what it leaves of its bounds, r - k and r + k with r = sqrt(pq): sums of squares at the input, and
sums of terms that are not negative from layer to layer. An error of eps sqrt(r (r - k)) in r - k is one of eps in the angle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntkpipe.kernels.state import Array


class Apart(NamedTuple):
    """Equal pixels of pairs of images, `(h, w, n)` each; or pairs of flat activations, `(n,)`.

    Args:
        p: variances in the first images.
        q: variances in the second images.
        upper: `sqrt(pq) - k`, not negative: half the squared distance of directions, times the norms.
        lower: `sqrt(pq) + k`, likewise of opposite directions.
    """

    p: Float[Array, "*n"]
    q: Float[Array, "*n"]
    upper: Float[Array, "*n"]
    lower: Float[Array, "*n"]

    @property
    def k(self) -> Float[Array, "*n"]:
        """The covariance."""
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
        """In radians, 0 to pi; pi / 2 where one variance is zero, and 0 where both are."""
        limit = jnp.where(self.p + self.q > 0.0, 0.5 * np.pi, 0.0)
        vanishing = self.upper + self.lower <= 0.0
        return jnp.where(vanishing, limit, 2.0 * jnp.arctan2(jnp.sqrt(self.upper), jnp.sqrt(self.lower)))

    @property
    def supplement(self) -> Float[Array, "*n"]:
        """Pi less the angle, accurate where it is small."""
        vanishing = self.upper + self.lower <= 0.0
        return jnp.where(vanishing, np.pi - self.angle, 2.0 * jnp.arctan2(jnp.sqrt(self.lower), jnp.sqrt(self.upper)))

    def times(self, scale: float | Array) -> Apart:
        """Of activations whose products are `scale` times as large."""
        return Apart(*(scale * part for part in self))


def between(f: Float[Array, " d *n"], g: Float[Array, " d *n"], sign: float = 1.0) -> Float[Array, "*n"]:
    """`|f| |g| - sign f . g` of vectors along the first axis, with the relative accuracy of `f - sign g`; 0 if either is zero.

    It is `|g / m - sign m f|^2 / 2` with m^2 = |g| / |f|, formed from the difference of g and f, which is exact if they are near.
    """
    norm_f, norm_g = (jnp.sqrt(jnp.sum(jnp.square(x), axis=0)) for x in (f, g))
    present = (norm_f > 0.0) & (norm_g > 0.0)
    norm_f, norm_g = (jnp.where(present, norm, 1.0) for norm in (norm_f, norm_g))
    apart, together = sign * g - f, sign * g + f
    excess = jnp.sum(apart * together, axis=0) / (norm_f * (norm_f + norm_g))  # m^2 - 1
    square = 0.5 * jnp.sum(jnp.square(apart - excess * f), axis=0) * (norm_f / norm_g)
    return jnp.where(present, square, 0.0)


def stacked(parts: Sequence[Apart]) -> Apart:
    """Several, along a new first axis."""
    return Apart(*(jnp.stack(part) for part in zip(*parts, strict=True)))


def multiplied(one: Apart, other: Apart) -> Apart:
    """Of products of independent activations: sums of products that are not negative, so that nothing cancels."""
    upper = 0.5 * (one.upper * other.lower + one.lower * other.upper)
    lower = 0.5 * (one.upper * other.upper + one.lower * other.lower)
    return Apart(one.p * other.p, one.q * other.q, upper, lower)


def joined(parts: Apart) -> Apart:
    """Of sums of independent activations, summed along the first axis.

    Norms of sums exceed sums of norms where the parts' variances are not in proportion: both bounds move by as much.
    """
    rest = between(jnp.sqrt(parts.p), jnp.sqrt(parts.q))
    p, q, upper, lower = (jnp.sum(part, axis=0) for part in parts)
    return Apart(p, q, upper + rest, lower + rest)


def with_bias(apart: Apart, constant: float) -> Apart:
    """With a constant added to all covariances, as a bias does."""
    if constant == 0.0:
        return apart
    bias = (constant, constant, 0.0, 2.0 * constant)
    return joined(
        Apart(*(jnp.stack([part, jnp.full_like(part, value)]) for part, value in zip(apart, bias, strict=True)))
    )


def series(apart: Apart, f: Float[Array, " d *n"], g: Float[Array, " d *n"], powers: Int[np.ndarray, " d"]) -> Array:
    """`upper` of functions whose covariance is the sum over j of `f_j g_j cosine^powers_j`."""
    norm = apart.norm
    log_cosine = jnp.log1p(-jnp.minimum(apart.upper / jnp.where(norm > 0.0, norm, 1.0), 0.5))
    lost = jnp.expm1(jnp.asarray(powers, log_cosine.dtype).reshape(-1, *(1,) * log_cosine.ndim) * log_cosine)
    return between(f, g) - jnp.sum(f * g * lost, axis=0)


def halves(apart: Apart, near: Array, plain: Array, norm: Array) -> tuple[Array, Array]:
    """`upper` and `lower` after a nonlinearity: near equal images from `near`, elsewhere from the covariance `plain`.

    Args:
        apart: before it.
        near: `upper` after it, accurate where the images nearly coincide.
        plain: the covariance after it, accurate elsewhere.
        norm: root of the product of the variances after it.
    """
    upper = jnp.where(is_near(apart), jnp.maximum(near, 0.0), jnp.clip(norm - plain, 0.0, 2.0 * norm))
    return upper, 2.0 * norm - upper


def is_near(apart: Apart) -> Array:
    """Where a cosine is above 0.95 and norms agree to a fifth: there differences are taken before they are rounded."""
    norm = apart.norm
    return (apart.upper <= 0.05 * norm) & (jnp.square(apart.difference) <= 0.04 * norm)


def half_unit_rule(nodes: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Gauss-Legendre quadrature on [0, 1]: nodes and weights."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return 0.5 * (x + 1.0), 0.5 * w
