"""The angle on which the kernels of erf, GELU and the Gaussian depend.

Its sine is `scale k / sqrt((1 + scale p) (1 + scale q))`, the cosine between the two images after a component of 1 is
appended to both. Its squared cosine is computed without the difference `1 - sine^2`, which cancels at large variances.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.slopes import half_powers, to_unit
from ntkpipe.kernels.state import Array


def shifted(p: Float[Array, "*p"], scale: float) -> tuple[Array, ...]:
    """Return what pairs need of an image: `1 / sqrt(p)`, `r = 1 / (1 + scale p)` and `sqrt(r)`."""
    longer = 1.0 + scale * p
    return half_powers(p)[1], 1.0 / longer, 1.0 / jnp.sqrt(longer)


def sine_and_cosine2(
    k: Float[Array, "*k"], p: tuple[Array, ...], q: tuple[Array, ...], scale: float
) -> tuple[Float[Array, "*k"], Float[Array, "*k"]]:
    """Return the sine and the squared cosine.

    `cos^2 = r + r' - r r' + (1 - r) (1 - r') (1 - c) (1 + c)`, where c is the cosine between the images. All terms are
    `>= 0`, so the error is that of c, a few units in the last place, and no lower bound is needed at any variance.
    """
    c = to_unit(k * (p[0] * q[0]))
    of_images = ((1.0 - p[1]) * (1.0 - q[1])) * ((1.0 - c) * (1.0 + c))
    cosine2 = ((p[1] + q[1]) - p[1] * q[1]) + of_images
    return to_unit((scale * k) * (p[2] * q[2])), cosine2
