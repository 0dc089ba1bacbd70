"""Any architecture against the same kernels computed slowly, pixel pair by pixel pair, in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import evaluate
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from random_networks import networks

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.evaluation.blocks import BLOCK_BYTES

EPS = np.finfo(np.float64).eps
LARGE_BLOCKS, ONE_CLASS_AT_A_TIME = 128 << 10, 64
SIDE = 3


def check(network, seed, special, block_bytes):
    """Both kernels of a block of different images, and of one of images with themselves.

    Sums of positive terms, at most some hundred a layer, round by a few hundred eps. The NTK of a kinked function depends on
    the angle, whose error is that of the cosine divided by the sine: 1e-8 at most, where pixels of circular images agree.
    """
    spec, shape = network
    x = np.random.default_rng(seed).standard_normal((2, SIDE, *shape))
    if special == "zero image":
        x[0, 1] = 0
    elif special == "zero pixel" and shape[:2] != (1, 1):  # images that are zero altogether are one image
        x[:, :, 0, 0] = 0
    nngp, ntk, sine = evaluate(spec, x.reshape(-1, *shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCK_BYTES, "cpu", block_bytes)
        arch = Architecture.from_spec(spec)
        blocks = {"same": arch(x[0]), "others": arch(x[0], x[1])}
    angle = 100 * EPS / max(sine, 1e-8)
    for name, columns in (("same", slice(0, SIDE)), ("others", slice(SIDE, None))):
        for made, expected, bound in zip(blocks[name], (nngp, ntk), (1e-12, 1e-12 + angle), strict=True):
            block = expected[:SIDE, columns]
            assert np.abs(made - block).max() <= bound * np.abs(expected).max(), name


def conv(size, strides, padding="SAME", features=2, **settings):
    return {"op": "conv", "features": features, "filter": size, "strides": strides, "padding": padding} | settings


RELU, GLOBAL = {"op": "relu"}, [{"op": "global_avg_pool"}, {"op": "dense", "features": 1, "w_std": 1.2}]
# What random draws seldom meet: nested sums, of which one strides, below a pool with overlapping windows.
INNER = [RELU, conv([3, 3], [1, 1]), {"op": "residual_sum", "branches": [[], [RELU, conv([2, 3], [1, 1])]]}]
NESTED = [
    conv([3, 3], [1, 1], parameterization="standard", b_std=0.3),
    {"op": "residual_sum", "branches": [[*INNER, RELU, conv([3, 3], [2, 2])], [conv([1, 1], [2, 2])]]},
    {"op": "layer_norm", "axis": [1, 2, 3], "eps": 1e-3},
    RELU,
    {"op": "dropout", "rate": 0.7},
    {"op": "avg_pool", "window": [3, 2], "strides": [2, 1], "padding": "SAME", "normalize_edges": True},
    conv([2, 2], [1, 1], "CIRCULAR", b_std=0.1),
    RELU,
    *GLOBAL,
]
# Every layer between two that mix pixels, so that all classes of pairs are asked for.
NEW_SIZES = [
    conv([2, 3], [2, 1], op="conv_transpose", b_std=0.3),
    RELU,
    {"op": "resize", "shape": [5, 4]},
    conv([3, 2], [1, 2], op="conv_local", b_std=0.2, parameterization="standard"),
    RELU,
    {"op": "resize", "shape": [3, 3], "method": "nearest"},
    {"op": "resize", "shape": [2, -1]},
    conv([2, 2], [3, 2], "CIRCULAR", op="conv_transpose", parameterization="standard"),
    RELU,
    *GLOBAL,
]
JOINED = [
    conv([3, 3], [1, 1], b_std=0.1),
    {"op": "fan_in_concat", "branches": [[RELU], [RELU, conv([3, 3], [1, 1], features=5)], []]},
    conv([2, 2], [1, 1]),
    {"op": "fan_in_product", "branches": [[conv([3, 3], [1, 1]), RELU], [RELU, conv([1, 1], [1, 1])], []]},
    conv([3, 3], [2, 2]),
    RELU,
    *GLOBAL,
]
WEIGHTLESS_SUM_LAST = [
    conv([3, 3], [1, 1]),
    RELU,
    {"op": "residual_sum", "branches": [[conv([3, 3], [1, 1])], [conv([1, 1], [1, 1])]]},
    {"op": "flatten"},
]


SMALL = {
    "network": networks(),
    "seed": st.integers(0, 9),
    "special": st.sampled_from(("", "", "", "zero image", "zero pixel")),
    "block_bytes": st.sampled_from((LARGE_BLOCKS, ONE_CLASS_AT_A_TIME)),
}


@settings(max_examples=4, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(**SMALL)
@example((NESTED, (7, 6, 2)), 0, "", ONE_CLASS_AT_A_TIME)
@example((WEIGHTLESS_SUM_LAST, (3, 3, 1)), 0, "zero pixel", LARGE_BLOCKS)
def test_any_network(network, seed, special, block_bytes):
    check(network, seed, special, block_bytes)


@pytest.mark.parametrize("block_bytes", [LARGE_BLOCKS, ONE_CLASS_AT_A_TIME])
@pytest.mark.parametrize(("spec", "shape"), [(NEW_SIZES, (3, 2, 2)), (JOINED, (4, 4, 2))], ids=["sizes", "joined"])
def test_layers_that_are_seldom_drawn(spec, shape, block_bytes):
    check((spec, shape), 0, "", block_bytes)


@pytest.mark.slow
@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(**SMALL)
def test_ten_networks(network, seed, special, block_bytes):
    check(network, seed, special, block_bytes)


@pytest.mark.exhaustive
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    network=networks(longest=9),
    seed=st.integers(0, 999),
    special=st.sampled_from(("", "", "", "zero image", "zero pixel")),
    block_bytes=st.sampled_from((LARGE_BLOCKS, ONE_CLASS_AT_A_TIME)),
)
def test_many_networks(network, seed, special, block_bytes):
    check(network, seed, special, block_bytes)
