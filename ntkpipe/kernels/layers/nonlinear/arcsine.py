"""Inverse sine and cosine as rational functions. They compile to one loop over a tile; library calls cost 7 times more.

The rational approximations are those of FreeBSD's libm (e_asin.c and e_asinf.c, Sun Microsystems), whose error is below
1 unit in the last place; the float32 arc-cosine for the ReLU map is Abramowitz and Stegun 4.4.46.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.slopes import over_sine
from ntkpipe.kernels.state import Array

# arcsin(y) = y + y z P(z) / Q(z) with z = y^2 <= 1/4; coefficients from the constant term up.
_P64 = (
    1.66666666666666657415e-01,
    -3.25565818622400915405e-01,
    2.01212532134862925881e-01,
    -4.00555345006794114027e-02,
    7.91534994289814532176e-04,
    3.47933107596021167570e-05,
)
_Q64 = (
    1.0,
    -2.40339491173441421878e00,
    2.02094576023350569471e00,
    -6.88283971605453293030e-01,
    7.70381505559019352791e-02,
)
_P32 = (1.6666586697e-01, -4.2743422091e-02, -8.6563630030e-03)
_Q32 = (1.0, -7.0662963390e-01)

# arccos(y) = sqrt(1 - y) times this polynomial for 0 <= y <= 1. The absolute error is at most 2.2e-8: the published
# 2e-8
# plus the rounding of the first coefficient, at y = 0.
_AS_4_4_46 = (
    1.5707963050,
    -0.2145988016,
    0.0889789874,
    -0.0501743046,
    0.0308918810,
    -0.0170881256,
    0.0066700901,
    -0.0012624911,
)


def _polynomial(coefficients: tuple[float, ...], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _half_range(a: Float[Array, "*n"], b: Float[Array, "*n"]) -> tuple[Array, Array]:
    """Return `(a > 1/2, y + y z R(z))`, where y = a below 1/2 and y = sqrt((1 - a) / 2) above, given b = 1 - a."""
    upper = a > 0.5
    z = jnp.where(upper, 0.5 * b, a * a)
    y = jnp.where(upper, jnp.sqrt(0.5 * b), a)
    numerator, denominator = (_P64, _Q64) if a.dtype == jnp.float64 else (_P32, _Q32)
    return upper, y + y * (z * _polynomial(numerator, z) / _polynomial(denominator, z))


@jax.custom_jvp
def arcsin(x: Float[Array, "*n"], cosine2: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the inverse sine of `-1 <= x <= 1`, in radians, to 3 units in the last place.

    Args:
        x: sines.
        cosine2: `1 - x^2`, which the caller may know more accurately than x gives it. The derivative is set to 0 where
            `cosine2` is 0; the exact derivative is infinite there.
    """
    a = jnp.abs(x)
    upper, y = _half_range(a, cosine2 / (1.0 + a))
    return jnp.copysign(jnp.where(upper, 0.5 * math.pi - 2.0 * y, y), x)


@arcsin.defjvp
def _(primals, tangents):
    return arcsin(*primals), over_sine(tangents[0], jnp.sqrt(primals[1]))


@jax.custom_jvp
def angle_and_sine(c: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return the angle whose cosine is `c`, and the sine of that angle.

    Both are computed from `1 - |c|`, which is exact in floating point for |c| >= 1/2, so nothing cancels near the ends.
    The absolute error of the angle is 2 units in the last place of pi in float64, and 6e-7 in float32.

    Args:
        c: cosines, `-1 <= c <= 1`.

    Returns:
        Angles in radians, 0 to pi, and sines. Their derivatives are set to 0 at the ends, where the angle has a kink.
    """
    a = jnp.abs(c)
    b = 1.0 - a
    root = jnp.sqrt(b)
    if c.dtype == jnp.float64:
        upper, y = _half_range(a, b)
        acute = jnp.where(upper, 2.0 * y, 0.5 * math.pi - y)
    else:
        acute = root * _polynomial(_AS_4_4_46, a)
    return jnp.where(c < 0, math.pi - acute, acute), root * jnp.sqrt(1.0 + a)


@angle_and_sine.defjvp
def _(primals, tangents):
    angle, sine = angle_and_sine(primals[0])
    slope = over_sine(tangents[0], sine)
    return (angle, sine), (-slope, -primals[0] * slope)
