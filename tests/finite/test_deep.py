"""Finite networks of many layers: isometry as predicted, and 10,000 layers that train."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import repeat

from ntkpipe import finite
from ntkpipe.finite.network import network
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.propagation.critical import critical_line
from ntkpipe.propagation.isometry import isometry
from ntkpipe.propagation.maps import activation_maps

TANH = {"op": "tanh"}


def at_variance(q):
    """Deviations of the critical tanh network whose variance stays at q."""
    made = activation_maps("tanh").squares(q)
    w2 = 1.0 / float(made.dot)
    return w2**0.5, float(np.sqrt(q - w2 * float(made.value)))


@pytest.mark.parametrize("initialiser", ["orthogonal", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_squared_singular_values_are_as_predicted(initialiser):
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
            weights = finite.init(spec, (width,), seed, initialiser=initialiser, dtype=np.float64)
            squares = np.linalg.svd(np.asarray(jacobian(jnp.asarray(x), weights)), compute_uv=False) ** 2
            means.append(squares.mean())
            variances.append(squares.var())
    right = predicted.variance_orthogonal if initialiser == "orthogonal" else predicted.variance_gaussian
    assert np.mean(means) == pytest.approx(predicted.mean, rel=0.1)
    assert np.mean(variances) == pytest.approx(right, rel=0.25)


@pytest.mark.slow
def test_a_convolutional_network_of_ten_thousand_layers_trains():
    """Delta-orthogonal and critical (arXiv:1806.05393), on images of 4 x 4."""
    w_std, b_std = at_variance(1e-4)
    weights_of = {"w_std": w_std, "b_std": b_std}
    conv = {"op": "conv", "features": 4, "filter": [3, 3], "padding": "CIRCULAR", **weights_of}
    spec = [conv, repeat(10_000, TANH, conv), {"op": "global_avg_pool"}, {"op": "dense", "features": 1}]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 4, 4, 1)).astype(np.float64)
    y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    made = network(spec, x.shape[1:])
    with precision_context(np.float64):
        weights = finite.init(spec, x.shape[1:], initialiser="delta_orthogonal", dtype=np.float64)

        @jax.jit
        def loss_and_gradient(weights):
            return jax.value_and_grad(lambda w: 0.5 * jnp.mean((made.forward(w, x)[0] - y) ** 2))(weights)

        losses = []
        for _ in range(8):
            loss, gradient = loss_and_gradient(weights)
            losses.append(float(loss))
            norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))))
            rate = 0.2 * float(loss) / norm**2
            weights = jax.tree.map(lambda w, g, rate=rate: w - rate * g, weights, gradient)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    assert critical_line(activation_maps("tanh")).is_point is False
