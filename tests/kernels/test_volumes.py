"""Volumes: three axes, of which two are counted as one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from brute_force import evaluate
from layer_kinds import attention, dense, residual

from ntkpipe import finite
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import kernel_cost
from ntkpipe.kernels.images import as_images
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.planning.network import describe_kernel

RELU, ERF, FLATTEN, GAP = ({"op": op} for op in ("relu", "erf", "flatten", "global_avg_pool"))
SHAPE = (3, 4, 2, 2)


def conv(size=(3, 3, 3), strides=(1, 1, 1), padding="SAME", features=3, **more):
    window = {"filter": list(size), "strides": list(strides), "padding": padding}
    return {"op": "conv", "features": features, "w_std": 1.3, "b_std": 0.2, **window, **more}


def pool(op, size, strides, padding, **more):
    return {"op": op, "window": list(size), "strides": list(strides), "padding": padding, **more}


NETWORKS = {
    "vec": [conv(), RELU, conv((2, 3, 1)), ERF, FLATTEN, dense()],
    "gap": [conv(), ERF, conv((1, 2, 2)), ERF, GAP, dense()],
    "strided": [conv((3, 2, 2), (2, 2, 1)), ERF, conv((2, 2, 2)), ERF, GAP, dense()],
    "valid": [conv((2, 2, 1), padding="VALID"), ERF, conv((1, 2, 2), (1, 2, 1), "VALID"), RELU, FLATTEN, dense()],
    "circular": [conv((2, 3, 2), padding="CIRCULAR"), ERF, conv((3, 2, 3), (1, 3, 2), "CIRCULAR"), ERF, GAP, dense()],
    "circular_vec": [conv((2, 3, 2), padding="CIRCULAR"), ERF, FLATTEN, dense()],
    "pools": [
        conv(),
        ERF,
        pool("avg_pool", (2, 3, 2), (1, 2, 1), "SAME", normalize_edges=True),
        conv((2, 2, 2)),
        pool("sum_pool", (2, 1, 2), (2, 1, 1), "CIRCULAR"),
        FLATTEN,
        dense(),
    ],
    "norms": [
        conv(),
        {"op": "layer_norm", "axis": [1, 2, 3], "eps": 0.1},
        ERF,
        conv(),
        {"op": "layer_norm"},
        GAP,
        dense(),
    ],
    "residual": [
        conv(),
        residual([ERF, conv((3, 3, 1))], []),
        residual([ERF, conv((3, 1, 1), (2, 2, 1))], [conv((1, 1, 1), (2, 2, 1))]),
        GAP,
        dense(),
    ],
    "attention": [conv(), ERF, attention("SOFTMAX"), ERF, GAP, dense()],
    "standard": [conv(parameterization="standard"), ERF, FLATTEN, dense(parameterization="standard")],
}


def volumes(n, shape=SHAPE, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((n, *shape)).astype(dtype)


QUICK = ("vec", "gap", "strided", "circular", "pools")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_kernels_are_those_of_loops_over_pixels(name):
    network, x = Architecture.from_spec(NETWORKS[name]), volumes(3)
    made = network(x)
    nngp, ntk, _ = evaluate(canonical_spec(NETWORKS[name]), x)
    for kernel, right in zip(made, (nngp, ntk), strict=True):
        right = right.astype(np.float64)
        np.testing.assert_allclose(kernel, right, rtol=1e-11, atol=1e-13 * np.abs(right).max())
        np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_allclose(network(x[:1], x[1:]).ntk[0], made.ntk[0, 1:], rtol=1e-12)
    np.testing.assert_array_equal(network.diagonal(x).ntk, np.diagonal(made.ntk))


def test_nearly_equal_volumes_and_small_blocks():
    network, x = Architecture.from_spec(NETWORKS["gap"]), volumes(4)
    x[3] = x[0] + 1e-9
    whole = network(x)
    assert whole.ntk[3, 0] == pytest.approx(whole.ntk[0, 0], rel=1e-8)
    small = x.astype(np.float32)
    with precision_context(np.float32):
        made = network.tiles(network.prepare(small), network.prepare(small[:3]), pairs=1)[0]
    np.testing.assert_allclose(made.ntk, whole.ntk[:, :3], rtol=1e-5)


def test_large_volumes_class_by_class():
    """Of one depth, against images."""
    x = volumes(2, (7, 9, 8, 1), np.float32)
    spec = [conv((3, 3, 3)), RELU, conv((3, 3, 3)), RELU, GAP, dense()]
    made = Architecture.from_spec(spec)(x)
    turned = Architecture.from_spec(spec)(x.transpose(0, 3, 1, 2, 4))
    np.testing.assert_allclose(made.ntk, turned.ntk, rtol=1e-5)


def test_one_slice_is_an_image():
    x = volumes(3, (1, 5, 4, 2))
    spec = [conv(), RELU, conv(strides=(1, 2, 2)), RELU, GAP, dense()]
    flat = [
        layer | {"filter": [3, 3], "strides": layer["strides"][1:]} if layer["op"] == "conv" else layer
        for layer in spec
    ]
    # Of a filter of three along the depth one tap of three sees the slice.
    flat = [layer | {"w_std": layer["w_std"] / 3**0.5} if layer["op"] == "conv" else layer for layer in flat]
    for one, other in zip(Architecture.from_spec(spec)(x), Architecture.from_spec(flat)(x[:, 0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["vec", "pools", "circular", pytest.param("attention", marks=pytest.mark.slow), "strided"]
)
def test_empirical_kernels_of_volumes(name):
    spec, x = NETWORKS[name], volumes(2)
    weights = finite.init(spec, SHAPE, dtype=np.float64)
    made = finite.empirical_kernel(spec, weights, x, outputs="full").ntk
    with precision_context(np.float64):
        network = finite.network.network(spec, SHAPE)
        jacobian = jax.jacrev(lambda w: network.forward(w, x)[0])(weights)
        flat = np.concatenate([np.reshape(a, (2, 3, -1)) for a in jax.tree.leaves(jacobian)], axis=2)
    np.testing.assert_allclose(made, np.einsum("iap,jbp->ijab", flat, flat), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vec", "gap", "pools"])
def test_kernels_are_those_of_wide_networks(name):
    wide = [layer | {"features": 128} if layer["op"] == "conv" else layer for layer in NETWORKS[name]]
    wide[-1] = wide[-1] | {"features": 1}
    x = volumes(3)
    made, estimate = Architecture.from_spec(wide)(x), finite.monte_carlo_kernel(wide, 60, x)
    for kernel in ("nngp", "ntk"):
        off = np.abs(getattr(made, kernel) - getattr(estimate, kernel))
        allowed = 5 * getattr(estimate, f"{kernel}_error") + 0.03 * np.abs(getattr(made, kernel)).max()
        assert (off < allowed).all()


def test_costs_and_the_table():
    for name in ("vec", "gap"):
        spec = canonical_spec(NETWORKS[name])
        cost = kernel_cost(spec, Architecture.from_spec(spec).steps((8, 8, 8, 1)))
        assert cost.input_entries == 8**3 if name == "vec" else 8**6
    assert "8 x 8 x 8 x 3" in describe_kernel(NETWORKS["gap"], (8, 8, 8, 1))
    delta = canonical_spec([conv(taps="delta"), GAP])
    made, right = (Architecture.from_spec(layers)(volumes(2)).ntk for layers in (delta, [conv((1, 1, 1)), GAP]))
    np.testing.assert_allclose(made, right, rtol=1e-13)


def test_layouts_of_volumes():
    x = volumes(2, (5, 6, 7, 3))
    np.testing.assert_array_equal(as_images("x", x.transpose(0, 4, 1, 2, 3), "NCDHW"), x)
    assert as_images("x", x, None) is x
    with pytest.raises(DataError, match=r"set data\.layout=NCDHW if it is"):
        as_images("x", x.transpose(0, 4, 1, 2, 3), None)
    with pytest.raises(DataError, match="layout=NDHWC is for volumes"):
        as_images("x", x[0], "NDHWC")
    with pytest.raises(DataError, match="five axes are volumes"):
        as_images("x", x, "NLC")


@pytest.mark.parametrize(
    ("spec", "shape", "text"),
    [
        (
            [conv((3, 3), (1, 1)), GAP],
            SHAPE,
            r"layer 0 \(conv\) has windows of 2 numbers, \[3, 3\], but the inputs are volumes",
        ),
        ([conv(), GAP], (4, 4, 2), r"layer 0 \(conv\) has windows of 3 numbers, .*, but the inputs are images"),
        ([conv((3, 3, 3), (2, 2)), GAP], SHAPE, "must have as many numbers"),
        ([conv((4, 4, 4), padding="VALID"), GAP], SHAPE, "has a window of 4 pixels, but its input has 3"),
    ],
)
def test_windows_of_other_numbers_are_refused(spec, shape, text):
    with pytest.raises(ConfigError, match=text):
        Architecture.from_spec(spec)(volumes(2, shape))
    with pytest.raises(ConfigError, match=text):
        finite.init(spec, shape)
