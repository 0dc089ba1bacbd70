"""Every family of networks is a JAX function of its images: jit, grad and vmap, in both precisions, also where images coincide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkpipe import zoo

CASES = {
    "fcn": {"depth": 2},
    "cnn_vec": {"depth": 1},
    "cnn_gap": {"depth": 1},
    "cntk": {"depth": 2, "pool": "lap", "pool_radius": 1},
    "myrtle5": {"image_shape": (4, 4, 1)},
    "resnet": {"blocks": 1},
    "wide_resnet": {"depth": 10},
    "attention": {"depth": 1},
    "rbf": {},
    "laplace": {},
    "matern": {},
    "linear": {},
}
# Seconds of compilation: left to make test-all. The layers that they add have gradients tested in test_gradients.py.
DEAR = ("cnn_vec", "cnn_gap", "cntk", "myrtle5", "resnet", "wide_resnet", "attention")
STEP = 1e-5


def blocks(dtype):
    """Two blocks of two rows, and two of two columns; in the second block a row coincides with a column."""
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((2, 2, 4, 4, 1)).astype(dtype) for _ in range(2))
    x[1, 1] = z[1, 0]
    return x, z


def evaluated(network, x, z):
    """Both kernels `(blocks, 2, n1, n2)`, and gradients of their sums by the rows, by one compiled function."""

    def sums(v, w):
        kernels = jnp.stack(network(v, w))
        return kernels.sum(axis=(1, 2)), kernels

    with jax.enable_x64(x.dtype == np.float64):
        slopes, kernels = jax.jit(jax.vmap(jax.jacrev(sums, has_aux=True)))(jnp.asarray(x), jnp.asarray(z))
    assert kernels.dtype == slopes.dtype == x.dtype
    return np.asarray(kernels), np.asarray(slopes)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEAR else []) for n in CASES])
def test_a_family_is_a_jax_function(name):
    network = getattr(zoo, name)(**CASES[name])
    x, z = blocks("float64")
    kernels, slopes = evaluated(network, x, z)
    for block in range(2):
        made = np.stack(network(x[block], z[block]))
        # Traced, the angle of images that coincide is the root of a rounding.
        np.testing.assert_allclose(kernels[block], made, rtol=1e-12 if block == 0 else 1e-7)
        for direction in np.random.default_rng(1).standard_normal((3, *x[block].shape)):
            ahead, behind = (
                np.stack(network(x[block] + sign * STEP * direction, z[block])).sum(axis=(1, 2)) for sign in (1, -1)
            )
            central = (ahead - behind) / (2 * STEP)
            scale = np.abs(made).sum(axis=(1, 2)) * np.sqrt(direction.size)
            along = (slopes[block] * direction).sum(axis=(1, 2, 3, 4))
            # At a kink a derivative is the mean of both one-sided ones, and these are off by the step.
            np.testing.assert_array_less(np.abs(along - central), (1e-8 if block == 0 else 1e-4) * scale)
    short, of_short = evaluated(network, *blocks("float32"))
    for made, exact in ((short, kernels), (of_short, slopes)):
        np.testing.assert_allclose(made[0], exact[0], rtol=0, atol=2e-6 * np.abs(exact[0]).max())
        np.testing.assert_allclose(made[1], exact[1], rtol=0, atol=2e-3 * np.abs(exact[1]).max())  # 3e-4 per layer
