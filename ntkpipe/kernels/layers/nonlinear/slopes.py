"""What automatic differentiation is told of functions that it would give infinite slopes, or none.

Kernels are differentiated by their images. At equal images angles have a kink: a slope of +1 to one side and -1 to the other,
of which the symmetric derivative is 0. So is that of the root of a variance at a zero image. At these places formulas would give
infinity times zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.state import Array


@jax.custom_jvp
def to_unit(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Clipped to [-1, 1], with slope 1 throughout: only rounding takes a cosine beyond."""
    return jnp.clip(x, -1.0, 1.0)


@to_unit.defjvp
def _(primals, tangents):
    return to_unit(primals[0]), tangents[0]


@jax.custom_jvp
def half_powers(p: Float[Array, "*p"]) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """`sqrt(p)` and `1 / sqrt(p)`, the latter 0 where p vanishes (see `cosine`), both of slope 0 there.

    A variance below the smallest normal number counts as zero: XLA flushes it, and its inverse root squared overflows.
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
    """The cosine of the angle between two images, from the inverse roots of their variances.

    A zero image is the limit of a shrinking bias, all that its activations are then: it has cosine 0 with every other
    image, and 1 with itself and with every other zero image.
    """
    return jnp.where(inverse_p + inverse_q == 0.0, 1.0, to_unit(k * (inverse_p * inverse_q)))


def over_sine(x: Float[Array, "*n"], sine: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`x / sine`, 0 where the sine vanishes."""
    return jnp.where(sine > 0.0, x / jnp.where(sine > 0.0, sine, 1.0), 0.0)


@jax.custom_jvp
def with_slope(value: Float[Array, "*k"], k: Float[Array, "*k"], slope: Float[Array, "*k"]) -> Float[Array, "*k"]:
    """`value`, whose derivative by `k` is larger by `slope` than what it was computed from says."""
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
    """A covariance that was computed from `cosine`, which at a zero image says nothing of its slope.

    By Price's theorem it is the derivatives' covariance.
    """
    absent = (inverse_p == 0.0) | (inverse_q == 0.0)
    return with_slope(value, k, jnp.where(absent, derivative, 0.0))
