"""Closed forms against integration, and against finite networks."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.registry import build_layer

SMOOTH = {
    "erf": (
        {"op": "erf", "a": 1.3, "b": 0.7, "c": 0.4},
        lambda x: 1.3 * erf(0.7 * x) + 0.4,
        lambda x: 1.3 * 0.7 * 2 / math.sqrt(math.pi) * np.exp(-((0.7 * x) ** 2)),
    ),
    "gelu": ({"op": "gelu"}, lambda x: x * norm.cdf(x), lambda x: norm.cdf(x) + x * norm.pdf(x)),
    "sin": (
        {"op": "sin", "a": 1.2, "b": 0.8, "c": 0.3},
        lambda x: 1.2 * np.sin(0.8 * x + 0.3),
        lambda x: 1.2 * 0.8 * np.cos(0.8 * x + 0.3),
    ),
    "sin_cosine": (
        {"op": "sin", "a": 1.0, "b": 1.0, "c": 2.0},
        lambda x: np.sin(x + 2.0),
        lambda x: np.cos(x + 2.0),
    ),
}
KINKED = {
    "relu": ({"op": "relu"}, lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "leaky_relu": (
        {"op": "leaky_relu", "alpha": 0.1},
        lambda x: np.where(x > 0, x, 0.1 * x),
        lambda x: np.where(x > 0, 1.0, 0.1),
    ),
    "ab_relu": (
        {"op": "ab_relu", "a": -0.5, "b": 1.2},
        lambda x: np.where(x > 0, 1.2 * x, -0.5 * x),
        lambda x: np.where(x > 0, 1.2, -0.5),
    ),
}
ALL = SMOOTH | KINKED | {"identity": ({"op": "identity"}, lambda x: x, np.ones_like)}

CASES = [(0.9, 1.7, 0.6), (0.9, 1.7, -1.1), (0.3, 0.3, 0.29), (1.5, 0.2, 0.0), (2.0, 2.0, -1.99), (0.01, 0.02, 0.005)]


def closed_form(layer, p, q, k):
    with jax.enable_x64(True):
        made = layer.pairs(np.array([[k]]), np.array([[p]]), np.array([[q]]))
        return tuple(float(v[0, 0]) for v in made)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("p", "q", "k"), CASES)
def test_smooth_closed_form_is_the_gaussian_integral(name, p, q, k):
    """Gauss-Hermite with 160 nodes an axis, whose error for these entire functions is far below 1e-10."""
    description, phi, derivative = SMOOTH[name]
    z, w = np.polynomial.hermite_e.hermegauss(160)
    w = w / w.sum()
    u = math.sqrt(p) * z[:, None]
    v = k / math.sqrt(p) * z[:, None] + math.sqrt(max(q - k * k / p, 0)) * z[None, :]
    expected = [np.einsum("i,j,ij->", w, w, f(u) * f(v)) for f in (phi, derivative)]
    np.testing.assert_allclose(closed_form(build_layer(description), p, q, k), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize(("p", "q", "k"), CASES)
def test_kinked_closed_form_is_the_gaussian_integral(name, p, q, k):
    """In polar coordinates the radius integrates exactly; the angle is a midpoint sum between the four kinks."""
    description, phi, derivative = KINKED[name]
    rho = math.acos(k / math.sqrt(p * q))
    kinks = np.sort(np.mod([np.pi / 2, -np.pi / 2, np.pi / 2 + rho, rho - np.pi / 2], 2 * np.pi))
    edges = np.concatenate([kinks, [kinks[0] + 2 * np.pi]])
    x, w = np.polynomial.legendre.leggauss(40)
    expected = np.zeros(2)
    for low, high in itertools.pairwise(edges):
        angle, weight = low + (high - low) * (x + 1) / 2, w * (high - low) / 2
        u, v = math.sqrt(p) * np.cos(angle), math.sqrt(q) * np.cos(angle - rho)
        # E[r^2] = 2 for the homogeneous function, E[1] = 1 for its derivative.
        expected += [
            (weight * phi(u) * phi(v)).sum() * 2 / (2 * np.pi),
            (weight * derivative(u) * derivative(v)).sum() / (2 * np.pi),
        ]
    np.testing.assert_allclose(closed_form(build_layer(description), p, q, k), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
@pytest.mark.parametrize("p", [1e-6, 0.3, 40.0, 1e4])
def test_single_images_are_the_limit_of_pairs(name, p):
    """A pair at cosine 1 - d has an angle of sqrt(2 d): the values differ by at most that, relatively."""
    layer = build_layer(ALL[name][0])
    with jax.enable_x64(True):
        same = [float(v[0]) for v in layer.same(np.array([p]))]
    d = 1e-14
    near = closed_form(layer, p, p, p * (1 - d))
    slope = 1 + ALL[name][0].get("b", 1.0) ** 2 * p
    np.testing.assert_allclose(near, same, rtol=2 * math.sqrt(2 * d * slope), atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_extreme_variances_stay_finite(name, dtype):
    values = np.array([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e15], dtype)
    layer = build_layer(ALL[name][0])
    with jax.enable_x64(dtype == "float64"):
        for cosine in (-1.0, 0.0, 1.0):
            k = (cosine * np.sqrt(values)[:, None] * np.sqrt(values)[None, :]).astype(dtype)
            for made in layer.pairs(k, values[:, None], values[None, :]):
                assert np.isfinite(np.asarray(made)).all()


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("name", ALL)
def test_finite_networks_converge_to_the_kernels(name, parameterization):
    """Two hidden layers of width n, averaged over m draws: the error is that of a mean, plus a bias of order 1/n.

    With the standard error s of the mean estimated from the draws, 5 s + 5 / n of the kernel's scale bounds all
    3 x 2 entries (5 s is exceeded by chance once in 10^6).
    """
    description, phi, derivative = ALL[name]
    width, draws, inputs = 384, 48, 5
    w_std, b_std = 1.2, 0.3
    dense = {"op": "dense", "w_std": w_std, "b_std": b_std, "parameterization": parameterization}
    spec = [dense | {"features": width}, description, dense | {"features": width}, description, dense | {"features": 1}]
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, inputs))
    exact = Architecture.from_spec(spec)(x)
    pairs = ((0, 0), (0, 1), (1, 1))
    samples = {"nngp": [], "ntk": []}
    for _ in range(draws):
        pre, post, weights = [], [x.T], []
        for fan_in, fan_out in ((inputs, width), (width, width), (width, 1)):
            weights.append(rng.standard_normal((fan_out, fan_in)) * w_std / math.sqrt(fan_in))
            bias = rng.standard_normal((fan_out, 1)) * b_std
            pre.append(weights[-1] @ post[-1] + bias)
            post.append(phi(pre[-1]))
        # The NNGP kernel given the hidden layers: the readout is integrated over exactly.
        samples["nngp"].append([w_std**2 / width * post[2][:, i] @ post[2][:, j] + b_std**2 for i, j in pairs])
        gradient, ntk = np.ones((1, 2)), np.zeros(3)
        for layer in (2, 1, 0):
            fan_in = len(post[layer])
            w2, b2 = (w_std**2 / fan_in, b_std**2) if parameterization == "ntk" else (1.0, 1.0)
            for n, (i, j) in enumerate(pairs):
                ntk[n] += gradient[:, i] @ gradient[:, j] * (w2 * (post[layer][:, i] @ post[layer][:, j]) + b2)
            if layer:
                gradient = (weights[layer].T @ gradient) * derivative(pre[layer - 1])
        samples["ntk"].append(ntk)
    for kernel, values in samples.items():
        mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / math.sqrt(draws)
        expected = np.array([getattr(exact, kernel)[i, j] for i, j in pairs])
        assert (np.abs(mean - expected) <= 5 * error + 5 / width * np.abs(expected).max()).all(), kernel
