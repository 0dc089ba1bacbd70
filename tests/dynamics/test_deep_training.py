"""A finite convolutional network of 10,000 layers trains as predicted (compiled as users compile it, unlike tests of `finite`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import repeat

from ntkpipe import finite
from ntkpipe.finite.network import network
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.propagation.critical import critical_w_std
from ntkpipe.propagation.maps import activation_maps

# At a variance of 1e-4 a series of degree 8 is exact to rounding.
LAYERS = {"erf": {"op": "erf"}, "tanh": {"op": "tanh", "degree": 8}}


def at_variance(name, q):
    """Deviations of the critical network whose variance stays at q."""
    made = activation_maps(name).squares(q)
    w2 = 1.0 / float(made.dot)
    return w2**0.5, float(np.sqrt(q - w2 * float(made.value)))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYERS))
def test_ten_thousand_layers_train_as_predicted(name):
    """Delta-orthogonal and critical (arXiv:1806.05393), on images of 3 x 3, at a quarter of the largest stable rate of infinite width.

    The readout's deviation is 1 / sqrt(q), so that outputs are of order 1. The NTK then grows as the depth: the rate falls as 1 / depth.
    """
    depth, width, side, n = 10_000, 8, 3, 4
    w_std, b_std = at_variance(name, 1 / depth)
    assert critical_w_std(activation_maps(name), b_std) == pytest.approx(w_std, rel=1e-8)
    conv = {"op": "conv", "features": width, "filter": [3, 3], "padding": "CIRCULAR", "w_std": w_std, "b_std": b_std}
    first = float(np.sqrt(1 / depth - b_std**2))
    ends = [{"op": "global_avg_pool"}, {"op": "dense", "features": 1, "w_std": depth**0.5}]
    spec = [conv | {"w_std": first}, repeat(depth, LAYERS[name], conv), *ends]
    delta = conv | {"taps": "delta"}
    wide = Architecture.from_spec([delta | {"w_std": first}, repeat(depth, LAYERS[name], delta), *ends])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, side, side, 1)) + 2 * rng.standard_normal((n, 1, 1, 1))
    x /= np.sqrt(np.mean(x**2, axis=(1, 2, 3), keepdims=True))
    largest = np.linalg.eigvalsh(wide(x).ntk)[-1]
    assert 0.1 * depth < largest / n < 2 * depth
    rate = 0.25 * 2 * n / largest
    made = network(spec, x.shape[1:])
    y = np.sign(x.mean(axis=(1, 2, 3)))[:, None]
    with precision_context(np.float64):
        weights = finite.init(spec, x.shape[1:], initialiser="delta_orthogonal", dtype=np.float64)

        @jax.jit
        def outputs_and_gradient(weights, residuals):
            """The gradient of the outputs' inner product with residuals; with those of the outputs themselves if None are given."""
            out, back = jax.vjp(lambda w: made.forward(w, x)[0], weights)
            return out, back((out - y) / n if residuals is None else residuals)[0]

        rows = [
            jax.tree.leaves(outputs_and_gradient(weights, jnp.asarray(row)[:, None])[1]) for row in np.eye(n)
        ]  # of the Jacobian
        kernel = np.array([[sum(float(jnp.vdot(a, b)) for a, b in zip(r, s, strict=True)) for s in rows] for r in rows])
        losses, linearised, residuals = [], [], None
        for _ in range(5):
            out, gradient = outputs_and_gradient(weights, None)
            residuals = np.asarray(out) - y if residuals is None else residuals - rate / n * kernel @ residuals
            losses.append(0.5 * np.mean((np.asarray(out) - y) ** 2))
            linearised.append(0.5 * np.mean(residuals**2))
            weights = jax.tree.map(lambda w, g: w - rate * g, weights, gradient)
    assert linearised[-1] < 0.1 * linearised[0]
    np.testing.assert_allclose(losses, linearised, rtol=0, atol=0.05 * losses[0])
