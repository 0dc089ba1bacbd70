"""Families: the lists that the peer's cases have, what their parameters do, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.kernels.zoo import (
    FAMILIES,
    attention,
    cnn_gap,
    cnn_vec,
    cntk,
    laplace,
    linear,
    matern,
    myrtle,
    rbf,
    resnet,
    wide_resnet,
)

HALVE = {"op": "avg_pool", "window": [2, 2], "strides": [2, 2], "padding": "VALID", "normalize_edges": False}


@pytest.fixture(scope="module")
def peer(reference_folder):
    cases = json.loads((reference_folder / "public.json").read_text())["cases"]
    return {case["name"]: case["arch"] for case in cases}


def ops(spec):
    return [layer["op"] for layer in spec]


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def evaluate(spec, x):
    return Architecture.from_spec(spec)(x, images(*x.shape, seed=1))


def assert_proportional(a, b, factor=None):
    for one, other in zip(a, b, strict=True):
        ratio = one / other
        assert ratio == pytest.approx(ratio.flat[0] if factor is None else factor, rel=1e-10)


def test_lists_of_the_peer(peer):
    assert myrtle(5, (8, 8, 3)) == peer["myrtle5_8x8"]
    assert myrtle(10, (8, 8, 3)) == peer["myrtle10_8x8"]
    assert myrtle(5, (32, 32, 3)) == peer["myrtle5_32x32"]
    assert cnn_vec(3) == peer["cnn3_same_flatten_relu"]
    assert cnn_gap(3) == peer["cnn3_same_gap_relu"]
    assert cnn_gap(3, padding="CIRCULAR", b_std=None) == peer["cnn3_circular_gap_relu"]
    assert cnn_vec(2, padding="VALID", w_std=1.3, b_std=0.2) == peer["cnn2_valid_flatten_relu"]
    assert wide_resnet(16)[:-2] == peer["wrn_small"][:-3]
    assert resnet(1)[:2] == peer["resnet_identity_gap"][:2]
    assert ops(attention()) == ops(peer["attn_softmax_gap"])


@pytest.mark.slow
def test_wide_resnet_is_the_peers_but_for_the_scale_of_the_readout(peer):
    """The peer pools by windows before it flattens, and has a readout of w_std = 1."""
    x = images(2, 8, 8, 3)
    assert_proportional(evaluate(wide_resnet(16), x), evaluate(peer["wrn_small"], x), 2.0)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_canonical_and_passes_images(name, shape):
    spec = FAMILIES[name](shape)
    assert canonical_spec(spec) == spec
    steps = Architecture.from_spec(spec).steps(shape)
    assert steps[-1].outgoing.spatial == ()


@pytest.mark.parametrize(("depth", "groups"), [(5, [2, 1, 1]), (7, [2, 2, 2]), (10, [3, 3, 3])])
def test_myrtle_networks_end_with_one_pixel(depth, groups):
    for size, pools in ((4, 2), (8, 3), (16, 4), (32, 5), (64, 6)):
        spec = myrtle(depth, (size, size, 3))
        assert ops(spec).count("avg_pool") == pools
        assert ops(spec).count("conv") == sum(groups) == depth - 1
        steps = Architecture.from_spec(spec).steps((size, size, 3))
        assert steps[-3].outgoing.spatial == (1, 1)
    assert ops(myrtle(depth, (28, 28, 1)))[-3:] == ["relu", "global_avg_pool", "dense"]
    assert ops(myrtle(depth, (8, 16, 1)))[-3:] == ["relu", "global_avg_pool", "dense"]


def test_further_halvings_are_the_mean_over_all_pixels():
    spec = myrtle(5, (8, 8, 2))
    assert spec[-3] == HALVE
    pooled = [*spec[:-3], {"op": "global_avg_pool"}, spec[-1]]
    x = images(2, 8, 8, 2)
    assert_proportional(evaluate(spec, x), evaluate(pooled, x), 1.0)


def test_depth_of_the_cntk_counts_the_readout():
    for depth in (2, 3, 11, 21):
        assert ops(cntk(depth)).count("conv") == depth - 1


def test_local_pooling_lies_between_flattening_and_global_pooling():
    x = images(2, 4, 4, 2)
    for padding in ("SAME", "CIRCULAR"):
        local = cntk(3, pool="lap", pool_radius=0, padding=padding)
        assert_proportional(evaluate(local, x), evaluate(cntk(3, pool="vec", padding=padding), x), 1.0)
    everything = evaluate(cntk(3, pool="lap", pool_radius=3), x)
    assert_proportional(everything, evaluate(cntk(3, pool="gap"), x), 16**2 / 7**4)


def test_wide_residual_networks():
    for depth in (10, 16, 22, 28):
        spec = wide_resnet(depth, widen=2)
        blocks = [layer["branches"] for layer in spec if layer["op"] == "residual_sum"]
        assert len(blocks) == (depth - 4) // 2
        assert sum(bool(shortcut) for _, shortcut in blocks) == 3
        assert [main[1]["features"] for main, shortcut in blocks if shortcut] == [32, 64, 128]
        assert [main[1]["strides"] for main, shortcut in blocks if shortcut] == [[1, 1], [2, 2], [2, 2]]


def test_baselines():
    x = images(3, 4, 4, 1)
    other = images(3, 4, 4, 1, seed=1)
    inner = np.einsum("nhwc,mhwc->nm", x, other) / 16
    distance = np.sqrt(np.mean((x[:, None] - other[None]) ** 2, axis=(2, 3, 4)))
    for spec, expected in (
        (linear(), inner),
        (linear(w_std=2.0, b_std=0.5), 4 * inner + 0.25),
        (rbf(length_scale=0.7), np.exp(-(distance**2) / (2 * 0.7**2))),
        (laplace(length_scale=2.0), np.exp(-distance / 2)),
        (matern(nu=0.5, length_scale=2.0), np.exp(-distance / 2)),
    ):
        for made in Architecture.from_spec(spec)(x, other):
            np.testing.assert_allclose(made, expected, rtol=1e-12, atol=1e-14)


def test_parameters_reach_every_layer():
    shared = {"w_std": 1.25, "b_std": 0.5, "activation": "leaky_relu", "activation_args": {"alpha": 0.2}}
    for name, family in FAMILIES.items():
        if not set(shared) <= set(family.takes):
            continue
        text = json.dumps(family((8, 8, 3), **shared))
        assert "relu" not in text.replace("leaky_relu", "")
        stated = [part.split(",")[0].strip(" }]") for part in text.split('"b_std":')[1:]]
        assert set(stated) == {"0.5"}, name
    for name in ("cnn_gap", "resnet", "wide_resnet", "myrtle7", "cntk"):
        text = json.dumps(FAMILIES[name]((8, 8, 3), filter=[5, 1], padding="CIRCULAR", parameterization="standard"))
        assert '"SAME"' not in text
        assert "[3, 3]" not in text
        assert '"ntk"' not in text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cnn_gap(0), "kernel.depth=0 must be a whole number, at least 1"),
        (lambda: cnn_vec(True), "kernel.depth"),
        (lambda: cnn_vec(2, activation="dense"), "kernel.activation='dense' is not one of relu"),
        (lambda: cnn_vec(2, padding="REFLECT"), r"layer 0 \(conv\): padding='REFLECT'"),
        (lambda: cnn_vec(2, filter=(0, 3)), r"layer 0 \(conv\): filter=0 must be at least 1"),
        (lambda: cntk(1), "at least 2"),
        (lambda: cntk(3, pool="max"), "kernel.pool='max' is not one of gap, vec, lap"),
        (lambda: resnet(2, pool="lap"), "kernel.pool='lap' is not one of gap, vec"),
        (lambda: resnet(0), "kernel.blocks"),
        (lambda: cntk(3, pool="lap", pool_radius=-1), "kernel.pool_radius"),
        (lambda: myrtle(6, (32, 32, 3)), "kernel.depth=6 is not one of 5, 7, 10"),
        (lambda: myrtle(5, (30, 32, 3)), "30 x 32 pixels must be multiples of 4"),
        (lambda: myrtle(5, (3072,)), "needs images"),
        (lambda: wide_resnet(17), "6 k \\+ 4"),
        (lambda: wide_resnet(16, widen=0), "kernel.widen"),
        (lambda: attention(1, mechanism="HARDMAX"), "mechanism='HARDMAX'"),
        (lambda: matern(nu=1.0), "nu=1.0 is not one of 0.5, 1.5, 2.5"),
        (lambda: rbf(length_scale=0.0), "length_scale=0.0"),
    ],
)
def test_parameters_out_of_range(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
