"""Flow of other losses in function space against networks of finite width that are trained on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkpipe import finite
from ntkpipe.dynamics.loss_flow import LossFlow
from ntkpipe.dynamics.losses import CrossEntropy
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.zoo import FAMILIES

N, OUTPUTS, STEPS, RATE = 8, 3, 1600, 0.5


def distance(width: int) -> float:
    """Of a network's outputs less those it starts from, trained by gradient descent, to the flow with its kernel at the start."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((N, 5)), rng.integers(OUTPUTS, size=N)
    y = np.eye(OUTPUTS)[labels]
    spec = FAMILIES["fcn"]((1, 1, 5), depth=1, width=width, activation="erf", w_std=1.5, b_std=0.1)
    spec[-1]["features"] = OUTPUTS
    with precision_context("float64"):
        given = finite.init(spec, (5,), seed=1, dtype="float64")
        inputs = jnp.asarray(x)

        def outputs(weights):
            (w1, b1), (w2, b2) = weights
            hidden = jax.lax.erf(1.5 * inputs @ w1 / np.sqrt(5) + 0.1 * b1)
            return 1.5 * hidden @ w2 / np.sqrt(width) + 0.1 * b2

        weights = jax.tree.map(jnp.asarray, given)
        start = outputs(weights)
        np.testing.assert_allclose(start, finite.apply(spec, given, x), rtol=1e-10)

        def loss(some):
            return -(y * jax.nn.log_softmax(outputs(some) - start)).sum() / (N * OUTPUTS)

        step = jax.jit(lambda some: jax.tree.map(lambda w, g: w - RATE * g, some, jax.grad(loss)(some)))
        for _ in range(STEPS):
            weights = step(weights)
        trained = np.asarray(outputs(weights) - start)
    kernel = finite.empirical_kernel(spec, given, x, outputs="full").ntk
    flat = np.asarray(kernel).transpose(0, 2, 1, 3).reshape(N * OUTPUTS, N * OUTPUTS)
    rho = 0.5 * np.linalg.eigvalsh(flat)[-1] * 1.01
    flow = LossFlow(lambda s: (flat @ s.ravel()).reshape(s.shape), CrossEntropy(), y, 0.0, rho, 1e-6)
    end = RATE * STEPS / (N * OUTPUTS)
    found = flow.advance(flow.start(), end, end).outputs
    return float(np.abs(trained - found).max() / np.abs(found).max())


@pytest.mark.slow
def test_wide_networks_follow_the_flow_of_cross_entropy_ever_closer():
    far, near = distance(64), distance(1024)
    assert near < 0.08
    assert far > 2 * near
