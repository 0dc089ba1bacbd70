"""Empirical kernels against Jacobians by automatic differentiation, for every kind of layer."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from layer_kinds import ACTIVATIONS, ERF, FLATTEN, GAP, NETWORKS, conv, dense, residual

from ntkpipe import finite
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.network import network
from ntkpipe.finite.products import OUTPUTS, plan_maps
from ntkpipe.kernels.architecture import precision_context

SHAPE = (5, 4, 2)
EVERY_WAY = ("dense", "softmax", "wide_conv")
BOUND = {"float32": 2e-5, "float64": 1e-10}


def images(n=4, dtype="float64", shape=SHAPE, seed=3):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(dtype)


def by_jacobian(spec, weights, x):
    """`(n, n, c, c)` from all gradients of all images, in float64."""
    with precision_context(np.float64):
        made = network(spec, x.shape[1:])
        given = made.check_weights(weights, np.float64)
        gradients = jax.jit(jax.jacrev(lambda w, x: made.forward(w, x)[0]))(given, x.astype(np.float64))
        flat = [np.asarray(g).reshape(*g.shape[:2], -1) for g in jax.tree.leaves(gradients)]
        return sum(np.einsum("iak,jbk->ijab", g, g) for g in flat)


def check(spec, dtype, kinds=("full",), shape=SHAPE):
    x = images(7, dtype, shape)
    weights = finite.init(spec, shape, seed=1, dtype=dtype)
    exact = by_jacobian(spec, weights, x)
    bound = BOUND[dtype] * np.abs(exact).max()
    exact = exact[:4, 4:]
    wanted = {
        "full": exact,
        "trace": np.einsum("ijaa->ij", exact) / exact.shape[-1],
        "pseudo": exact.sum(axis=(2, 3)) / exact.shape[-1],
    }
    for outputs in kinds:
        made = finite.empirical_kernel(spec, weights, x[:4], x[4:], outputs)
        assert made.ntk.dtype == dtype
        assert made.ntk.shape == wanted[outputs].shape
        np.testing.assert_allclose(made.ntk, wanted[outputs], rtol=0, atol=bound, err_msg=outputs)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(EVERY_WAY)))
def test_every_layer(name):
    check(NETWORKS[name], "float64")


@pytest.mark.parametrize("name", EVERY_WAY)
def test_every_kind_of_outputs(name):
    check(NETWORKS[name], "float64", OUTPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(EVERY_WAY)))
def test_every_layer_in_every_way(name):
    """In float32: in float64 a layer runs the same operations, and `test_every_layer` sees them."""
    check(NETWORKS[name], "float32", OUTPUTS)


def test_every_activation():
    check([dense(6), residual(*([layer] for layer in ACTIVATIONS)), dense(2)], "float64", shape=(3,))


def test_convolutions_take_the_cheaper_way():
    plans = plan_maps(network(NETWORKS["wide_conv"], SHAPE), "trace")
    assert [plan.way for plan in plans] == ["gradients", "pixel pairs", "gradients", "structured"]
    # A square image of n pixels: n^2 products per pair, against as many as there are parameters.
    narrow = [conv(3, features=4), ERF, conv(3, features=4), ERF, GAP, dense()]
    assert {plan.way for plan in plan_maps(network(narrow, (16, 16, 3)), "trace")[:2]} == {"gradients"}


def test_groups_of_columns_give_the_same(monkeypatch):
    """Pairs of pixels are held for a few columns at a time; their number divides no block."""
    spec, x = NETWORKS["wide_conv"], images(7)
    weights = finite.init(spec, SHAPE, dtype=np.float64)
    whole = finite.empirical_kernel(spec, weights, x)
    from ntkpipe.finite import empirical, products

    monkeypatch.setattr(products, "_PAIR_BYTES", 1 << 16)
    monkeypatch.setattr(empirical, "_PREPARED_BYTES", 1 << 17)
    empirical._compiled.cache_clear()
    parts = finite.empirical_kernel(spec, weights, x)
    empirical._compiled.cache_clear()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(one).max())


def test_images_with_themselves_are_symmetric_to_the_last_bit():
    spec = NETWORKS["conv"]
    made = finite.empirical_kernel(spec, finite.init(spec, SHAPE), images(5, "float32"))
    np.testing.assert_array_equal(made.ntk, made.ntk.transpose(1, 0, 3, 2))
    np.testing.assert_array_equal(made.nngp, made.nngp.T)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_the_nngp_is_the_covariance_over_readouts(parameterization):
    spec = [FLATTEN, dense(6), ERF, dense(7, parameterization=parameterization)]
    weights, x = finite.init(spec, SHAPE, dtype=np.float64), images()
    hidden = finite.apply(spec[:-1], weights[:1], x)
    right = 1.3**2 * hidden @ hidden.T / 6 + 0.2**2
    np.testing.assert_allclose(finite.empirical_kernel(spec, weights, x).nngp, right, rtol=1e-12)
    without = finite.empirical_kernel(spec[:-1], weights[:1], x).nngp
    np.testing.assert_allclose(without, hidden @ hidden.T / 6, rtol=1e-12)


def test_a_row_block_serves_all_its_tiles():
    spec = NETWORKS["conv"]
    weights, x = finite.init(spec, SHAPE, dtype=np.float64), images(6)
    blocks = [finite.prepare(spec, weights, block) for block in (x[:4], x[4:])]
    tiles = np.block([[np.asarray(finite.tile(a, b).ntk) for b in blocks] for a in blocks])
    whole = finite.empirical_kernel(spec, weights, x, outputs="trace").ntk
    np.testing.assert_allclose(tiles, whole, rtol=1e-12)


def test_a_network_of_masks_has_a_kernel():
    """Masks are part of an image's pass: twice the image with the same masks is the same image."""
    spec = [FLATTEN, dense(5), {"op": "dropout", "rate": 0.5}, ERF, dense()]
    x, weights = images(), finite.init(spec, SHAPE, dtype=np.float64)
    masks = finite.draw_masks(spec, SHAPE, len(x), dtype=np.float64)
    with pytest.raises(ConfigError, match="dropout"):
        finite.empirical_kernel(spec, weights, x)
    ones = [np.ones_like(m) for m in masks]
    halved = [FLATTEN, dense(5), {"op": "elementwise", "function": "2 * x"}, ERF, dense()]
    one, other = finite.prepare(spec, weights, x, masks=ones), finite.prepare(halved, weights, x)
    np.testing.assert_allclose(finite.tile(one, one).ntk, finite.tile(other, other).ntk, rtol=1e-12)
    dropped = finite.prepare(spec, weights, x, masks=masks)
    assert np.abs(finite.tile(one, dropped).ntk - finite.tile(one, one).ntk).max() > 0.1


def test_blocks_of_two_networks_are_refused():
    x = images()
    made = []
    for spec in (NETWORKS["conv"], NETWORKS["valid"]):
        made.append(finite.prepare(spec, finite.init(spec, SHAPE, dtype=np.float64), x))
    with pytest.raises(DataError, match="one spec"):
        finite.tile(*made)


def test_other_bad_input():
    spec, x = NETWORKS["conv"], images()
    weights = finite.init(spec, SHAPE, dtype=np.float64)
    with pytest.raises(ConfigError, match="full, trace, pseudo"):
        finite.empirical_kernel(spec, weights, x, outputs="all")
    with pytest.raises(DataError, match="must agree"):
        finite.empirical_kernel(spec, weights, x, images(2, "float32"))
    with pytest.raises(DataError, match="float32 or float64"):
        finite.empirical_kernel(spec, weights, x.astype(int))
