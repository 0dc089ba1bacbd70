"""Sequences of different lengths: each has the kernels that it has by itself, however many positions follow it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from layer_kinds import attention, dense, repeat, residual

from ntkpipe import finite
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.sequences import lengths_of, with_ends

RELU, ERF, FLATTEN, GAP, GSP = ({"op": op} for op in ("relu", "erf", "flatten", "global_avg_pool", "global_sum_pool"))


def conv(size=3, strides=1, padding="SAME", **more):
    window = {"filter": [size], "strides": [strides, 1], "padding": padding}
    return {"op": "conv", "features": 4, "w_std": 1.2, "b_std": 0.3, **window, **more}


def pool(op, size, strides, padding, **more):
    return {"op": op, "window": [size], "strides": [strides, 1], "padding": padding, **more}


COS = {"op": "cos", "b": 0.7, "c": 0.3}  # not zero at zero
NETWORKS = {
    "gap": [conv(), RELU, conv(2), COS, GAP, dense()],
    "valid": [conv(2, 1, "VALID"), COS, conv(3, 2, "VALID"), RELU, GAP, dense()],
    "flatten": [conv(), COS, conv(), RELU, FLATTEN, dense()],
    "flatten_first": [FLATTEN, dense(), RELU, dense()],
    "sum": [conv(w_std=0.7), RELU, pool("avg_pool", 2, 2, "VALID"), conv(), GSP, dense(w_std=0.5)],
    "pooled": [conv(), COS, pool("avg_pool", 3, 1, "SAME"), conv(), RELU, GAP, dense()],
    "residual": [conv(), residual([COS, conv()], []), {"op": "layer_norm", "eps": 0.1}, RELU, GAP, dense()],
    "repeat": [conv(), repeat(3, COS, conv()), GAP, dense()],
    "standard": [conv(parameterization="standard"), COS, GAP, dense(parameterization="standard")],
    "softmax": [conv(), COS, attention("SOFTMAX"), RELU, GAP, dense()],
    "relu_attention": [attention("RELU"), COS, GAP, dense()],
}
LENGTHS = np.array([6, 9, 4, 6, 8, 6])


def series(positions, dtype=np.float64, fill=np.nan):
    x = np.random.default_rng(0).standard_normal((len(LENGTHS), 12, 1, 2)).astype(dtype)[:, :positions]
    x[5] = x[0] + 1e-9  # nearly coincide, in their six positions
    x[3, :4] = x[2, :4]  # begin alike, and end at different places
    x[np.arange(positions) >= LENGTHS[:, None]] = fill
    return x


QUICK = ("gap", "flatten_first", "softmax")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


@pytest.mark.parametrize("name", EACH)
def test_equal_lengths_are_evaluated_as_without_padding(name):
    network, x = Architecture.from_spec(NETWORKS[name]), series(10)
    made = network(x)
    same = np.array([0, 3, 5])
    # Attention says nothing of nearly equal images but what is left of their covariance.
    near = 1e-9 if "softmax" in name or "attention" in name else 1e-13
    for kernel, right in zip(made, network(x[same, :6]), strict=True):
        np.testing.assert_allclose(kernel[np.ix_(same, same)], right, rtol=near)
    for kernel, right in zip(made, network.diagonal(x[1:2, :9]), strict=True):
        np.testing.assert_allclose(kernel[1, 1], right[0], rtol=1e-13)
    for kernel in made:
        np.testing.assert_array_equal(kernel, kernel.T)
        assert np.linalg.eigvalsh(kernel).min() > -1e-13 * np.trace(kernel)
        assert np.isfinite(kernel).all()


@pytest.mark.parametrize("name", EACH)
def test_padding_changes_nothing(name):
    """Nor do blocks: one of them may hold no padding at all."""
    network = Architecture.from_spec(NETWORKS[name])
    made, longer = network(series(10)), network(series(12))
    for one, other in zip(made, longer, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9 if "attention" in name or name == "softmax" else 1e-13)
    np.testing.assert_allclose(network.diagonal(series(12)).ntk, np.diagonal(made.ntk), rtol=1e-13)
    x = series(9)
    part = network(x[1:2], x)  # the longest has no padding here
    np.testing.assert_allclose(part.ntk[0], made.ntk[1], rtol=1e-13)


def alone(spec, weights, x, lengths):
    """Outputs of a finite network on each sequence by itself."""
    return np.concatenate([finite.apply(spec, weights, x[i : i + 1, :n]) for i, n in enumerate(lengths)])


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("flatten")])
def test_finite_networks_see_each_sequence_by_itself(name):
    spec, x = NETWORKS[name], series(10)
    weights = finite.init(spec, x.shape[1:], dtype=np.float64)
    right = alone(spec, weights, x, LENGTHS)
    np.testing.assert_allclose(finite.apply(spec, weights, x), right, rtol=1e-12)
    np.testing.assert_allclose(finite.apply(spec, weights, series(12)), right, rtol=1e-12)


@pytest.mark.parametrize("name", ["gap", "repeat", pytest.param("softmax", marks=pytest.mark.slow)])
def test_empirical_kernels_of_sequences(name):
    spec, x = NETWORKS[name], series(10)
    weights = finite.init(spec, x.shape[1:], dtype=np.float64)
    made = finite.empirical_kernel(spec, weights, x, outputs="full").ntk
    with precision_context(np.float64):
        gradients = []
        for i, n in enumerate(LENGTHS):
            one = x[i : i + 1, :n]
            network = finite.network.network(spec, one.shape[1:])
            jacobian = jax.jacrev(lambda w, one=one, network=network: network.forward(w, one)[0][0])(weights)
            gradients.append(np.concatenate([np.reshape(a, (3, -1)) for a in jax.tree.leaves(jacobian)], axis=1))
    right = np.einsum("iap,jbp->ijab", gradients, gradients)
    np.testing.assert_allclose(made, right, rtol=1e-9, atol=1e-11 * np.abs(right).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gap", "flatten", "valid"])
def test_kernels_are_those_of_wide_networks(name):
    wide = [layer | {"features": 128} if layer["op"] == "conv" else layer for layer in NETWORKS[name]]
    wide[-1] = wide[-1] | {"features": 1}
    x = series(10)
    made, estimate = Architecture.from_spec(wide)(x), finite.monte_carlo_kernel(wide, 60, x)
    for kernel in ("nngp", "ntk"):
        off = np.abs(getattr(made, kernel) - getattr(estimate, kernel))
        allowed = 5 * getattr(estimate, f"{kernel}_error") + 0.03 * np.abs(getattr(made, kernel)).max()
        assert (off < allowed).all()


def test_several_depths_in_one_evaluation():
    shallow, deep = [conv(), RELU, GAP, dense()], [conv(), RELU, conv(), RELU, GAP, dense()]
    x = series(10, np.float32)
    both = Architecture.sharing([shallow, deep])
    with precision_context(np.float32):
        made = both.tiles(both.prepare(x), None)
        own = both.diagonals(x)
    for spec, kernels, diagonal in zip((shallow, deep), made, own, strict=True):
        np.testing.assert_allclose(kernels.ntk, Architecture.from_spec(spec)(x).ntk, rtol=1e-5)
        np.testing.assert_allclose(np.diagonal(kernels.ntk), diagonal.ntk, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ([conv(3, 1, "CIRCULAR"), GAP], r"layer 0 \(conv\) wraps around"),
        (
            [conv(), residual([RELU, conv(3, 2)], [conv(1, 2)]), GAP],
            r"layer 1 \(residual_sum\), branch 0, layer 1 \(conv\) has SAME",
        ),
        (
            [conv(), RELU, pool("avg_pool", 2, 1, "SAME", normalize_edges=True), GAP],
            r"layer 2 \(avg_pool\) counts the positions",
        ),
        ([conv(), {"op": "layer_norm", "axis": [1, 2, 3]}, GAP], r"layer 1 \(layer_norm\) takes the mean over all"),
        (
            [conv(), RELU, FLATTEN, dense(parameterization="standard")],
            r"layer 3 \(dense\) depends on the number of inputs",
        ),
        (
            [repeat(2, conv(2, padding="VALID"), RELU), GAP],
            r"layer 0 \(repeat\) repeats layers that change the lengths",
        ),
        ([conv(), residual([conv(3, padding="VALID")], [conv(3, padding="VALID")]), GAP], None),
    ],
)
def test_what_ends_elsewhere_is_refused_by_place(spec, text):
    network, x = Architecture.from_spec(spec), series(10)
    if text is None:
        assert np.isfinite(network(x).ntk).all()
        return
    with pytest.raises(ConfigError, match=text):
        network(x)


def test_sequences_shorter_than_windows_are_refused():
    spec = [conv(5, padding="VALID"), RELU, GAP, dense()]
    with pytest.raises(DataError, match="row 2 is a sequence of length 4, but the network's windows need 5"):
        Architecture.from_spec(spec)(series(10))
    with pytest.raises(DataError, match="row 2 is a sequence of length 4"):
        finite.apply(spec, finite.init(spec, (10, 1, 2)), series(10, np.float32))


def test_masks_and_lengths():
    x = series(10, fill=7.0)
    made = with_ends(x, LENGTHS, "mask")
    np.testing.assert_array_equal(made, series(10))
    np.testing.assert_array_equal(with_ends(x, np.arange(10) < LENGTHS[:, None], "mask"), made)
    np.testing.assert_array_equal(lengths_of(made), LENGTHS)
    assert lengths_of(x) is None
    x[0, 3] = np.nan  # not the end of a sequence
    assert lengths_of(x) is None
    for mask, text in (
        (np.ones((6, 10), bool) & (np.arange(10) != 4), "gap in row 0"),
        (LENGTHS * 2, "gives row 0 a length of 12"),
        (LENGTHS * 0, "gives row 0 a length of 0"),
        (LENGTHS / 2, "give .6,. lengths"),
    ):
        with pytest.raises(DataError, match=text):
            with_ends(x, mask, "mask")
    with pytest.raises(DataError, match="convert them to float32"):
        with_ends(np.ones((6, 10, 1, 1), np.uint8), LENGTHS, "mask")
