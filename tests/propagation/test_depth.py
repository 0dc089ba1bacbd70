from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import fcn, resnet
from ntkpipe.propagation.block import block_map
from ntkpipe.propagation.convolution import averaging_modes, mode_depths
from ntkpipe.propagation.critical import critical_w_std
from ntkpipe.propagation.depth import depth_that_loses, depth_that_splits, depths
from ntkpipe.propagation.isometry import isometry
from ntkpipe.propagation.maps import activation_maps
from ntkpipe.propagation.network import plain_network, repeated_block
from ntkpipe.propagation.phase import phase
from ntkpipe.propagation.summary import summary, warnings_of_depth


@pytest.mark.parametrize("activation", ["tanh", "erf", "gelu"])
def test_curves_are_the_kernels_of_the_network(activation):
    w_std, b_std, c = 1.2, 0.3, 0.6
    made = phase(activation, w_std=w_std, b_std=b_std)
    curves = depths(activation_maps(activation), w_std, made.q_star, c, 8)
    # Images whose covariance after the first layer is that of the settled variance, at correlation c.
    size = (made.q_star - b_std**2) / w_std**2
    inner = (c * made.q_star - b_std**2) / w_std**2
    x = np.sqrt(2.0 * size) * np.array([[1.0, 0.0], [inner / size, math.sqrt(1 - (inner / size) ** 2)]])
    for depth in (0, 1, 4, 7):
        kernels = Architecture.from_spec(fcn(depth, w_std=w_std, b_std=b_std, activation=activation))(x)
        assert kernels.nngp[0, 0] == pytest.approx(made.q_star, rel=1e-10)
        assert kernels.nngp[0, 1] / made.q_star == pytest.approx(curves.correlation[depth], rel=1e-9)
        assert kernels.ntk[0, 0] == pytest.approx(curves.ntk[depth], rel=1e-9)
        assert kernels.ntk[0, 1] == pytest.approx(curves.ntk[depth] - curves.ntk_gap[depth], rel=1e-8)


def test_at_criticality_correlations_and_condition_numbers_are_the_known_powers():
    relu = depths(activation_maps("relu"), math.sqrt(2.0), 1.0, 0.5, 10_000)
    assert relu.ntk_ratio[-1] == pytest.approx(0.25047, abs=5e-5)
    assert relu.gap[-1] / (4.5 * math.pi**2 / 1e8) == pytest.approx(1.0, abs=0.005)
    maps = activation_maps("erf")
    w_std = critical_w_std(maps, 0.2)
    q = phase("erf", w_std=w_std, b_std=0.2).q_star
    smooth = depths(maps, w_std, q, 0.5, 10_000)
    assert smooth.ntk_ratio[-1] == pytest.approx(1 / 3, abs=6e-4)
    assert smooth.condition(100)[-1] == pytest.approx(102 / 2, rel=3e-3)
    assert relu.condition(100)[-1] == pytest.approx(103 / 3, rel=5e-3)
    # 1 - c ~ 2 / (w_std^2 q E phi''^2 l); of erf, phi'' = -2 x phi'.
    x = np.linspace(-12, 12, 4001)
    density = np.exp(-(x**2) / (2 * q)) / np.exp(-(x**2) / (2 * q)).sum()
    bend = float(density @ (4 * x / math.sqrt(math.pi) * np.exp(-(x**2))) ** 2)
    assert smooth.gap[-1] * 1e4 == pytest.approx(2 / (w_std**2 * q * bend), rel=5e-3)


def test_depths_that_precision_holds():
    assert depth_that_loses(10.0, "float32") == pytest.approx(166.4, abs=0.1)
    assert depth_that_splits(0.9, "float32") == math.inf
    # At chi_1 = 1.207 float32 was found wrong at 100 layers and float64 at 300, right at a few tens.
    assert 30 < depth_that_splits(1.207, "float32") < 100
    assert 100 < depth_that_splits(1.207, "float64") < 300
    with pytest.raises(ConfigError, match="correlation=2"):
        depths(activation_maps("erf"), 1.0, 1.0, 2.0, 3)
    with pytest.raises(ConfigError, match="set b_std above 0"):
        depths(activation_maps("erf"), 1.0, 0.0, 0.5, 3)


def test_modes_of_uniform_and_delta_filters():
    modes = averaging_modes((16, 8), (3, 3))
    k = np.arange(16)
    assert np.allclose(modes[:, 0], np.abs(1 + 2 * np.cos(2 * np.pi * k / 16)) / 3, atol=1e-15)
    assert np.allclose(modes, np.multiply.outer(modes[:, 0], modes[0]), atol=1e-15)
    scales = mode_depths(modes, 1.0)
    assert math.isinf(scales[0, 0])
    assert scales[1, 0] == pytest.approx(-1 / math.log((1 + 2 * math.cos(math.pi / 8)) / 3))
    assert np.all(averaging_modes((16, 8), (3, 3), "delta") == 1.0)
    # A cyclic matrix of the taps has these eigenvalues.
    row = np.zeros(16)
    row[[0, 1, -1]] = 1 / 3
    matrix = np.stack([np.roll(row, shift) for shift in range(16)])
    assert np.allclose(np.sort(np.abs(np.linalg.eigvalsh(matrix))), np.sort(modes[:, 0]), atol=1e-12)
    with pytest.raises(ConfigError, match="taps='all'"):
        averaging_modes((4,), (3,), "all")


def test_isometry_has_the_published_values():
    relu = isometry("relu", w_std=math.sqrt(2.0), q_star=1.0, depth=10)
    assert (relu.mean, relu.variance_orthogonal, relu.variance_gaussian) == pytest.approx((1.0, 10.0, 20.0), rel=1e-10)
    w_std = float(activation_maps("tanh").squares(1 / 64).dot) ** -0.5
    tanh = isometry("tanh", w_std=w_std, q_star=1 / 64, depth=64)
    assert tanh.variance_orthogonal == pytest.approx(0.1081, abs=5e-5)
    with pytest.raises(ConfigError, match="given only by its kernel"):
        isometry("exp_normalized", w_std=1.0, q_star=1.0, depth=3)


@pytest.mark.parametrize(("orthogonal", "activation"), [(False, "relu"), (True, "relu"), (False, "erf"), (True, "erf")])
def test_isometry_is_what_random_products_have(orthogonal, activation):
    rng, width, depth, networks = np.random.default_rng(1), 400, 4, 6
    w_std, q = (math.sqrt(2.0), 1.0) if activation == "relu" else (1.3, 0.7)
    slope = (lambda x: (x > 0) * 1.0) if activation == "relu" else (lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x))
    found = []
    for _ in range(networks):
        product = np.eye(width)
        for _ in range(depth):
            weights = rng.normal(size=(width, width)) / math.sqrt(width)
            if orthogonal:
                weights, r = np.linalg.qr(weights)
                weights = weights * np.sign(np.diag(r))
            product = slope(math.sqrt(q) * rng.normal(size=width))[:, None] * (w_std * weights @ product)
        values = np.linalg.svd(product, compute_uv=False) ** 2
        found.append((values.mean(), values.var()))
    mean, variance = np.mean(found, axis=0)
    made = isometry(activation, w_std=w_std, q_star=q, depth=depth)
    assert mean == pytest.approx(made.mean, rel=0.06)
    assert variance == pytest.approx(made.variance_orthogonal if orthogonal else made.variance_gaussian, rel=0.2)


def test_a_plain_block_has_the_slope_of_its_nonlinearity():
    spec = fcn(2, w_std=math.sqrt(1.5), b_std=math.sqrt(0.05), activation="tanh")
    made = block_map(spec, (2, 4), repetitions=60)
    expected = phase("tanh", w_std=math.sqrt(1.5), b_std=math.sqrt(0.05))
    assert made.variance[-1] == pytest.approx(expected.q_star, rel=1e-9)
    assert made.slope[-1] == pytest.approx(expected.chi_1, rel=1e-6)


def test_residual_blocks_forget_as_powers_of_depth():
    # ReLU, one layer of w_std beside the identity and a bias: q' = q (1 + w^2 / 2) + b^2, and the slope is 1 - b^2 / q'.
    branches = [[{"op": "relu"}, {"op": "dense", "features": 8, "w_std": 0.5, "b_std": 0.3}], []]
    spec = [{"op": "flatten"}, {"op": "dense", "features": 8}, {"op": "residual_sum", "branches": branches}]
    made = block_map(spec, (2, 3), repetitions=5, variance=2.0)
    q = 2.0
    for k in range(5):
        after = q * 1.125 + 0.09
        assert made.variance[k] == pytest.approx(q, rel=1e-14)
        assert made.gradient[k] == pytest.approx(1.125, rel=1e-7)
        assert made.slope[k] == pytest.approx(1.125 * q / after, rel=1e-7)
        q = after


def test_layer_norm_keeps_the_variance_of_a_block():
    spec = [{"op": "dense", "features": 4}, {"op": "relu"}, {"op": "dense", "features": 4, "w_std": 3.0, "b_std": 1.0}]
    made = block_map([*spec, {"op": "layer_norm"}], (1, 4), repetitions=4)
    assert np.allclose(made.variance, 1.0)
    assert np.allclose(made.slope, 4.5 / 5.5, rtol=1e-7)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ((0, 99), "0 <= first < end <="),
        ((6, 8), "must begin after a linear layer"),
        ((5, 6), "has no layer that acts"),
    ],
)
def test_blocks_that_are_refused(block, text):
    spec = [*resnet(), {"op": "relu"}]
    assert [layer["op"] for layer in spec][4:] == ["relu", "global_avg_pool", "dense", "relu"]
    with pytest.raises(ConfigError) as caught:
        block_map(spec, block)
    assert text in str(caught.value)


def test_dropout_is_refused():
    spec = [
        {"op": "dense", "features": 4},
        {"op": "relu"},
        {"op": "dropout", "rate": 0.9},
        {"op": "dense", "features": 4},
    ]
    with pytest.raises(ConfigError, match="makes equal inputs differ"):
        block_map(spec, (1, 4))


def test_depths_that_a_precision_cannot_hold_are_warned_of():
    def deep(depth, dtype):
        return warnings_of_depth(fcn(depth, activation="erf", w_std=2.5), dtype)

    assert deep(10, "float32") == []
    (text,) = deep(30, "float32")
    assert "from depth 19 on, float32 rounding" in text
    assert "kernel.dtype=float64" in text
    assert deep(30, "float64") == []
    (text,) = deep(100, "float64")
    assert "set fewer layers" in text


def test_repeated_layers_count_as_often_as_they_are_repeated():
    dense = {"op": "dense", "features": 8, "w_std": 1.2, "b_std": 0.2}
    short = [
        {"op": "flatten"},
        dense,
        {"op": "repeat", "times": 29, "layers": [{"op": "erf"}, dense]},
        {"op": "erf"},
        dense,
    ]
    plain = [{"op": "flatten"}, *[dense, {"op": "erf"}] * 30, dense]
    assert plain_network(short) == plain_network(plain)
    assert summary(short) == summary(plain)
    block = {"op": "residual_sum", "branches": [[{"op": "relu"}, dense], []]}
    deep = [dense, {"op": "repeat", "times": 50, "layers": [block]}, {"op": "relu"}, dense]
    assert repeated_block(deep) == (1, 2)
    made, right = block_map(deep, (1, 2), repetitions=5), block_map([dense, block, dense], (1, 2), repetitions=5)
    np.testing.assert_array_equal(made.slope, right.slope)
    twice = [dense, {"op": "repeat", "times": 2, "layers": [block]}, block, dense]
    longer = block_map(twice, (1, 3), repetitions=2)
    np.testing.assert_allclose(
        longer.variance[1], block_map([dense, block, block, block], (1, 4), repetitions=2).variance[1]
    )
