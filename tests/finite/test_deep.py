"""Finite networks of many layers: isometry as predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import repeat

from ntkpipe import finite
from ntkpipe.finite.network import network
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.propagation.isometry import isometry
from ntkpipe.propagation.maps import activation_maps

TANH = {"op": "tanh"}


def at_variance(q):
    """Deviations of the critical tanh network whose variance stays at q."""
    made = activation_maps("tanh").squares(q)
    w2 = 1.0 / float(made.dot)
    return w2**0.5, float(np.sqrt(q - w2 * float(made.value)))


def test_squared_singular_values_are_as_predicted():
    """Of the Jacobian of 16 layers of 200; off by the share of a few finite matrices, 1 / width and the start's own variance."""
    depth, width, q = 16, 200, 1 / 16
    w_std, b_std = at_variance(q)
    dense = {"op": "dense", "features": width, "w_std": w_std, "b_std": b_std}
    spec = [repeat(depth, TANH, dense)]
    predicted = isometry("tanh", w_std=w_std, q_star=q, depth=depth)
    x = np.random.default_rng(0).standard_normal(width)
    x *= np.sqrt(q * width / (x @ x))
    made = network(spec, (width,))
    means, variances = [], []
    with precision_context(np.float64):
        jacobian = jax.jit(jax.jacrev(lambda x, weights: made.forward(weights, x[None])[0][0]))
        for seed in range(4):
            weights = finite.init(spec, (width,), seed, initialiser="orthogonal", dtype=np.float64)
            squares = np.linalg.svd(np.asarray(jacobian(jnp.asarray(x), weights)), compute_uv=False) ** 2
            means.append(squares.mean())
            variances.append(squares.var())
    assert np.mean(means) == pytest.approx(predicted.mean, rel=0.1)
    assert np.mean(variances) == pytest.approx(predicted.variance_orthogonal, rel=0.25)
