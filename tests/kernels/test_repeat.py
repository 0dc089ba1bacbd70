"""`repeat`: the kernels of the layers written out, at any depth, in a program of one size."""

from __future__ import annotations

import json

import jax
import mpmath as mp
import numpy as np
import pytest
from layer_kinds import attention, conv, dense, pool, repeat, residual
from mp_networks import kernels

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import kernel_cost
from ntkpipe.kernels.dominance import dominance
from ntkpipe.kernels.evaluation import near
from ntkpipe.kernels.spec import canonical_json, canonical_spec, dump_spec, fingerprint, load_spec, unrolled
from ntkpipe.kernels.truncation import expansion_error, with_degrees
from ntkpipe.planning.network import describe_kernel, traffic

RELU, ERF, FLATTEN, GAP = ({"op": op} for op in ("relu", "erf", "flatten", "global_avg_pool"))
ROOT2 = 2**0.5
NETWORKS = {
    "begins_with_dense": [FLATTEN, repeat(5, dense(), RELU), dense(1)],
    "begins_with_relu": [FLATTEN, dense(), repeat(4, RELU, dense()), dense(1)],
    "once": [FLATTEN, dense(), repeat(1, RELU, dense())],
    "standard": [FLATTEN, repeat(3, dense(7, parameterization="standard"), ERF), dense(1, parameterization="standard")],
    "series": [FLATTEN, dense(), repeat(3, {"op": "tanh"}, dense()), dense(1)],
    "nested": [FLATTEN, dense(), repeat(2, RELU, repeat(3, dense(), ERF), dense()), dense(1)],
    "residual": [
        FLATTEN,
        dense(),
        repeat(3, residual([repeat(2, RELU, dense())], []), {"op": "layer_norm"}),
        RELU,
        dense(1),
    ],
    "ends": [FLATTEN, repeat(3, dense(1), {"op": "identity"})],
    "vec": [repeat(4, conv(), RELU), FLATTEN, dense(1)],
    "gap": [conv(), repeat(3, RELU, conv()), GAP, dense(1)],
    "standard_images": [repeat(3, conv(parameterization="standard"), RELU), GAP, dense(1, parameterization="standard")],
    "strided_after": [conv(), repeat(2, RELU, conv()), RELU, conv(3, 2), RELU, GAP, dense(1)],
    "shrinking": [repeat(3, conv(2, padding="VALID"), RELU), FLATTEN, dense(1)],
    "pooled": [
        conv(),
        repeat(2, RELU, conv(), pool("avg_pool", 3, 1, "SAME", normalize_edges=False)),
        FLATTEN,
        dense(1),
    ],
    "norm_of_images": [conv(), repeat(2, {"op": "layer_norm", "axis": [1, 2, 3]}, RELU, conv()), GAP, dense(1)],
    "attention": [conv(), repeat(3, RELU, attention("SOFTMAX")), GAP, dense(1)],
    "residual_images": [conv(), repeat(2, residual([repeat(2, RELU, conv())], [])), RELU, GAP, dense(1)],
    "flattens": [repeat(3, FLATTEN, dense(), RELU), dense(1)],
}


def written_out(spec):
    return [
        layer | {"branches": [written_out(branch) for branch in layer["branches"]]} if "branches" in layer else layer
        for layer in unrolled(spec)
    ]


def images(n, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 5, 4, 2)).astype(dtype)


QUICK = ("begins_with_dense", "begins_with_relu", "nested", "residual", "vec", "gap")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_it_is_the_layers_written_out(name):
    network, plain = (Architecture.from_spec(spec) for spec in (NETWORKS[name], written_out(NETWORKS[name])))
    x = images(6)
    x[4] = x[1] * (1 + 1e-9)  # evaluated from its difference
    x[5] = x[2]
    for made, right in zip(network(x), plain(x), strict=True):
        np.testing.assert_allclose(made, right, rtol=1e-12, atol=1e-13 * np.abs(right).max())
    ntk = network(x).ntk
    np.testing.assert_array_equal(ntk, ntk.T)
    assert np.linalg.eigvalsh(ntk).min() > -1e-12 * np.trace(ntk)
    np.testing.assert_allclose(ntk[5], ntk[2], rtol=1e-14)
    assert ntk[5, 2] == ntk[2, 2]
    np.testing.assert_array_equal(np.diagonal(ntk), network.diagonal(x).ntk)
    # After an inner pool or attention the pair that is nearly equal comes from rounded differences: 1e-9 apart, known to a part of it.
    np.testing.assert_allclose(network(x[:2], x[3:]).ntk, ntk[:2, 3:], rtol=1e-12 if name in QUICK else 1e-9)


@pytest.mark.parametrize("name", ["begins_with_dense", "residual", "gap", "attention"])
def test_in_float32_and_in_small_blocks(name):
    """Classes of rows one by one; two columns at a time."""
    network, plain = (Architecture.from_spec(spec) for spec in (NETWORKS[name], written_out(NETWORKS[name])))
    x = images(5, np.float32)
    with precision_context(np.float32):
        made = network.tiles(network.prepare(x), network.prepare(x[:3]), pad_to=8, pairs=1)[0]
        right = plain.tiles(plain.prepare(x), plain.prepare(x[:3]), pad_to=8, pairs=1)[0]
    for one, other in zip(made, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6 * np.abs(other).max())


def test_large_images_class_by_class():
    spec = [conv(), repeat(2, RELU, conv()), GAP, dense(1)]
    x = np.random.default_rng(0).standard_normal((2, 16, 17, 1)).astype(np.float32)
    made, right = (Architecture.from_spec(layers)(x) for layers in (spec, written_out(spec)))
    np.testing.assert_allclose(made.ntk, right.ntk, rtol=1e-5)


def test_ten_thousand_layers_to_nine_digits():
    """Against the recursion of 60 digits; ReLU, where depth takes all directions together, and erf on its critical line."""
    x = np.random.default_rng(0).standard_normal((3, 6))
    x[2] = x[1] + 1e-7 * x[0]
    critical = (1.3758390073**0.5, 0.05**0.5)
    for layer, w_std, b_std in ((RELU, ROOT2, None), (ERF, *critical)):
        spec = [dense(1, w_std, b_std), repeat(10_000, layer, dense(1, w_std, b_std))]
        made = Architecture.from_spec(spec)(x)
        for i, j in ((0, 1), (1, 1), (1, 2)):
            nngp, ntk = (float(value) for value in kernels(canonical_spec(spec), x[i], x[j]))
            assert abs(made.nngp[i, j] / nngp - 1) < 1e-9
            assert abs(made.ntk[i, j] / ntk - 1) < 1e-9


def test_near_pairs_as_accurately_as_in_60_digits():
    spec = [dense(1, ROOT2, 0.1), repeat(30, RELU, dense(1, ROOT2, 0.1))]
    x = np.random.default_rng(0).standard_normal((2, 6))
    x[1] = x[0] * (1 + 1e-11) + 1e-9 * x[1]
    made = Architecture.from_spec(spec)(x)
    nngp, ntk = kernels(canonical_spec(spec), *x)
    assert abs(mp.mpf(float(made.ntk[0, 1])) / ntk - 1) < 1e-14
    assert abs(mp.mpf(float(made.nngp[0, 1])) / nngp - 1) < 1e-14


def test_programs_do_not_grow_with_the_repetitions():
    def size(times):
        network = Architecture.from_spec([dense(), repeat(times, RELU, dense()), dense(1)])
        return len(jax.make_jaxpr(lambda x: network(x).ntk)(np.ones((2, 3), np.float32)).jaxpr.pretty_print())

    assert size(10_000) <= size(10) + 100


def test_gradients_through_it():
    spec = [dense(1), repeat(3, ERF, dense(1)), dense(1)]
    x = np.random.default_rng(0).standard_normal((2, 3))
    with precision_context(np.float64):
        made, right = (
            jax.grad(lambda x, layers=layers: Architecture.from_spec(layers)(x).ntk[0, 1])(jax.numpy.asarray(x))
            for layers in (spec, written_out(spec))
        )
    np.testing.assert_allclose(made, right, rtol=1e-12)


def test_maps_of_covariances():
    spec = [dense(1), repeat(3, ERF, dense(1)), dense(1)]
    k, p, q = np.array([[0.2, -0.4]]), np.array([[1.0, 0.9]]), np.array([[0.7]])
    made, right = (Architecture.from_spec(layers).map(k, p, q) for layers in (spec, written_out(spec)))
    np.testing.assert_allclose(made, right, rtol=1e-12)
    made, right = (Architecture.from_spec(layers).map(p) for layers in (spec, written_out(spec)))
    np.testing.assert_allclose(made, right, rtol=1e-12)


def test_its_cost_is_that_of_the_layers_written_out():
    for name in ("begins_with_dense", "nested", "vec", "gap", "attention", "residual_images", "shrinking"):
        spec, plain = (canonical_spec(layers) for layers in (NETWORKS[name], written_out(NETWORKS[name])))
        one, other = (kernel_cost(layers, Architecture.from_spec(layers).steps((5, 4, 2))) for layers in (spec, plain))
        assert one == other, name
        assert traffic(NETWORKS["vec"], (5, 4, 2)) == traffic(written_out(NETWORKS["vec"]), (5, 4, 2))
    text = describe_kernel([FLATTEN, dense(), repeat(1000, RELU, dense()), dense(1)], (4, 4, 1))
    assert "2    repeat times=1000" in text
    assert "2.1    dense features=3" in text


def test_degrees_follow_from_all_repetitions():
    growing = [dense(1, 1.0, None), repeat(6, {"op": "softplus"}, dense(1, 1.5, 0.5)), dense(1)]
    x = np.random.default_rng(0).standard_normal((4, 5))
    chosen = with_degrees(growing, x, "float64")[1]["layers"][0]["degree"]
    alone = [layer["degree"] for layer in with_degrees(written_out(growing), x, "float64") if layer["op"] == "softplus"]
    assert chosen == max(alone)
    stated = [dense(1), repeat(4, {"op": "tanh", "degree": 20}, dense(1)), dense(1)]
    made, right = (expansion_error(layers, x) for layers in (stated, written_out(stated)))
    assert made == pytest.approx(right, rel=1e-9)


def test_specs_of_it(tmp_path):
    spec = canonical_spec([*NETWORKS["residual_images"][:2], *NETWORKS["nested"][1:]])
    for form in ("json", "yaml"):
        (tmp_path / f"a.{form}").write_text(dump_spec(spec, form))
        assert load_spec(tmp_path / f"a.{form}") == spec
    assert fingerprint(spec) == fingerprint(json.loads(canonical_json(spec)))
    assert fingerprint([dense(), repeat(2, RELU, dense())]) != fingerprint([dense(), repeat(3, RELU, dense())])
    assert dominance(canonical_spec([dense(), repeat(2, RELU, dense()), FLATTEN]), 1.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ([repeat(0, dense())], r"layer 0 \(repeat\): times=0 must be at least 1"),
        ([repeat(1.5, dense())], r"times=1.5 must be an integer"),
        ([repeat(2)], r"layer 0 \(repeat\): layers must be a list of at least one"),
        ([{"op": "repeat", "layers": [dense()]}], "needs times"),
        ([dense(), repeat(2, dense(), {"op": "no"})], r"layer 1 \(repeat\), layer 1 \(no\): unknown op"),
        ([repeat(300_000, dense())], "more than 200,000 layers"),
        ([repeat(1000, repeat(1000, dense()))], "more than 200,000 layers"),
        ([dense(), repeat(2, RELU)], r"layer 1 \(repeat\), layer 0 \(relu\) needs Gaussian"),
        ([conv(), residual([repeat(2, RELU)], []), GAP], r"branch 0, layer 0 \(repeat\), layer 0 \(relu\) needs Gauss"),
        ([repeat(2, conv(), FLATTEN), dense()], r"layer 0 \(repeat\), layer 0 \(conv\) acts on images"),
    ],
)
def test_what_cannot_be_repeated_is_refused_by_place(spec, text):
    with pytest.raises(ConfigError, match=text):
        Architecture.from_spec(spec)


def test_windows_that_no_longer_fit_are_refused_by_place():
    with pytest.raises(ConfigError, match=r"layer 0 \(repeat\), layer 0 \(conv\) has a window of 3 pixels"):
        Architecture.from_spec([repeat(3, conv(3, padding="VALID"), RELU), GAP])(images(2))


def test_pairs_near_each_other_are_found_in_it():
    x = np.ones((2, 3)) + np.array([[0.0], [1e-9]])
    assert near.search(x, None).rows.size == 1
