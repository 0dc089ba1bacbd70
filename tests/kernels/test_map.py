"""Kernels of covariances instead of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import fcn

DENSE = {"op": "dense", "features": 3, "w_std": 1.3, "b_std": 0.2}
STACKS = {
    "relu": fcn(depth=3),
    "standard": fcn(depth=2, width=7, parameterization="standard"),
    "residual": [
        DENSE,
        {"op": "residual_sum", "branches": [[{"op": "erf"}, DENSE], []]},
        {"op": "layer_norm"},
        {"op": "gelu"},
        DENSE,
    ],
    "baseline": [{"op": "flatten"}, {"op": "stationary", "kernel": "matern", "nu": 1.5}],
}


def covariances(dtype="float64"):
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((4, 6)).astype(dtype), rng.standard_normal((3, 6)).astype(dtype)
    p, q = (np.mean(a * a, axis=1) for a in (x, z))
    return x, z, x @ z.T / x.dtype.type(6), p[:, None], q[None, :]


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_map_of_covariances_gives_the_kernels_of_images(name, dtype):
    network = Architecture.from_spec(STACKS[name])
    x, z, k, p, q = covariances(dtype)
    made = network.map(k, p, q, features=6)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for mine, kernel in zip(made, network(x, z), strict=True):
        assert isinstance(mine, np.ndarray)
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine, kernel, rtol=tolerance, atol=tolerance)
    for mine, kernel in zip(network.map(p[:, 0], features=6), network.diagonal(x), strict=True):
        np.testing.assert_allclose(mine, kernel, rtol=tolerance)


def test_a_map_continues_where_another_ended():
    """Two halves of a network in turn: the NTK goes through the second."""
    half = [DENSE, {"op": "relu"}]
    once, twice = Architecture.from_spec(half), Architecture.from_spec([*half, *half])
    _, _, k, p, q = covariances()
    first, rows, columns = once.map(k, p, q), once.map(p), once.map(q)
    made = once.map(first.nngp, rows.nngp, columns.nngp, ntk=first.ntk)
    for mine, kernel in zip(made, twice.map(k, p, q), strict=True):
        np.testing.assert_allclose(mine, kernel, rtol=1e-13)


def test_a_map_is_a_jax_function():
    network = Architecture.from_spec(fcn(depth=2, activation="tanh", activation_args={"degree": 8}))
    with jax.enable_x64(True):

        def ntk(c):
            return network.map(c, jnp.ones_like(c), jnp.ones_like(c)).ntk

        c = jnp.linspace(-0.9, 0.9, 7)
        np.testing.assert_allclose(jax.jit(ntk)(c), ntk(c), rtol=1e-14)
        np.testing.assert_allclose(jax.vmap(ntk)(c), ntk(c), rtol=1e-14)
        slope = jax.grad(lambda v: ntk(v).sum())(c)
        np.testing.assert_allclose(slope, (ntk(c + 1e-6) - ntk(c - 1e-6)) / 2e-6, rtol=1e-7)


def test_what_has_pixels_is_refused_by_name():
    conv = Architecture.from_spec([{"op": "conv", "features": 2, "filter": [3, 3]}, {"op": "flatten"}, DENSE])
    with pytest.raises(ConfigError, match=r"layer 0 \(conv\)"):
        conv.map(0.5, 1.0, 1.0)
    flat = Architecture.from_spec(fcn(depth=1))
    with pytest.raises(DataError, match="give p"):
        flat.map(0.5, q=1.0)
    with pytest.raises(DataError, match="float32 or float64"):
        flat.map(np.array([1, 2]))
