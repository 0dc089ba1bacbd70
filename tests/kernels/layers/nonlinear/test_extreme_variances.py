"""Functions of shifted angles at variances from 1e-10 to 1e12, at all angles, against 60 digits; zero images and zero pixels."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from mpmath import mp, mpf

from ntkpipe import finite
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.parameters import ACTIVATIONS
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec

VARIANCES = [1e-10, 1e-3, 1.0, 1e4, 1e8, 1e12]
COSINES = [-1.0, -1 + 1e-12, -1 + 1e-6, -0.9, -0.2, 0.0, 0.3, 0.99, 1 - 1e-6, 1 - 1e-12, 1.0]


def erf_moments(k, p, q):
    root = mp.sqrt((1 + 2 * p) * (1 + 2 * q) - 4 * k * k)
    return 2 / mp.pi * mp.atan2(2 * k, root), 4 / mp.pi / root


def gelu_moments(k, p, q):
    n2 = (1 + p) * (1 + q)
    root = mp.sqrt(n2 - k * k)  # N cos
    half = mpf(1) / 4 + mp.atan2(k, root) / (2 * mp.pi)
    nngp = k * half + (k * k / (n2 * root) + p * q * root / n2) / (2 * mp.pi)
    return nngp, half + (1 / root**2 + (1 - p * q) / n2 + 1) * k / root / (2 * mp.pi)


def gaussian_moments(k, p, q):
    d = (1 + 2 * p) * (1 + 2 * q) - 4 * k * k
    return 1 / mp.sqrt(d), 4 * k / mp.sqrt(d) ** 3


MOMENTS = {"erf": erf_moments, "gelu": gelu_moments, "gaussian": gaussian_moments}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", MOMENTS)
def test_any_variance_and_angle(op, dtype):
    """As good as rounding allows: the error is that of a covariance off by some units in its last place.

    And some units of the root of both images' own values: in the derivatives' covariance of GELU terms of that size cancel.
    """
    moments, eps = MOMENTS[op], float(np.finfo(dtype).eps)
    p, q, c = (a.ravel().astype(dtype) for a in np.meshgrid(VARIANCES, VARIANCES, COSINES, indexing="ij"))
    k = (c.astype(float) * np.sqrt(p.astype(float) * q.astype(float))).astype(dtype)
    layer = build_layer(canonical_spec([{"op": op}])[0])
    with jax.enable_x64(dtype == "float64"):
        pairs, same = (np.asarray(m, np.float64) for m in jax.jit(layer.pairs)(k, p, q)), layer.same(p)
        pairs, same = list(pairs), [np.asarray(m, np.float64) for m in same]
    mp.dps = 60
    for i in range(len(k)):
        exact = [mpf(float(v[i])) for v in (k, p, q)]
        limit = mp.sqrt(exact[1] * exact[2])

        def at(covariance, exact=exact, limit=limit):
            return moments(max(-limit, min(limit, covariance)), *exact[1:])

        wanted, near = at(exact[0]), [at(exact[0] + sign * 6 * eps * limit) for sign in (1, -1)]
        own = [moments(v, v, v) for v in exact[1:]]
        for m in (0, 1):
            condition = max(abs(other[m] - wanted[m]) for other in near)
            allowed = condition + 8 * eps * mp.sqrt(own[0][m] * own[1][m])
            assert abs(mpf(float(pairs[m][i])) - wanted[m]) <= allowed, (p[i], q[i], c[i], m)
            assert abs(mpf(float(same[m][i])) - own[0][m]) <= 8 * eps * own[0][m]


PARAMETERS = {
    "leaky_relu": {"alpha": 0.1},
    "ab_relu": {"a": -0.5, "b": 1.2},
    "monomial": {"degree": 3},
    "rectified_monomial": {"degree": 0},
    "hermite": {"degree": 2},
    "elementwise": {"function": "step(x) + abs(x)", "degree": 12},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "layer", [{"op": op} | PARAMETERS.get(op, {}) for op in ACTIVATIONS], ids=lambda layer: layer["op"]
)
def test_a_zero_image_is_the_limit_of_a_shrinking_bias(layer, dtype):
    """With itself, with another zero image, and with any other image; in the parameterisation in which its NTK is not 0."""
    x = np.array([[0, 0, 0], [0, 0, 0], [1.0, -2, 0.5]], dtype)

    def kernels(b_std, x, z):
        dense = {"op": "dense", "features": 7, "w_std": 1.2, "parameterization": "standard"}
        made = Architecture.from_spec([dense | {"b_std": b_std}, layer, dense | {"b_std": 0.0}])(x, z)
        return np.array(made, np.float64)

    itself, copies = kernels(0.0, x, None), kernels(0.0, x, x.copy())
    limit = kernels(1e-9, x.astype("float64"), None)
    scale = np.abs(limit).max()
    tolerance = 1e-6 if dtype == "float32" else 1e-7  # an angle of 1e-8 is what rounding leaves of 0
    np.testing.assert_allclose(itself, limit, rtol=0, atol=tolerance * scale)
    zero = np.ix_([0, 1], [0, 1], [0, 1])
    np.testing.assert_allclose(copies[zero], itself[zero], rtol=0, atol=tolerance * scale)
    assert (itself[:, 0, 0] == itself[:, 1, 1]).all()
    np.testing.assert_allclose(copies[:, 0, 2], itself[:, 0, 2], rtol=0, atol=tolerance * scale)


# A gap after each pixel of a row.
GAPS = {
    "op": "conv_transpose",
    "features": 5,
    "filter": [1, 1],
    "strides": [1, 2],
    "padding": "SAME",
    "parameterization": "standard",
}
READOUT = [{"op": "relu"}, {"op": "global_avg_pool"}, {"op": "dense", "features": 1}]


def test_pixels_that_nothing_reaches_are_the_limit_of_a_shrinking_bias():
    """The gradient of the bias is 1. Between two gaps ReLU halves it; between a gap and a pixel it leaves a quarter."""
    x = np.array([[3.0, 4.0], [-4.0, 3.0]]).reshape(2, 1, 1, 2)

    def kernels(b_std):
        return Architecture.from_spec([GAPS | {"b_std": b_std}, *READOUT])(x)

    made, limit = kernels(0.0), kernels(1e-9)
    for name in ("nngp", "ntk"):
        np.testing.assert_allclose(getattr(made, name), getattr(limit, name), rtol=0, atol=1e-8 * made.ntk.max())
    # Pixels of both images: K = 25 / 2 of an image with itself, else 0; the fan-in is 2, so that T = 25 + 1, else 1.
    pixels = np.array([[26 / 2, 1 / 4], [1 / 4, 26 / 2]])
    np.testing.assert_allclose(made.ntk - made.nngp, (pixels + 1 / 2 + 2 * 1 / 4) / 4, rtol=1e-14)


def test_gaps_of_a_wide_network_with_small_biases():
    """The empirical NTK of one network: off by a few times 1 / sqrt(width)."""
    width = 4096
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 2))
    spec = [GAPS | {"features": width, "b_std": 1e-6}, *READOUT]
    weights = finite.init(spec, x.shape[1:], dtype=np.float64)
    _, found = finite.empirical_kernel(spec, weights, x, outputs="trace")
    expected = Architecture.from_spec([GAPS | {"b_std": 0.0}, *READOUT])(x).ntk
    assert np.abs(found - expected).max() <= 5 / np.sqrt(width) * expected.max()
