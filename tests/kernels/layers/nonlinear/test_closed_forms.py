"""Closed forms against integration, and against finite networks."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from scipy.special import erf, expit
from scipy.stats import norm

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.registry import build_layer as build_canonical
from ntkpipe.kernels.spec import canonical_spec

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
    "cos": (
        {"op": "cos", "a": 1.2, "b": 0.8, "c": 0.3},
        lambda x: 1.2 * np.cos(0.8 * x + 0.3),
        lambda x: -1.2 * 0.8 * np.sin(0.8 * x + 0.3),
    ),
    "rbf": (
        {"op": "rbf", "gamma": 0.4},
        lambda x: math.sqrt(2) * np.sin(math.sqrt(0.8) * x + math.pi / 4),
        lambda x: math.sqrt(1.6) * np.cos(math.sqrt(0.8) * x + math.pi / 4),
    ),
    "exp": ({"op": "exp", "a": 1.3, "b": 0.6}, lambda x: 1.3 * np.exp(0.6 * x), lambda x: 1.3 * 0.6 * np.exp(0.6 * x)),
    "gaussian": (
        {"op": "gaussian", "a": 1.3, "b": -0.7},
        lambda x: 1.3 * np.exp(-0.7 * x * x),
        lambda x: -1.3 * 1.4 * x * np.exp(-0.7 * x * x),
    ),
    "sigmoid_like": (
        {"op": "sigmoid_like"},
        lambda x: 0.5 * erf(x / 2.4020563531719796) + 0.5,
        lambda x: np.exp(-((x / 2.4020563531719796) ** 2)) / math.sqrt(math.pi) / 2.4020563531719796,
    ),
    "monomial_0": ({"op": "monomial", "degree": 0}, np.ones_like, np.zeros_like),
    "monomial_2": ({"op": "monomial", "degree": 2}, np.square, lambda x: 2 * x),
    "monomial_5": ({"op": "monomial", "degree": 5}, lambda x: x**5, lambda x: 5 * x**4),
    "hermite_2": ({"op": "hermite", "degree": 2}, lambda x: (x**2 - 1) / math.sqrt(2), lambda x: math.sqrt(2) * x),
    "hermite_5": (
        {"op": "hermite", "degree": 5},
        lambda x: (x**5 - 10 * x**3 + 15 * x) / math.sqrt(120),
        lambda x: 5 * (x**4 - 6 * x**2 + 3) / math.sqrt(120),
    ),
    "swish": (
        {"op": "swish"},
        lambda x: x * expit(x),
        lambda x: expit(x) * (1 + x * expit(-x)),
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
    "abs": ({"op": "abs"}, np.abs, np.sign),
    "sign": ({"op": "sign"}, np.sign, np.zeros_like),
    "step": ({"op": "rectified_monomial", "degree": 0}, lambda x: 1.0 * (x > 0), np.zeros_like),
    "rectified_1": ({"op": "rectified_monomial", "degree": 1}, lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "rectified_2": (
        {"op": "rectified_monomial", "degree": 2},
        lambda x: np.maximum(x, 0) ** 2,
        lambda x: 2 * np.maximum(x, 0),
    ),
    "rectified_5": (
        {"op": "rectified_monomial", "degree": 5},
        lambda x: np.maximum(x, 0) ** 5,
        lambda x: 5 * np.maximum(x, 0) ** 4,
    ),
}
# Of the functions on either side of zero; one less for their derivatives.
HOMOGENEITY = {"sign": 0, "step": 0, "rectified_2": 2, "rectified_5": 5}
ALL = SMOOTH | KINKED | {"identity": ({"op": "identity"}, lambda x: x, np.ones_like)}
# A short series has all properties of a long one but its accuracy, and is compiled in a fifth of the time.
ALL["swish"] = ({"op": "swish", "degree": 12}, *SMOOTH["swish"][1:])

# Every variance of the rows with every one of the columns; each row has its cosine. All functions meet the same shapes, for which
# the operations of one are compiled for all.
P = np.array([0.9, 0.9, 0.3, 1.5, 2.0, 0.01])[:, None]
Q = np.array([1.7, 1.7, 0.3, 0.2, 2.0, 0.02])[None, :]
COSINES = np.array([0.485, -0.889, 0.967, 0.0, -0.995, 0.354])[:, None]
K = COSINES * np.sqrt(P * Q)


NONLINEAR = [name for name in ALL if name != "identity"]


def build_layer(description):
    return build_canonical(canonical_spec([description])[0])


def closed_form(layer, k, p, q):
    with jax.enable_x64(True):
        return tuple(np.asarray(made) for made in layer.pairs(k, p, q))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_closed_form_is_the_gaussian_integral(name):
    """Gauss-Hermite with 160 nodes an axis, whose error for these entire functions is far below 1e-10."""
    description, phi, derivative = SMOOTH[name]
    z, w = np.polynomial.hermite_e.hermegauss(160)
    w = w / w.sum()
    made = closed_form(build_layer(description), K, P, Q)
    for (i, j), k in np.ndenumerate(K):
        p, q = P[i, 0], Q[0, j]
        u = math.sqrt(p) * z[:, None]
        v = k / math.sqrt(p) * z[:, None] + math.sqrt(max(q - k * k / p, 0)) * z[None, :]
        for f, value in zip((phi, derivative), made, strict=True):
            np.testing.assert_allclose(value[i, j], w @ (f(u) * f(v)) @ w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", KINKED)
def test_kinked_closed_form_is_the_gaussian_integral(name):
    """In polar coordinates the radius integrates exactly; the angle is a midpoint sum between the four kinks."""
    description, phi, derivative = KINKED[name]
    n = HOMOGENEITY.get(name, 1)
    x, w = np.polynomial.legendre.leggauss(40)
    expected = np.zeros((2, *K.shape))
    for (i, j), k in np.ndenumerate(K):
        p, q = P[i, 0], Q[0, j]
        rho = math.acos(k / math.sqrt(p * q))
        kinks = np.sort(np.mod([np.pi / 2, -np.pi / 2, np.pi / 2 + rho, rho - np.pi / 2], 2 * np.pi))
        for low, high in itertools.pairwise([*kinks, kinks[0] + 2 * np.pi]):
            angle, weight = low + (high - low) * (x + 1) / 2, w * (high - low) / 2
            u, v = math.sqrt(p) * np.cos(angle), math.sqrt(q) * np.cos(angle - rho)
            # E[r^2n] = 2^n n! for a function of homogeneity n.
            expected[0, i, j] += (weight * phi(u) * phi(v)).sum() * 2**n * math.factorial(n) / (2 * np.pi)
            slopes = (weight * derivative(u) * derivative(v)).sum()
            expected[1, i, j] += slopes * 2 ** (n - 1) * math.factorial(max(n - 1, 0)) / (2 * np.pi)
    # The rounding of the angle counts relative to the variances: K' vanishes with a power of pi minus the angle.
    layer = build_layer(description)
    with jax.enable_x64(True):
        scale = [np.sqrt(np.asarray(a) * np.asarray(b)) for a, b in zip(layer.same(P), layer.same(Q), strict=True)]
    for made, wanted, size in zip(closed_form(layer, K, P, Q), expected, scale, strict=True):
        assert (np.abs(made - wanted) <= 1e-10 * np.abs(wanted) + 40 * np.finfo(np.float64).eps * size).all()


# Where the moments themselves leave the range of float32: exp(2 b^2 p), p^5.
LARGEST = {"exp": 40.0, "monomial_5": 1e6, "hermite_5": 1e6, "rectified_5": 1e6, "monomial_2": 1e15, "hermite_2": 1e15}


@pytest.mark.parametrize("name", NONLINEAR)
def test_single_images_are_the_limit_of_pairs(name):
    """A pair at cosine 1 - d has an angle of sqrt(2 d): the values differ by at most that, relatively."""
    layer, p = build_layer(ALL[name][0]), np.minimum([1e-6, 0.3, 40.0, 1e4], LARGEST.get(name, math.inf))
    with jax.enable_x64(True):
        same = layer.same(p)
    d = 1e-14
    slope = 1 + ALL[name][0].get("b", 1.0) ** 2 * p
    for near, own in zip(closed_form(layer, p * (1 - d), p, p), map(np.asarray, same), strict=True):
        assert (np.abs(near - own) <= 2 * np.sqrt(2 * d * slope) * np.abs(own) + 1e-14).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_extreme_variances_stay_finite(name, dtype):
    values = np.array([0.0, 1e-40, 1e-30, 1e-6, 1.0, 40.0, 1e6, 1e15])
    values = np.minimum(values, LARGEST.get(name, math.inf)).astype(dtype)
    layer, roots = build_layer(ALL[name][0]), np.sqrt(values)
    k = np.array([-1.0, 0.0, 1.0], dtype)[:, None, None] * roots[:, None] * roots[None, :]
    with jax.enable_x64(dtype == "float64"):
        for made in (*layer.same(values), *layer.pairs(k, values[:, None], values[None, :])):
            assert np.isfinite(np.asarray(made)).all()


def covariances(rows, cols, dtype, seed=0):
    """Covariances, and variances from 0.2 to 3, of random images."""
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((n, 6)) * rng.uniform(0.4, 1.5, (n, 1)) for n in (rows, cols))
    p, q = (x * x).mean(axis=1)[:, None], (y * y).mean(axis=1)[None, :]
    return tuple(a.astype(dtype) for a in (x @ y.T / 6, p, q))


@pytest.mark.parametrize("name", NONLINEAR)
def test_any_shape_either_order_and_both_precisions(name):
    """Three properties of one block, in one test because compiling takes longer than all of it.

    Exchanging the images changes no bit. Another shape sums the expansions' products in another order: the last bits only.
    In float32 errors are relative to the root of both images' own values, times what the function multiplies an input's
    rounding by: arguments are rounded to 2^-24 relative to sqrt(p q), which an angle's square root turns into 2^-12 next to
    cosine 1, but these cosines are below 0.99; the slope of x^5 in its argument, and of exp at variance 3, is below 30.
    """
    layer = build_layer(ALL[name][0])
    pairs = jax.jit(layer.pairs)
    k, p, q = covariances(21, 21, "float32")
    low = [np.asarray(v) for v in pairs(k, p, q)]
    swapped = [np.asarray(v).T for v in pairs(k.T.copy(), q.T.copy(), p.T.copy())]
    k, p, q = (a.astype(np.float64) for a in (k, p, q))
    shaped = k.reshape(1, 3, 7, 3, 7), p.reshape(1, 3, 7, 1, 1), np.broadcast_to(q, (3, 7, 21)).reshape(3, 7, 3, 7)
    with jax.enable_x64(True):
        high = [np.asarray(v) for v in pairs(k, p, q)]
        high_swapped = [np.asarray(v).T for v in pairs(k.T.copy(), q.T.copy(), p.T.copy())]
        # Not compiled as one: its operations serve all functions.
        reshaped = [np.asarray(v) for v in layer.pairs(*shaped)]
        same = [np.asarray(v) for v in layer.same(shaped[1])]
        own = [[np.asarray(v) for v in layer.same(x)] for x in (p, q)]
    for index in range(2):
        assert low[index].dtype == np.float32
        assert high[index].dtype == np.float64
        assert (low[index] == swapped[index]).all()
        assert (high[index] == high_swapped[index]).all()
        assert reshaped[index].shape == (1, 3, 7, 3, 7)
        assert same[index].shape == (1, 3, 7, 1, 1)
        np.testing.assert_allclose(same[index].ravel(), own[0][index].ravel(), rtol=1e-13)
        scale = np.sqrt(own[0][index] * own[1][index])
        moved = np.abs(reshaped[index].reshape(21, 21) - high[index])
        assert (moved <= 1e-12 * np.abs(high[index]) + 40 * np.finfo(np.float64).eps * scale).all()
        assert (np.abs(low[index] - high[index]) <= 30 * 8 * 2.0**-24 * scale + 1e-30).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_exp_normalized(gamma):
    """Its definition, and its derivative by the covariance."""
    layer = build_layer({"op": "exp_normalized", "gamma": gamma, "shift": -0.8})
    formula = {"op": "elementwise", "nngp": f"sqrt(p * q) * exp({gamma} * (k / sqrt(p * q) - 0.8))"}
    k, p, q = covariances(5, 7, "float64")
    with jax.enable_x64(True):
        for made, expected in zip(layer.pairs(k, p, q), build_layer(formula).pairs(k, p, q), strict=True):
            np.testing.assert_allclose(made, expected, rtol=1e-13)
        for made, expected in zip(layer.same(p), layer.pairs(p, p, p), strict=True):
            np.testing.assert_allclose(made, expected, rtol=1e-13)
        assert all(np.isfinite(np.asarray(made)).all() for made in layer.pairs(0 * k, 0 * p, q))


@pytest.mark.parametrize("degree", [0, 1, 3, 20])
def test_hermite_at_unit_variance_is_a_power(degree):
    layer, one = build_layer({"op": "hermite", "degree": degree}), np.ones(1)
    k = np.linspace(-1, 1, 11)
    with jax.enable_x64(True):
        nngp, dot = layer.pairs(k, one, one)
    np.testing.assert_allclose(nngp, k**degree, rtol=1e-14)
    np.testing.assert_allclose(dot, degree * k ** max(degree - 1, 0), rtol=1e-14)


# Twice in a row, a mean of 48 draws says nothing of their moments.
HEAVY_TAILED = ("exp", "monomial_5", "hermite_5", "rectified_5")


@pytest.mark.parametrize(
    ("name", "parameterization"),
    [(name, "ntk") for name in ALL if name not in HEAVY_TAILED] + [("relu", "standard"), ("erf", "standard")],
)
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
