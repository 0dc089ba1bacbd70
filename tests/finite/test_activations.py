"""Activations of finite networks: their Gaussian moments are those of the kernels' layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import ACTIVATIONS

from ntkpipe.finite.activations import activation
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec


# The identity's kernel needs no moments.
@pytest.mark.parametrize("layer", [a for a in ACTIVATIONS if a["op"] != "identity"], ids=lambda layer: layer["op"])
def test_squares_of_values_and_slopes_have_the_kernel_s_mean(layer):
    """By the midpoint rule with 40,000 points on 10 standard deviations: a jump at 0 lies between two of them."""
    (canonical,) = canonical_spec([layer])
    variance = 0.7
    with precision_context(np.float64):
        z = jnp.asarray((np.arange(40_000) + 0.5) / 2_000 - 10)
        density = jnp.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / 2_000
        x = np.sqrt(variance) * z
        phi = activation(canonical)
        slopes = jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]
        made = [float(jnp.sum(density * values**2)) for values in (phi(x), slopes)]
        right = [float(value[0]) for value in build_layer(canonical).same(jnp.asarray([variance]))]
    np.testing.assert_allclose(made, right, rtol=1e-6, atol=1e-12)


def test_a_kink_has_slope_0_at_0():
    for op in ("relu", "abs"):
        (layer,) = canonical_spec([{"op": op}])
        assert jax.grad(activation(layer))(0.0) == 0.0
