"""Formulas as nonlinearities: the stated error of the expansion, and kernels by automatic differentiation."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from scipy.special import roots_hermitenorm

from ntkpipe.kernels.layers.nonlinear.elementwise import Elementwise, ElementwiseKernel
from ntkpipe.kernels.layers.nonlinear.piecewise import ABRelu
from ntkpipe.kernels.layers.nonlinear.sigmoidal import Erf
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec

EPS = np.finfo(np.float64).eps
COSINES = np.array([-1.0, -0.95, -0.4, 0.0, 0.3, 0.8, 0.99, 1.0])


def logistic(x):
    return 0.5 * (1 + np.tanh(x / 2))


SMOOTH = {
    "tanh(x)": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "x * sigmoid(2 * x)": (
        lambda x: x * logistic(2 * x),
        lambda x: logistic(2 * x) + 2 * x * logistic(2 * x) * logistic(-2 * x),
    ),
    "softplus(x) - 0.3 * x ** 2": (lambda x: np.logaddexp(0, x) - 0.3 * x**2, lambda x: logistic(x) - 0.6 * x),
    "cos(3 * x) + 0.2 * x": (lambda x: np.cos(3 * x) + 0.2 * x, lambda x: -3 * np.sin(3 * x) + 0.2),
}


def dense_integral(f, p, q, cosine):
    """E f(u) f(v) by 300 x 300 Gauss-Hermite nodes.

    Its error for tanh at variance 2, e^(-2 d sqrt(600 / 2)) with d the distance of the pole, is e^-38.
    """
    z, w = roots_hermitenorm(300)
    u = math.sqrt(p) * z[:, None]
    v = math.sqrt(q) * (cosine * z[:, None] + math.sqrt(1 - cosine**2) * z[None, :])
    return w @ (f(u) * f(v)) @ w / w.sum() ** 2


@pytest.mark.parametrize("degree", [5, 12, 24])
@pytest.mark.parametrize("formula", SMOOTH)
def test_error_bound_holds_for_smooth_functions(formula, degree):
    """Against dense integration in two variables, at every cosine; and the bound is of use: within 1e4 of the error."""
    layer = Elementwise(formula, degree, 160)
    for p, q in ((1.0, 1.0), (0.5, 2.0)):
        a, b = np.array([p]), np.array([q])
        with jax.enable_x64(True):
            made = layer.pairs(COSINES * math.sqrt(p * q), a, b)
            bounds = layer.error_bound(a, b)
        for value, bound, f in zip(made, bounds, SMOOTH[formula], strict=True):
            error = np.abs(np.asarray(value) - np.array([dense_integral(f, p, q, c) for c in COSINES]))
            rounding = 1000 * EPS * math.sqrt(dense_integral(f, p, p, 1.0) * dense_integral(f, q, q, 1.0))
            assert (error <= float(bound[0]) * np.abs(COSINES) ** (degree + 1) + rounding).all()
            assert float(bound[0]) <= 1e4 * error.max() + rounding


@pytest.mark.parametrize("degree", [9, 64])
@pytest.mark.parametrize(
    ("formula", "slopes"), [("abs(x)", (-1.0, 1.0)), ("relu(x)", (0.0, 1.0)), ("max(x, -x / 4)", (-0.25, 1.0))]
)
def test_error_bound_holds_for_kinked_functions(formula, slopes, degree):
    """Against closed forms, at all angles; how large it is at degree 64 is what the docstring says."""
    layer = Elementwise(formula, degree, 130)
    angle = np.linspace(0, np.pi, 401)
    cosine, a, b = np.cos(angle), *slopes
    p, q = np.array([0.7]), np.array([1.9])
    with jax.enable_x64(True):
        made, bounds = layer.pairs(cosine * np.sqrt(p * q), p, q), layer.error_bound(p, q)
    # The closed form at the angle itself: from a rounded cosine it would be off by 1e-8.
    dot = (a**2 + b**2) / 2 - (a - b) ** 2 / (2 * np.pi) * angle
    expected = np.sqrt(p * q) * ((a - b) ** 2 / (2 * np.pi) * np.sin(angle) + dot * cosine), dot
    for value, truth, bound, stated in zip(made, expected, bounds, (7e-4, 0.13), strict=True):
        error, scale = np.abs(np.asarray(value) - truth), np.abs(truth).max()
        assert (error <= float(bound[0]) * np.abs(cosine) ** (degree + 1) + 1000 * EPS * scale).all()
        assert error[0] <= 1000 * EPS * scale  # equal images are exact, whatever the function
        if degree == 64:
            assert float(bound[0]) <= stated * scale
            assert error.max() <= 0.3 * float(bound[0])
            assert error.max() >= 0.05 * float(bound[0])
            assert np.median(error) <= 1e-10 * scale


@pytest.mark.parametrize(
    ("op", "variance", "stated"),
    [
        ("swish", 1.0, (1e-14, 1e-14)),
        ("softplus", 1.0, (1e-14, 1e-14)),
        ("tanh", 1.0, (4e-10, 1.5e-8)),
        ("elu", 1.0, (3e-6, 3e-4)),
        ("tanh", 10.0, (6e-4, 2e-2)),
        ("swish", 10.0, (2e-7, 1.5e-5)),
    ],
)
def test_stated_bounds_of_the_defaults(op, variance, stated):
    layer = build_layer(canonical_spec([{"op": op}])[0])
    p = np.array([variance])
    with jax.enable_x64(True):
        for bound, same, limit in zip(layer.error_bound(p, p), layer.same(p), stated, strict=True):
            assert float(bound[0]) <= limit * float(same[0])


def test_odd_functions_stay_odd_and_kernels_positive():
    layer = Elementwise("tanh(3 * x)", 8, 40)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 5))
    k, p = x @ x.T / 5, (x * x).mean(axis=1)
    with jax.enable_x64(True):
        made = layer.pairs(k, p[:, None], p[None, :])
        flipped = layer.pairs(-k, p[:, None], p[None, :])
        same = layer.same(p)
    assert np.abs(np.asarray(made[0]) + np.asarray(flipped[0])).max() <= 100 * EPS
    for block, diagonal in zip(made, same, strict=True):
        np.testing.assert_allclose(np.diag(block), diagonal, rtol=1e-12)
        assert np.linalg.eigvalsh(np.asarray(block)).min() >= -30 * 100 * EPS * np.asarray(diagonal).max()


def test_vanishing_variance_is_the_limit():
    """phi(0)^2, and the mean of the squared slopes on both sides of 0."""
    layer, zero = Elementwise("abs(x) + 2 + x", 8, 40), np.zeros(1)
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            nngp, dot = layer.same(zero.astype(dtype))
            pair = layer.pairs(zero.astype(dtype), zero.astype(dtype), np.ones(1, dtype))
        np.testing.assert_allclose([nngp[0], dot[0]], [4, 2], rtol=20 * np.finfo(dtype).eps)
        # A zero image has cosine 0 with every other: the product of both means.
        np.testing.assert_allclose(
            [pair[0][0], pair[1][0]], [2 * (2 + math.sqrt(2 / math.pi)), 1], rtol=20 * np.finfo(dtype).eps
        )


def test_many_variances_are_expanded_in_batches(monkeypatch):
    layer = Elementwise("tanh(x)", 4, 12)
    p = np.linspace(0, 3, 200).reshape(10, 20)
    with jax.enable_x64(True):
        whole = layer.expand(p)
        monkeypatch.setattr("ntkpipe.kernels.layers.nonlinear.elementwise._BATCH", 64)
        parts = layer.expand(p)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)  # the root of a tail of 1e-15 is noise


RELU = "(sqrt(p * q - k ** 2) + (pi - acos(k / sqrt(p * q))) * k) / (2 * pi)"
ERF = "2 / pi * asin(2 * k / sqrt((1 + 2 * p) * (1 + 2 * q)))"


@pytest.mark.parametrize(("formula", "closed"), [(RELU, ABRelu(0.0, 1.0)), (ERF, Erf(1.0, 1.0, 0.0))])
def test_kernel_formulas_are_the_closed_forms(formula, closed):
    """Cancellation in the formula's derivative leaves the angle's error of sqrt(eps) near equal images at worst."""
    layer = ElementwiseKernel(formula)
    x = np.random.default_rng(2).standard_normal((20, 6))
    x[3] = 0
    k, p = x @ x.T / 6, (x * x).mean(axis=1)
    off = ~np.eye(20, dtype=bool)
    with jax.enable_x64(True):
        made, expected = (f.pairs(k, p[:, None], p[None, :]) for f in (layer, closed))
        same, own = layer.same(p), closed.same(p)
    for a, b, c, d in zip(made, expected, same, own, strict=True):
        assert np.isfinite(np.asarray(a)).all()
        np.testing.assert_allclose(np.asarray(a)[off], np.asarray(b)[off], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(c, d, rtol=1e-12, atol=1e-12)


def test_kernel_formulas_in_either_order_of_the_images():
    """Written asymmetrically in rounding, symmetric in bits."""
    layer = ElementwiseKernel("k * (1.1 * p / 3 + 1) * (1.1 * q / 3 + 1)")
    x = np.random.default_rng(3).standard_normal((25, 6)).astype("float32")
    k, p = x @ x.T, (x * x).sum(axis=1)
    k = np.tril(k) + np.tril(k, -1).T
    for made in jax.jit(layer.pairs)(k, p[:, None], p[None, :]):
        assert (np.asarray(made) == np.asarray(made).T).all()
