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
    """Deviations of the critical network whose variance stays at q."""
    made = activation_maps("tanh").squares(q)
    w2 = 1.0 / float(made.dot)
    return w2**0.5, float(np.sqrt(q - w2 * float(made.value)))


def spread_of_mean(q, depth, width, gaussian):
    """Standard deviation over networks of the mean squared singular value of critical tanh layers, to leading order in 1 / width.

    With means over the units of a layer instead of expectations, each layer multiplies the mean by 1 + e, e of variance `spread / width`.
    Gaussian weights also move the variance of activations, by d of variance `w^4 var(tanh^2) / width`; the layers after it carry d on,
    shrunk by V' each, and multiply the mean by `1 + (d log chi / d q) d`. Last, the squared norm of `W A` with Gaussian W varies by
    `2 tr (A A^T)^2 / width` given A, whose mean fourth singular value after l layers is `1 + l (1 + spread)`.
    """
    z, weight = np.polynomial.hermite_e.hermegauss(200)
    weight /= weight.sum()
    square = np.tanh(np.sqrt(q) * z) ** 2
    slope = (1 - square) ** 2
    mean, growth = weight @ slope, weight * (z * z - 1) / (2 * q)  # growth @ f is d E f / d q
    shrinks, chi = growth @ square / mean, growth @ slope / mean
    spread = weight @ slope**2 / mean**2 - 1
    if not gaussian:
        return np.sqrt(depth * spread / width)
    of_variance = (weight @ square**2 - (weight @ square) ** 2) / mean**2
    both = (weight @ (square * slope) / mean - weight @ square) / mean
    felt = chi * (1 - shrinks ** np.arange(depth)) / (1 - shrinks)
    units = np.sum(spread + 2 * felt * both + felt**2 * of_variance) / width
    return np.sqrt(units + 2 * np.sum(1 + np.arange(depth) * (1 + spread)) / width**2)


@pytest.mark.parametrize("initialiser", ["orthogonal", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_squared_singular_values_are_as_predicted(initialiser):
    """Of the Jacobian of 16 layers of 200: the mean within three of its standard errors; the variance relative to the mean's square."""
    depth, width, q = 16, 200, 1 / 16
    gaussian = initialiser == "gaussian"
    networks = 8 if gaussian else 4
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
        for seed in range(networks):
            weights = finite.init(spec, (width,), seed, initialiser=initialiser, dtype=np.float64)
            squares = np.linalg.svd(np.asarray(jacobian(jnp.asarray(x), weights)), compute_uv=False) ** 2
            means.append(squares.mean())
            variances.append(squares.var() / squares.mean() ** 2)
    error = spread_of_mean(q, depth, width, gaussian) / np.sqrt(networks)
    assert abs(np.mean(means) - predicted.mean) <= 3 * error
    right = predicted.variance_gaussian if gaussian else predicted.variance_orthogonal
    assert np.mean(variances) == pytest.approx(right, rel=0.25)
