"""Arithmetic and memory of pairs: counts that can be made by hand, and what no architecture may change."""

from __future__ import annotations

import pytest

from ntkpipe.kernels import cost
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import input_cost, kernel_cost, layer_costs
from ntkpipe.kernels.parameters import ACTIVATIONS, LAYERS
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.kernels.zoo import FAMILIES, cnn_gap, cnn_vec, fcn

CONV = {"op": "conv", "features": 8, "filter": [3, 3]}
NEEDED = {
    "leaky_relu": {"alpha": 0.1},
    "ab_relu": {"a": 0.1, "b": 1.0},
    "elementwise": {"function": "x"},
    **{key: {"degree": 2} for key in ("monomial", "rectified_monomial", "hermite")},
}


def costs(layers, shape):
    spec = canonical_spec(layers)
    steps = Architecture.from_spec(spec).steps(shape)
    return kernel_cost(spec, steps), layer_costs(spec, steps), input_cost(spec, steps)


def test_fully_connected():
    whole, _, _ = costs(fcn(3), (32, 32, 3))
    assert (whole.product_flops, whole.elementwise_flops) == (2 * 3072, 3 * 35 + 4 * 4)
    assert whole.flops_per_pair == 2 * 3072 + 3 * 35 + 4 * 4
    assert (whole.entries, whole.inputs) == (2, 3072)
    assert whole == costs(fcn(3), (3072,))[0]


def test_convolutions_by_hand():
    """A 4 x 4 image, all 256 covariances; K alone before the first weights, K and T after."""
    whole, layers, first = costs([CONV, {"op": "relu"}, CONV, {"op": "global_avg_pool"}], (4, 4, 2))
    assert first.flops == 2 * 2 * 256
    # Of each axis two additions and a mask; then the scale. T begins as K: nothing is added.
    assert layers[0].flops == 256 * (3 + 3 + 1)
    assert layers[1].flops == 256 * 35
    assert layers[2].flops == 2 * 256 * (3 + 3 + 1) + 256
    assert layers[3].flops == 2 * 256
    assert whole.flops_per_pair == first.flops + sum(c.flops for c in layers)
    assert (whole.entries, whole.seen) == (512, 2 * 16)


def test_pooling_costs_every_pair_of_pixels_and_flattening_only_equal_ones():
    gap, vec = costs(cnn_gap(3), (16, 16, 3))[0], costs(cnn_vec(3), (16, 16, 3))[0]
    assert gap.flops_per_pair / vec.flops_per_pair == pytest.approx(256, rel=0.02)
    assert (gap.entries, vec.entries) == (2 * 256**2, 2 * 256)


def test_windows_side_by_side_see_every_covariance_once():
    def pool(strides):
        window = {"op": "avg_pool", "window": [2, 2], "strides": strides, "padding": "SAME"}
        return costs([CONV, window, {"op": "global_avg_pool"}], (4, 4, 2))[1][1].flops

    assert pool([2, 2]) == 2 * ((256 + 64) + (64 + 16))
    assert pool([1, 1]) == 2 * (256 * (4 + 1) * 2)


def test_attention_multiplies_matrices_of_pixels():
    attend = {"op": "global_self_attention", "n_heads": 1, "n_chan_out": 8, "n_chan_key": 8, "n_chan_val": 8}
    whole, layers, _ = costs([CONV, attend, {"op": "global_avg_pool"}], (4, 4, 2))
    assert layers[1].product_flops == 2 * 2 * (2 * 16**3)
    assert whole.seen == 16 * 16


def test_sums_cost_their_branches_and_the_addition():
    branch = [{"op": "relu"}, CONV]
    plain = costs([CONV, *branch, {"op": "global_avg_pool"}], (4, 4, 2))[1]
    layers = costs([CONV, {"op": "residual_sum", "branches": [branch, []]}, {"op": "global_avg_pool"}], (4, 4, 2))[1]
    assert [c.flops for c in layers[1].branches[0]] == [c.flops for c in plain[1:3]]
    assert layers[1].branches[1] == ()
    assert layers[1].flops == sum(c.flops for c in plain[1:3]) + 2 * 256
    assert layers[1].entries > plain[1].entries


def test_layers_that_change_sizes_by_hand():
    """Of 4 x 4 pixels: a local convolution sums its taps for equal pixels alone, a transposed one for all pairs of its 8 x 8."""
    local = costs([CONV | {"op": "conv_local"}, {"op": "global_avg_pool"}], (4, 4, 2))
    assert local[0].input_entries == 16
    assert local[1][0].flops == 16 * (3 + 3 + 1)
    transposed = costs([CONV | {"op": "conv_transpose", "strides": [2, 2]}, {"op": "global_avg_pool"}], (4, 4, 2))[1][0]
    assert transposed.flops == 64 * 16 * 3 + 64**2 * (3 + 1)
    up = costs([CONV, {"op": "resize", "shape": [8, 8]}, {"op": "global_avg_pool"}], (4, 4, 2))[1][1]
    assert up.flops == 2 * 2 * 4 * (64 * 16 + 64**2)
    nearest = [CONV, {"op": "resize", "shape": [2, 2], "method": "nearest"}, {"op": "flatten"}]
    assert costs(nearest, (4, 4, 2))[1][1].flops == 2 * 2 * (2 * 4 + 4)


@pytest.mark.parametrize(("op", "each"), [("fan_in_concat", 4), ("fan_in_product", 4)])
def test_other_joins_cost_their_branches_and_what_becomes_of_them(op, each):
    branch = [{"op": "relu"}, CONV]
    plain = costs([CONV, *branch, {"op": "global_avg_pool"}], (4, 4, 2))[1]
    layers = costs([CONV, {"op": op, "branches": [branch, [], branch]}, {"op": "global_avg_pool"}], (4, 4, 2))[1]
    assert layers[1].flops == 2 * sum(c.flops for c in plain[1:3]) + 2 * each * 256


@pytest.mark.parametrize("op", [op for op in ACTIVATIONS if op != "identity"])
def test_every_nonlinearity_has_a_cost(op):
    layers = [{"op": "flatten"}, {"op": "dense", "features": 4}, {"op": op} | NEEDED.get(op, {})]
    whole, made, _ = costs(layers, (2, 2, 1))
    assert made[2].flops >= 20
    assert whole.seen >= 1


def test_no_cost_is_of_a_layer_that_does_not_exist():
    assert set(cost._ELEMENTWISE) <= set(LAYERS)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_cost(name):
    whole, layers, _ = costs(FAMILIES[name]((8, 8, 3)), (8, 8, 3))
    assert whole.flops_per_pair >= 2 * 8 * 8 * 3
    assert whole.entries >= 1
    assert all(c.flops >= 0 for c in layers)
    assert whole.inputs >= 8 * 8 * 3
