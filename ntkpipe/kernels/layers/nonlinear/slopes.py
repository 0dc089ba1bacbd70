"""Derivatives for automatic differentiation where the formulas would give infinite or undefined ones.

Kernels are differentiated by their images. At equal images the angle has a kink, with slopes +1 and -1, and the
symmetric derivative 0 is used. The same holds for the square root of a variance at a zero image. The formulas
themselves would give infinity times zero at these places.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.state import Array


@jax.custom_jvp
def to_unit(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Clip to [-1, 1], with derivative 1 everywhere: only rounding takes a cosine out of this range."""
    return jnp.clip(x, -1.0, 1.0)


@to_unit.defjvp
def _(primals, tangents):
    return to_unit(primals[0]), tangents[0]


@jax.custom_jvp
def half_powers(p: Float[Array, "*p"]) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """Return `sqrt(p)` and `1 / sqrt(p)`; where p is 0, the second is 0 (see `cosine`) and both derivatives are 0.

    A variance below the smallest normal number counts as zero: XLA flushes it to zero, and the square of its inverse
    root overflows.
    """
    absent = p < jnp.finfo(p.dtype).tiny
    root = jnp.sqrt(p)
    return root, jnp.where(absent, 0.0, 1.0 / jnp.where(absent, 1.0, root))


@half_powers.defjvp
def _(primals, tangents):
    root, inverse = half_powers(primals[0])
    slope = 0.5 * inverse * tangents[0]
    return (root, inverse), (slope, -slope * (inverse * inverse))


def cosine(k: Float[Array, "*k"], inverse_p: Float[Array, "*p"], inverse_q: Float[Array, "*q"]) -> Float[Array, "*k"]:
    """Return the cosine of the angle between two images, from the inverse square roots of their variances.

    A zero image is treated as the limit of a shrinking bias: its cosine is 0 with every other image, and 1 with itself
    and with every other zero image.
    """
    return jnp.where(inverse_p + inverse_q == 0.0, 1.0, to_unit(k * (inverse_p * inverse_q)))


def over_sine(x: Float[Array, "*n"], sine: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return `x / sine`, and 0 where the sine is 0."""
    return jnp.where(sine > 0.0, x / jnp.where(sine > 0.0, sine, 1.0), 0.0)


@jax.custom_jvp
def with_slope(value: Float[Array, "*k"], k: Float[Array, "*k"], slope: Float[Array, "*k"]) -> Float[Array, "*k"]:
    """Return `value`, with `slope` added to its derivative by `k`."""
    del k, slope
    return value


@with_slope.defjvp
def _(primals, tangents):
    return primals[0], tangents[0] + primals[2] * tangents[1]


def by_price(
    value: Float[Array, "*k"],
    k: Float[Array, "*k"],
    derivative: Float[Array, "*k"],
    inverse_p: Float[Array, "*p"],
    inverse_q: Float[Array, "*q"],
) -> Float[Array, "*k"]:
    """Return `value`, a covariance computed from `cosine`, with the correct derivative by k at zero images.

    By Price's theorem, that derivative is `derivative`, E[phi' phi'].
    """
    absent = (inverse_p == 0.0) | (inverse_q == 0.0)
    return with_slope(value, k, jnp.where(absent, derivative, 0.0))
