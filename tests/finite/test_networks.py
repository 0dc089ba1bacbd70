"""Passes, weights and widths of finite networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import ERF, FLATTEN, GAP, NETWORKS, STANDARD, attention, conv, dense, residual
from scipy.signal import correlate2d
from scipy.special import erf

from ntkpipe import finite
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import fcn

SHAPE = (5, 4, 2)


def images(n=3, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((n, *SHAPE)).astype(dtype)


def test_a_dense_network_by_hand():
    x = images()
    for parameterization, w, b in (("ntk", 1.3, 0.2), ("standard", 1.0, 1.0)):
        spec = [FLATTEN, dense(5, parameterization=parameterization), ERF, dense(b_std=None, **STANDARD)]
        (w1, b1), (w2, none) = weights = finite.init(spec, SHAPE, dtype=np.float64)
        assert none is None
        factor = w / np.sqrt(40) if parameterization == "ntk" else 1.0
        right = erf(factor * x.reshape(3, -1) @ w1 + b * b1) @ w2
        np.testing.assert_allclose(finite.apply(spec, weights, x), right, rtol=1e-12)


def test_a_convolution_by_hand():
    """SAME of a 3 x 3 filter is SciPy's; filters are (height, width, in, out)."""
    spec, x = [conv(features=4), FLATTEN], images()
    ((w, b),) = weights = finite.init(spec, SHAPE, dtype=np.float64)
    assert w.shape == (3, 3, 2, 4)
    right = [[sum(correlate2d(image[..., c], w[..., c, f], "same") for c in range(2)) for f in range(4)] for image in x]
    right = 1.2 / np.sqrt(18) * np.moveaxis(right, 1, -1) + 0.3 * b
    np.testing.assert_allclose(finite.apply(spec, weights, x), right.reshape(3, -1), rtol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_counted_by_layer(name):
    weights = finite.init(NETWORKS[name], SHAPE)
    arrays = [a for w, b in weights for a in ((*w, b) if isinstance(w, tuple) else (w, b)) if a is not None]
    counts = finite.count_parameters(NETWORKS[name], SHAPE)
    assert sum(counts.values()) == sum(a.size for a in arrays)
    assert len(counts) == len(weights)
    assert all(np.isfinite(finite.apply(NETWORKS[name], weights, images(2, np.float32))).ravel())


def test_layers_of_branches_are_named_by_their_place():
    assert list(finite.count_parameters(NETWORKS["residual"], SHAPE))[1:4] == [
        "layer 1 (residual_sum), branch 0, layer 1 (conv)",
        "layer 1 (residual_sum), branch 0, layer 3 (conv)",
        "layer 2 (residual_sum), branch 0, layer 1 (conv)",
    ]


def test_standard_weights_hold_their_factors():
    spec = [FLATTEN, dense(300, w_std=1.5, b_std=0.4, **STANDARD), ERF, dense(1)]
    (w, b), _ = finite.init(spec, (10, 10, 3), dtype=np.float64)
    # Of 90,000 and 300 numbers: five standard errors of a standard deviation.
    assert w.std() == pytest.approx(1.5 / np.sqrt(300), rel=5 / np.sqrt(2 * w.size))
    assert b.std() == pytest.approx(0.4, rel=5 / np.sqrt(2 * b.size))


def test_orthogonal_weights():
    spec = [FLATTEN, dense(7), ERF, dense(60), ERF, dense(60)]
    for w, _ in finite.init(spec, SHAPE, initialiser="orthogonal", dtype=np.float64):
        inputs, outputs = w.shape
        product = w.T @ w if inputs >= outputs else w @ w.T
        np.testing.assert_allclose(product, max(w.shape) * np.eye(min(w.shape)), atol=1e-10)


def test_delta_orthogonal_convolutions():
    spec = [conv(features=6), ERF, conv(features=6), ERF, GAP, dense()]
    (_, _), (w, _), _ = finite.init(spec, SHAPE, initialiser="delta_orthogonal", dtype=np.float64)
    np.testing.assert_allclose(w[1, 1].T @ w[1, 1], 9 * 6 * np.eye(6), atol=1e-10)
    w[1, 1] = 0
    assert not w.any()


def test_an_attention_has_three_arrays_of_weights():
    (w, b), _ = finite.init([attention("SOFTMAX"), GAP, dense()], SHAPE)
    assert [a.shape for a in w] == [(2, 2, 3), (2, 2, 2), (2, 2, 4)]
    assert b.shape == (4,)


def test_hidden_widths_times_a_factor():
    spec = [conv(features=4), residual([ERF, conv(features=4)], []), ERF, attention("SOFTMAX"), GAP, dense(3)]
    made = finite.widened(spec, 2.5)
    assert made[0]["features"] == made[1]["branches"][0][1]["features"] == 10
    assert [made[3][name] for name in ("n_heads", "n_chan_key", "n_chan_val", "n_chan_out")] == [5, 8, 5, 10]
    assert made[-1]["features"] == 3
    # The outputs may come from branches, and end in a pool.
    ends = [conv(features=4), residual([ERF, conv(features=4)], [conv(1, features=4)]), GAP]
    made = finite.widened(ends, 3)
    assert [made[0]["features"], made[1]["branches"][0][1]["features"], made[1]["branches"][1][0]["features"]] == [
        12,
        4,
        4,
    ]
    with pytest.raises(ConfigError, match=r"layer 3 \(global_self_attention\): n_heads=2 times 0.1"):
        finite.widened(spec, 0.1)
    with pytest.raises(ConfigError, match="above 0"):
        finite.widened(spec, 0)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ([FLATTEN, dense(0)], r"layer 1 \(dense\): features=0"),
        ([FLATTEN, {"op": "stationary", "kernel": "rbf"}], r"layer 1 \(stationary\)"),
        ([FLATTEN, dense(), {"op": "elementwise", "nngp": "exp(k - (p + q) / 2)"}], r"layer 2 \(elementwise\)"),
        ([FLATTEN, dense(), {"op": "exp_normalized"}], r"layer 2 \(exp_normalized\) is given only by its kernel"),
        ([conv(), {"op": "batch_norm"}, FLATTEN], r"layer 1 \(batch_norm\): batch statistics"),
        ([residual([conv(), {"op": "batch_norm"}], []), FLATTEN], r"layer 1 \(batch_norm\): batch statistics"),
        ([dense()], r"layer 0 \(dense\) acts on flat"),
        ([FLATTEN, conv()], r"layer 1 \(conv\) acts on images"),
        ([conv(9, padding="VALID"), FLATTEN], r"layer 0 \(conv\) has a window"),
        ([residual([conv(features=4)], []), FLATTEN], r"layer 0 \(residual_sum\) adds branches of different shapes"),
        ([residual([FLATTEN, conv()])], r"layer 0 \(residual_sum\), branch 0, layer 1 \(conv\) acts on images"),
        ([conv()], "ends with an image"),
    ],
)
def test_what_has_no_finite_form_is_refused_by_name(spec, text):
    with pytest.raises(ConfigError, match=text):
        finite.init(spec, SHAPE)


def test_weights_of_other_shapes_are_refused_with_the_right_ones():
    spec = NETWORKS["dense"]
    weights, x = finite.init(spec, SHAPE), images(dtype=np.float32)
    right = r"0: layer 1 \(dense\): W \(40, 5\), b \(5,\)"
    with pytest.raises(DataError, match=r"list of 3 pairs \(W, b\), got 2 entries:\n  " + right):
        finite.apply(spec, weights[:2], x)
    with pytest.raises(
        DataError, match=r"weights\[0\] of layer 1 \(dense\) has W \(5, 40\) and b \(5,\); required are\n  " + right
    ):
        finite.apply(spec, [(weights[0][0].T, weights[0][1]), *weights[1:]], x)
    with pytest.raises(DataError, match=r"b None"):
        finite.apply(spec, [weights[0], (weights[1][0], np.zeros(4)), weights[2]], x)
    broken = weights[1][0].copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match=r"weights\[1\] of layer 3 \(dense\) holds 1 non-finite"):
        finite.apply(spec, [weights[0], (broken, None), weights[2]], x)


def test_unknown_initialisers_are_refused():
    with pytest.raises(ConfigError, match="gaussian, orthogonal, delta_orthogonal"):
        finite.init(NETWORKS["dense"], SHAPE, initialiser="he")


def test_a_network_at_a_width_keeps_its_proportions():
    spec = [
        {"op": "dense", "features": 8},
        {"op": "relu"},
        {"op": "dense", "features": 16},
        {"op": "relu"},
        {"op": "dense", "features": 3},
    ]
    assert [layer["features"] for layer in finite.at_width(spec, 32) if "features" in layer] == [32, 64, 3]
    branch = [{"op": "dense", "features": 4}, {"op": "relu"}, {"op": "dense", "features": 8}]
    block = {"op": "residual_sum", "branches": [[], branch]}
    made = finite.at_width([spec[0], block, spec[-1]], 8)
    assert (made[0]["features"], made[1]["branches"][1][0]["features"], made[2]["features"]) == (16, 8, 3)
    assert finite.at_width([spec[-1]], 5)[0]["features"] == 3
    with pytest.raises(ConfigError, match="width=0 must be at least 1"):
        finite.at_width(spec, 0)


def test_gradients_go_through_a_pass_of_many_networks_at_once():
    spec, x = [FLATTEN, dense(5), ERF, dense(1)], jnp.asarray(images(dtype=np.float32))
    weights = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(finite.init(spec, SHAPE, seed=seed) for seed in range(2))
    )
    slopes = jax.jit(jax.vmap(jax.grad(lambda w, x: finite.apply(spec, w, x).sum()), (0, None)))(weights, x)
    one = finite.init(spec, SHAPE, seed=1)
    step = 1e-2
    moved = [
        (w + step * np.asarray(dw[1]), b + step * np.asarray(db[1]))
        for (w, b), (dw, db) in zip(one, slopes, strict=True)
    ]
    risen = (finite.apply(spec, moved, x) - finite.apply(spec, one, x)).sum()
    squared = sum(float((np.asarray(slope[1]) ** 2).sum()) for slope in jax.tree.leaves(slopes))
    assert risen == pytest.approx(step * squared, rel=0.05)  # to first order


def test_an_architecture_stands_for_its_layers():
    architecture = Architecture.from_spec(fcn(depth=1, width=16))
    x = np.random.default_rng(0).standard_normal((3, 4))
    layers = architecture.to_spec()
    weights = finite.init(architecture, x.shape[1:], seed=2)
    for one, other in zip(weights, finite.init(layers, x.shape[1:], seed=2), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(finite.apply(architecture, weights, x), finite.apply(layers, weights, x))
    np.testing.assert_array_equal(
        finite.empirical_kernel(architecture, weights, x).ntk, finite.empirical_kernel(layers, weights, x).ntk
    )
