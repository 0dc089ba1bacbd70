"""The reference of `benchmarks/random_bounds.py`: kernels and predictions in extended precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact_kernels import exact, kernels
from exact_predictions import Dynamics, is_reached, matrix, predictions, spectrum
from flint import arb
from gaussian_integrals import moments

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import FAMILIES

NETWORKS = {
    "relu": ("fcn", (1, 1, 5), {}),
    "standard": ("fcn", (1, 1, 5), {"activation": "abs", "parameterization": "standard", "width": 7}),
    "leaky": ("fcn", (1, 1, 5), {"activation": "leaky_relu", "activation_args": {"alpha": 0.2}, "b_std": None}),
    "erf": ("fcn", (1, 1, 5), {"activation": "erf"}),
    "gelu": ("fcn", (1, 1, 5), {"activation": "gelu"}),
    "linear": ("linear", (1, 1, 5), {"b_std": 0.3}),
    "matern": ("matern", (1, 1, 5), {"nu": 2.5}),
    "images": ("cnn_vec", (4, 4, 2), {"depth": 2}),
    "pooled": ("cnn_gap", (4, 4, 1), {"depth": 1, "padding": "CIRCULAR", "parameterization": "standard"}),
    "residual": ("resnet", (4, 4, 1), {"blocks": 1, "pool": "vec"}),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_those_of_the_layers(name, rng):
    family, shape, settings = NETWORKS[name]
    layers = FAMILIES[family](shape, **settings)
    x = rng.normal(size=(5, *shape))
    pairs = np.array([(i, j) for i in range(5) for j in range(i + 1)])
    wanted = Architecture.from_spec(layers)(x)
    for found, theirs in zip(kernels(layers, x, pairs), (wanted.nngp, wanted.ntk), strict=True):
        np.testing.assert_allclose(found.astype(float), np.asarray(theirs)[tuple(pairs.T)], rtol=1e-12)


def test_near_copies_keep_their_digits():
    """The NTK of one ReLU layer at angle theta: `K' = 1 - theta^2 / 4 pi ...`, far below float64's last place."""
    layers = FAMILIES["fcn"]((1, 1, 2), depth=1, b_std=None)
    x = np.array([[1.0, 0.0], [1.0, 1e-12]]).reshape(2, 1, 1, 2)
    _, ntk = kernels(layers, x, np.array([[0, 0], [1, 1], [0, 1]]))
    theta = math.atan(1e-12)
    # 2 w^2 k (1 - theta / 2 pi) to first order; norms are equal to 1e-24.
    assert float(1 - ntk[2] / ntk[0]) == pytest.approx(theta / (2 * math.pi), rel=1e-9)


PHI = {
    "tanh": np.tanh,
    "swish": lambda x: x / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0))),
}


@pytest.mark.parametrize("layer", [{"op": "tanh"}, {"op": "swish", "beta": 1.0}, {"op": "elu", "alpha": 0.7}])
def test_integrals_are_those_of_finer_rules(layer):
    z = np.linspace(-12, 12, 2001)
    weights = np.exp(-z * z / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    for p, q, k in ((1.0, 2.0, 0.3), (3.0, 0.5, -1.1)):
        v = k / math.sqrt(p) * z[:, None] + math.sqrt(q - k * k / p) * z
        u = math.sqrt(p) * z
        phi = PHI[layer["op"]]
        found, _ = moments(layer, np.array([k]), np.array([p]), np.array([q]))
        # A kink costs the plain rule its accuracy.
        wanted = weights * phi(u) @ phi(v) @ weights
        assert found[0] == pytest.approx(wanted, rel=1e-4 if layer["op"] == "elu" else 1e-12)


def _spectra(rng):
    q, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    yield "graded", (q * np.geomspace(1, 1e-60, 24)) @ q.T
    yield "clustered", (q * np.repeat([1.0, 1e-9, 1e-30], 8)) @ q.T
    few = rng.integers(-5, 6, size=(24, 7)).astype(float)
    yield "deficient", few @ few.T


def test_spectra_of_all_kinds(rng):
    for name, floats in _spectra(rng):
        floats = np.tril(floats) + np.tril(floats, -1).T
        found = spectrum(exact(floats))
        made = found.vectors * matrix(np.diag(np.array(found.values, dtype=object))) * found.vectors.transpose()
        left = made - matrix(floats)
        assert max(abs(float(v)) for row in left.table() for v in row) < 1e-80, name
        assert sum(v == 0 for v in found.values) == (17 if name == "deficient" else 0)


def test_predictions_are_those_of_a_solve_and_of_small_steps(rng):
    floats = np.cov(rng.normal(size=(9, 30)))
    train, test = exact(floats[:7, :7]), exact(floats[7:, :7])
    y = rng.normal(size=(7, 2))
    found = spectrum(train)
    ridge = arb(0.125)
    flow = Dynamics("gradient_flow", 1.0, 0.9, 14)
    means = predictions(found, test, y, flow, [50.0, math.inf], [ridge])
    a = matrix(train + exact(np.eye(7)) * ridge)
    wanted = matrix(test) * a.solve(matrix(y))
    assert max(abs(float(wanted[i, j] - means[1, 0, i, j])) for i in range(2) for j in range(2)) < 1e-90
    steps = Dynamics("gradient_descent", 1e-3, 0.9, 14)
    np.testing.assert_allclose(
        predictions(found, test, y, steps, [50_000.0], [ridge])[0].astype(float), means[0].astype(float), rtol=1e-4
    )
    # Momentum from rest, step by step.
    heavy = Dynamics("momentum", 1.0, 0.9, 14)
    dual, speed, step = np.zeros((7, 2)), np.zeros((7, 2)), 1e-4
    shifted = floats[:7, :7] + 0.125 * np.eye(7)
    for _ in range(50_000):
        speed += step * ((y - shifted @ dual) / 14 - (1 - 0.9) * speed)
        dual += step * speed
    np.testing.assert_allclose(
        predictions(found, test, y, heavy, [5.0], [ridge])[0, 0].astype(float), floats[7:, :7] @ dual, rtol=1e-3
    )


def test_null_directions_count_where_test_points_see_them():
    x = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    found = spectrum(exact(x @ x.T))
    assert not is_reached(found, exact(np.array([[3.0, 0.0]]) @ x.T))
    assert is_reached(found, exact(np.array([[1.0, 2.0, -1.0]])))
    # Copies with two labels: the mean of both is learnt.
    mean = predictions(
        found, exact(x @ x.T), np.array([[1.0], [2.0], [3.0]]), Dynamics("gradient_flow", 1, 0, 3), [math.inf], [arb(0)]
    )
    np.testing.assert_allclose(mean[0, 0, :, 0].astype(float), [4 / 3, 8 / 3, 4 / 3], rtol=1e-14)
