"""The angle between two images whose vectors are longer by one dimension, in which both are 1: that of erf, GELU and the Gaussian.

With `m = scale p / (1 + scale p)`, the share of the image itself in its longer vector, the sine of these functions' angle is
`scale k / sqrt((1 + scale p) (1 + scale q))`, and its cosine's square, `1 - sine^2`, is formed without that difference, which
large variances make a small one of large numbers.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.slopes import half_powers, to_unit
from ntkpipe.kernels.state import Array


def shifted(p: Float[Array, "*p"], scale: float) -> tuple[Array, ...]:
    """What pairs take of an image: `1 / sqrt(p)`, `r = 1 / (1 + scale p)`, and the root of the latter."""
    longer = 1.0 + scale * p
    return half_powers(p)[1], 1.0 / longer, 1.0 / jnp.sqrt(longer)


def sine_and_cosine2(
    k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], scale: float
) -> tuple[Float[Array, "*k"], Float[Array, "*k"]]:
    """The sine, and the cosine's square.

    `cos^2 = r + r' - r r' + (1 - r) (1 - r') (1 - c) (1 + c)` with c the cosine between the images themselves: terms that are
    not negative. So its error is that of c, some units in its last place, and no floor is needed at any variance.
    """
    c = to_unit(k * (p[0] * q[0]))
    of_images = ((1.0 - p[1]) * (1.0 - q[1])) * ((1.0 - c) * (1.0 + c))
    cosine2 = ((p[1] + q[1]) - p[1] * q[1]) + of_images
    return to_unit((scale * k) * (p[2] * q[2])), cosine2
