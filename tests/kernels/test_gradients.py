"""Kernels are differentiable by their images, also where two images coincide and at zero images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.parameters import ACTIVATIONS

PARAMETERS = {
    "leaky_relu": [{"alpha": 0.1}],
    "ab_relu": [{"a": -0.5, "b": 1.2}],
    "sin": [{"c": 0.3}, {}],
    "exp": [{"b": 0.4}],
    "monomial": [{"degree": 0}, {"degree": 2}, {"degree": 3}],
    "rectified_monomial": [{"degree": 0}, {"degree": 1}, {"degree": 2}, {"degree": 3}],
    "hermite": [{"degree": 2}, {"degree": 3}],
    "elementwise": [
        {"function": "x * tanh(softplus(x))"},
        {"function": "sign(x) + x", "degree": 12},
        {"nngp": "2 / pi * asin(2 * k / sqrt((1 + 2 * p) * (1 + 2 * q)))"},
    ],
    "elu": [{"alpha": 0.7}],
}
# Series of few terms: gradients are those of the sum, however long, and long ones take minutes to compile.
SERIES = ("tanh", "sigmoid", "swish", "softplus", "elu", "mish")
LAYERS = [
    {"op": op, **({"degree": 8} if op in SERIES or "function" in parameters else {}), **parameters}
    for op in ACTIVATIONS
    for parameters in PARAMETERS.get(op, [{}])
]


def dear(layer):
    """Whether `make test` leaves it to others of its kind."""
    return layer["op"] in SERIES[1:] or layer.get("function", "").startswith("sign")


def named(layer):
    return "-".join(map(str, layer.values()))


BASELINES = [
    {"op": "stationary", "kernel": "laplace"},
    {"op": "stationary", "kernel": "matern", "nu": 1.5, "length_scale": 0.7},
    {"op": "stationary", "kernel": "rbf"},
]
# Homogeneous near 0: without a bias they have a kink at a zero image, and no gradient there that central differences could
# tell: those of a sum of directions are not the sum of theirs.
KINKED = ("relu", "leaky_relu", "ab_relu", "abs", "sign", "exp_normalized", "elu")
# Steps of central differences. Rounding of an angle of that size is 1e-16 / STEP, its quotient by the step 1e-6.
STEP = 1e-5


def images():
    """Rows and columns, `(4, 5)` and `(3, 5)`: a row that is also a column, a zero row, and orthogonal pairs."""
    rng = np.random.default_rng(3)
    x, z = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    x[1], x[2] = z[2], 0
    z[0], x[3, 0] = [1.5, 0, 0, 0, 0], 0
    return x, z


def moved(x, up):
    """Every number of every row moved by a step up or down, `(rows, numbers, ...)`."""
    numbers = x[0].size
    steps = (STEP if up else -STEP) * np.eye(numbers).reshape(numbers, *x.shape[1:])
    return x[:, None] + steps


def differences(network, weights, x, z):
    """Both kernels of the rows, and by central differences the slopes of their weighted sums by the rows: `(2, *x.shape)`."""
    if z is not None:  # rows do not know of each other: all in one evaluation
        rows = np.concatenate([x, *(moved(x, up).reshape(-1, *x.shape[1:]) for up in (True, False))])
        made = [np.split(np.asarray(kernel), [len(x), (len(rows) + len(x)) // 2]) for kernel in network(rows, z)]
        slopes = [(high - low).reshape(len(x), -1, len(z)) / (2 * STEP) for _, high, low in made]
        sums = [np.einsum("rij,rj->ri", slope, weights).reshape(x.shape) for slope in slopes]
        return [kernel for kernel, _, _ in made], np.array(sums)
    made = np.zeros((2, *x.shape))
    for at in np.ndindex(x.shape):
        for sign in (1, -1):
            y = x.copy()
            y[at] += sign * STEP
            made[(slice(None), *at)] += [sign * (kernel * weights).sum() / (2 * STEP) for kernel in network(y)]
    return network(x), made


def has_kink(layer):
    if layer["op"] in ("elementwise", "rectified_monomial"):
        return "sign" in layer.get("function", "") or layer.get("degree", 2) < 2
    return layer["op"] in KINKED


def check(spec, x, z, smooth_rows, kinked_rows=(), *, forward=False):
    """Gradients of the weighted sums of both kernels against differences; of kinked rows, that they are finite.

    Where rows coincide, differences are off by their step, and by the rounding of small angles.
    """
    network = Architecture.from_spec(spec)
    weights = np.random.default_rng(4).uniform(0.5, 1.5, (len(x), len(x if z is None else z)))

    def totals(v):
        return jnp.stack([(kernel * weights).sum() for kernel in network(v, z)])

    with jax.enable_x64(True):
        made = jax.jit(jax.jacrev(totals))(x)
        kernels, expected = differences(network, weights, x, z)
        scale = np.abs(expected).max() + max(abs((kernel * weights).sum()) for kernel in kernels)
        assert np.isfinite(made).all()
        for rows, bound in ((smooth_rows, 2e-7), (sorted({*range(len(x))} - {*smooth_rows, *kinked_rows}), 3e-4)):
            np.testing.assert_allclose(made[:, rows], expected[:, rows], rtol=0, atol=bound * scale)
        if forward:
            direction = np.random.default_rng(5).standard_normal(x.shape)
            pushed = jax.jit(lambda v: jax.jvp(totals, (v,), (direction,))[1])(x)
            both = [(part * direction).sum() for part in made]
            np.testing.assert_allclose(pushed, both, rtol=0, atol=1e-7 * scale)
            pulled = jax.grad(lambda v: totals(v)[1])(jnp.asarray(x))  # not compiled as one
            np.testing.assert_allclose(pulled, made[1], rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize(
    "layer", [pytest.param(one, id=named(one), marks=[pytest.mark.slow] if dear(one) else []) for one in LAYERS]
)
def test_gradients_of_every_nonlinearity(layer):
    """Two hidden layers, one of a series; the first has no bias, so that a zero row has variance 0."""
    x, z = images()
    dense = {"op": "dense", "features": 7, "w_std": 1.1}
    spec = [dense, layer, dense | {"b_std": 0.1}, {"op": "erf"} if "degree" in layer else layer, dense]
    check(spec, x, z, [0, 3], [2] if has_kink(layer) else [], forward=layer["op"] in ("relu", "erf", "tanh"))


@pytest.mark.slow
def test_gradients_of_a_long_series():
    x, z = images()
    dense = {"op": "dense", "features": 7, "w_std": 1.1, "b_std": 0.1}
    check([dense, {"op": "tanh"}, dense], x, z, [0, 3])


@pytest.mark.parametrize("layer", BASELINES, ids=lambda layer: layer["kernel"])
def test_gradients_of_baselines(layer):
    x, z = images()
    check([layer], x, z, [0, 3])


@pytest.mark.parametrize("op", ["relu", "abs", "tanh", "erf", "gelu"])
def test_gradients_of_images_with_themselves(op):
    """The diagonal moves with its image; two rows coincide."""
    x, _ = images()
    x[3] = x[0]
    dense = {"op": "dense", "features": 7, "w_std": 1.1, "b_std": 0.2}
    layer = {"op": op} | ({"degree": 8} if op in SERIES else {})
    check([dense, layer, dense, layer, dense], x, None, [])


CONV = {"op": "conv", "features": 4, "filter": [3, 3], "w_std": 1.3, "b_std": 0.1}
READOUT = {"op": "dense", "features": 3, "w_std": 1.2, "b_std": 0.1}
SPATIAL = {
    "gap": [
        CONV,
        {"op": "relu"},
        CONV | {"strides": [2, 1]},
        {"op": "tanh", "degree": 8},
        {"op": "global_avg_pool"},
        READOUT,
    ],
    "flatten": [CONV, {"op": "abs"}, CONV | {"padding": "VALID"}, {"op": "erf"}, {"op": "flatten"}, READOUT],
    "attention": [
        CONV,
        {"op": "residual_sum", "branches": [[{"op": "gelu"}, CONV], []]},
        {"op": "layer_norm"},
        {"op": "global_self_attention", "n_heads": 1, "n_chan_out": 4, "n_chan_key": 4, "n_chan_val": 4},
        {"op": "avg_pool", "window": [2, 2]},
        {"op": "flatten"},
        READOUT,
    ],
    "weightless": [{"op": "flatten"}],
}


@pytest.mark.parametrize("name", SPATIAL)
def test_gradients_of_networks_on_images(name):
    """Also of images that coincide; and traced values are those of arrays."""
    rng = np.random.default_rng(6)
    x, z = rng.standard_normal((2, 3, 3, 2)), rng.standard_normal((2, 3, 3, 2))
    x[1] = z[0]
    check(SPATIAL[name], x, z, [0])
    if name != "attention":  # takes half a minute to compile, and adds no kind of layer
        check(SPATIAL[name], x[:1], None, [])
    network = Architecture.from_spec(SPATIAL[name])
    with jax.enable_x64(True):
        # Traced, images that coincide have an angle of the root of the rounding; of arrays they are found.
        for arguments, tolerance in (((x, z), 1e-7), ((x,), 1e-12), ((x[:1], z), 1e-12)):
            for traced, made in zip(jax.jit(network)(*arguments), network(*arguments), strict=True):
                np.testing.assert_allclose(traced, made, rtol=tolerance)
        for traced, made in zip(jax.jit(network.diagonal)(x), network.diagonal(x), strict=True):
            np.testing.assert_allclose(traced, made, rtol=1e-12)
