"""Convolutions whose central tap alone has weights: the kernels of delta-orthogonal networks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkpipe import finite
from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.planning.network import describe_kernel
from ntkpipe.propagation.network import plain_network

CONV = {"op": "conv", "features": 32, "filter": [3, 3], "w_std": 1.3, "b_std": 0.2}
DELTA = CONV | {"taps": "delta"}


def network(conv):
    return [conv, {"op": "erf"}, conv, {"op": "erf"}, {"op": "global_avg_pool"}, {"op": "dense", "features": 1}]


def images(n):
    return np.random.default_rng(n).standard_normal((n, 4, 4, 2))


def test_uniform_taps_go_without_saying():
    """Descriptions and their digests are what they were: stored kernels are found by them."""
    assert canonical_spec([CONV]) == canonical_spec([CONV | {"taps": "uniform"}])
    assert "taps" not in canonical_spec([CONV])[0]
    assert canonical_spec([DELTA])[0]["taps"] == "delta"
    assert Architecture.from_spec(network(DELTA)).fingerprint != Architecture.from_spec(network(CONV)).fingerprint


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_the_kernel_is_that_of_filters_with_one_tap(padding):
    x, z = images(3), images(2)
    made = Architecture.from_spec(network(DELTA | {"padding": padding}))(x, z)
    expected = Architecture.from_spec(network(CONV | {"filter": [1, 1]}))(x, z)
    for mine, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(mine, other)
    uniform = Architecture.from_spec(network(CONV | {"padding": padding}))(x, z)
    assert np.abs(made.nngp / uniform.nngp - 1.0).max() > 0.01


def test_networks_with_zeros_around_the_central_tap_have_this_kernel():
    """Random networks with whole 3 x 3 filters, zero but in the middle: the covariance of their pixels."""
    x, width, draws, rng = images(2), 64, 200, np.random.default_rng(0)
    total = np.zeros((2, 2))
    for _ in range(draws):
        h = jnp.asarray(x, jnp.float32)
        for _ in range(2):
            filters = np.zeros((3, 3, h.shape[-1], width), np.float32)
            filters[1, 1] = 1.3 / np.sqrt(h.shape[-1]) * rng.standard_normal((h.shape[-1], width))
            bias = 0.2 * rng.standard_normal(width).astype(np.float32)
            h = lax.conv_general_dilated(h, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
            h = lax.erf(h)
        pooled = np.asarray(h.mean(axis=(1, 2)))
        total += pooled @ pooled.T / width
    expected = Architecture.from_spec(network(DELTA))(x).nngp
    # Sampling, and a bias of order 1 / width: 2% here. That of uniform taps is 40% away.
    np.testing.assert_allclose(total / draws, expected, rtol=0, atol=0.04 * expected.max())
    uniform = Architecture.from_spec(network(CONV))(x).nngp
    assert np.abs(uniform - expected).max() > 0.1 * expected.max()


def test_finite_networks_agree():
    x = images(2)
    made = finite.monte_carlo_kernel(network(DELTA), 48, x, width_factor=4)
    exact = Architecture.from_spec(network(DELTA))(x)
    for name in ("nngp", "ntk"):
        right = getattr(exact, name)
        allowed = 5 * getattr(made, f"{name}_error") + 5 / 128 * np.abs(right).max()
        assert (np.abs(getattr(made, name) - right) <= allowed).all()


def test_plans_and_phases_know_of_it():
    assert "taps=delta" in describe_kernel(canonical_spec(network(DELTA)), (4, 4, 2), "float32")
    assert "taps" not in describe_kernel(canonical_spec(network(CONV)), (4, 4, 2), "float32")
    found = plain_network(canonical_spec([DELTA, {"op": "erf"}, DELTA, {"op": "flatten"}]))
    assert found is not None
    assert found.filters == ((1, 1),)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"strides": [2, 2]}, "needs a central tap"),
        ({"padding": "VALID"}, "needs a central tap"),
        ({"filter": [2, 3]}, "needs a central tap"),
        ({"parameterization": "standard"}, "needs parameterization=ntk"),
        ({"taps": "one"}, "is not one of uniform, delta"),
    ],
)
def test_what_is_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        canonical_spec([DELTA | changes])
