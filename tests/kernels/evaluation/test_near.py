"""Pairs of images that coincide or nearly do: as accurate as any other, at every depth, however many they are."""

from __future__ import annotations

import jax
import mpmath as mp
import numpy as np
import pytest
from mp_networks import kernels

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import zoo
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.evaluation import distance_form, host, near
from ntkpipe.kernels.parameters import ACTIVATIONS

RELU, FLATTEN, GAP = {"op": "relu"}, {"op": "flatten"}, {"op": "global_avg_pool"}


def dense(w_std=2**0.5, b_std=0.1, **settings):
    return {"op": "dense", "features": 8, "w_std": w_std, "b_std": b_std} | settings


def deep(activation, depth, *arguments):
    return [*[dense(*arguments), activation] * depth, dense(*arguments)]


def before_relu(activation):
    """An activation whose distances two layers of angles see."""
    return [dense(1.3, 0.2), activation, dense(), RELU, dense(2**0.5, None), RELU, dense(1.0)]


NETWORKS = {
    "relu": deep(RELU, 3),
    "relu_without_bias": deep(RELU, 3, 2**0.5, None),
    "deep_relu": deep(RELU, 50),
    "abs": deep({"op": "abs"}, 3, 1.0, None),
    "leaky": deep({"op": "leaky_relu", "alpha": 0.2}, 3),
    "chaotic_erf": deep({"op": "erf"}, 60, 1.6, 0.05),
    "steep_erf": deep({"op": "erf", "b": 30.0}, 2, 1.5),
    "flat_erf": deep({"op": "erf", "a": 0.5, "b": 0.4, "c": 0.5}, 2, 0.1, None),
    "small_gelu": deep({"op": "gelu"}, 2, 0.05, None),
    "gelu": deep({"op": "gelu"}, 3, 1.5),
    "large_gelu": deep({"op": "gelu"}, 3, 30.0),
    "erf": before_relu({"op": "erf", "c": 0.4}),
    "gelu_relu": before_relu({"op": "gelu"}),
    "sin": before_relu({"op": "sin", "c": 0.3}),
    "exp": before_relu({"op": "exp", "b": 0.5}),
    "gaussian": before_relu({"op": "gaussian"}),
    "rbf": before_relu({"op": "rbf", "gamma": 0.4}),
    "exp_normalized": before_relu({"op": "exp_normalized", "gamma": 1.0, "shift": -1.0}),
    "hermite": before_relu({"op": "hermite", "degree": 4}),
    "monomial": before_relu({"op": "monomial", "degree": 3}),
    "rectified": before_relu({"op": "rectified_monomial", "degree": 2}),
    "residual": [
        dense(),
        {"op": "residual_sum", "branches": [[RELU, dense()], []]},
        {"op": "layer_norm", "axis": [-1]},
        RELU,
        dense(1.2, 0.3),
        {"op": "residual_sum", "branches": [[RELU, dense()], [{"op": "erf"}, dense()]]},
        RELU,
        dense(),
    ],
    "dropout": [dense(), RELU, {"op": "dropout", "rate": 0.7}, dense(), RELU, dense()],
    "concat": [
        dense(),
        {"op": "fan_in_concat", "branches": [[RELU], [{"op": "erf"}, dense()], []], "fractions": [0.25, 0.625, 0.125]},
        dense(),
        RELU,
        dense(),
    ],
    "product": [
        dense(),
        {"op": "fan_in_product", "branches": [[dense(), RELU], [{"op": "erf"}, dense(1.2, None)], []]},
        dense(),
        RELU,
        dense(),
    ],
}
# Multiples of eps relative to both images' own kernels. A chaotic network multiplies a rounding by its whole distance; 50 layers
# add up 50 roundings.
LARGEST = {"chaotic_erf": 400, "steep_erf": 200, "deep_relu": 200}


def near_pairs(dtype, seed=0):
    """Pairs at every distance, and nearly in proportion, and opposite."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((7, 6))
    distances = np.array([0.0, 1e-2, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
    y = x + distances[:, None] * rng.standard_normal((7, 6))
    return np.tile(x, (3, 1)).astype(dtype), np.concatenate([y, -y, y * (1 + 1e-6)]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_against_sixty_digits(name, dtype):
    arch = Architecture.from_spec(NETWORKS[name])
    x, y = near_pairs(dtype)
    made, layers = arch(x, y), arch.to_spec()
    own = [arch.diagonal(images.astype(np.float64)) for images in (x, y)]
    wanted = [kernels(layers, *pair) for pair in zip(x, y, strict=True)]
    for index in range(2):
        scale = np.sqrt(own[0][index] * own[1][index])
        values = np.diag(made[index]).tolist()
        error = [abs(float(mp.mpf(value) - want[index])) for value, want in zip(values, wanted, strict=True)]
        assert (np.array(error) <= LARGEST.get(name, 30) * np.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("op", ["sign", "rectified_monomial"])
def test_jumps_against_sixty_digits(op):
    """Their kernels fall with the angle, and those of a ReLU after them with its root: 1e-16 more is 1e-8 more of angle 0."""
    arch = Architecture.from_spec(before_relu({"op": op} | ({"degree": 0} if op != "sign" else {})))
    x, y = near_pairs("float64")
    x, y = x[:6], y[:6]  # angles above 1e-9
    for index, made in enumerate(arch(x, y)):
        wanted = [float(kernels(arch.to_spec(), *pair)[index]) for pair in zip(x, y, strict=True)]
        np.testing.assert_allclose(np.diag(made), wanted, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "layers",
    [deep({"op": "erf"}, 60, 1.6, 0.05), deep(RELU, 200), before_relu({"op": "tanh"}), deep({"op": "elu"}, 3)],
    ids=["chaotic", "relu", "tanh", "elu"],
)
def test_copies_have_the_kernels_of_the_diagonal(layers, dtype):
    arch, x = Architecture.from_spec(layers), near_pairs(dtype)[0][:7]
    other = np.concatenate([x[3:], x[:3]])
    both = np.concatenate([x, other])
    for tile, square, own in zip(arch(other, x), arch(both), arch.diagonal(x), strict=True):
        assert (tile[np.arange(7), (np.arange(7) + 3) % 7] == np.roll(own, -3)).all()
        assert (square[7:, :7][np.arange(7), (np.arange(7) + 3) % 7] == np.roll(own, -3)).all()
        assert (square == square.T).all()


@pytest.mark.parametrize("activation", [{"op": "tanh"}, {"op": "swish"}, {"op": "elu"}])
def test_expansions_meet_the_diagonal_at_a_steady_rate(activation):
    """The NTK of angles falls in proportion to the distance, of which a kernel's rounding leaves 4 digits at 1e-10."""
    arch = Architecture.from_spec(before_relu(activation))
    x, v = np.random.default_rng(1).standard_normal((2, 1, 6))
    own = arch.diagonal(x).ntk[0]
    lost = [(own - arch(x, x + h * v).ntk[0, 0]) / h for h in (1e-6, 1e-8, 1e-10)]
    np.testing.assert_allclose(lost, lost[0], rtol=1e-3)


def conv(size=3, strides=1, **settings):
    shape = {"filter": [size, size], "strides": [strides, strides], "padding": "SAME"}
    return {"op": "conv", "features": 4, "w_std": 2**0.5, "b_std": 0.2} | shape | settings


IMAGE_NETWORKS = {
    "flattened": [conv(), RELU, conv(3, 2), RELU, FLATTEN, dense()],
    "residual": [
        conv(padding="CIRCULAR"),
        {"op": "residual_sum", "branches": [[RELU, conv()], []]},
        {"op": "layer_norm", "axis": [1, 2, 3]},
        RELU,
        conv(2, 2, b_std=None, padding="VALID"),
        FLATTEN,
        dense(),
        RELU,
        dense(),
    ],
    "pooled": [conv(), RELU, conv(), RELU, GAP, dense()],
    "sizes": [
        conv(strides=2, op="conv_transpose"),
        RELU,
        {"op": "resize", "shape": [5, 6], "method": "nearest"},
        conv(op="conv_local"),
        {"op": "fan_in_concat", "branches": [[RELU], [conv()], []]},
        conv(),
        RELU,
        FLATTEN,
        dense(),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_images_meet_the_diagonal_at_a_steady_rate(name):
    arch = Architecture.from_spec(IMAGE_NETWORKS[name])
    x, v = np.random.default_rng(1).standard_normal((2, 1, 6, 5, 2))
    own = arch.diagonal(x).ntk[0]
    lost = [(own - arch(x, x + h * v).ntk[0, 0]) / h for h in (1e-6, 1e-8, 1e-10)]
    np.testing.assert_allclose(lost, lost[0], rtol=1e-3)
    low = x.astype(np.float32)
    for image in (low, low + np.float32(1e-4) * v.astype(np.float32)):
        for made, want in zip(arch(low, image), arch(low.astype(np.float64), image.astype(np.float64)), strict=True):
            np.testing.assert_allclose(made, want, rtol=4e-7)


@pytest.mark.slow
def test_images_after_a_pool_are_off_by_the_root_of_rounding_at_most():
    """A pool mixes pixels: distances after it are differences of covariances in float64, and angles off by their root, 1e-8."""
    pool = {"op": "avg_pool", "window": [2, 2], "strides": [2, 2], "padding": "VALID"}
    arch = Architecture.from_spec([conv(), RELU, pool, conv(), RELU, FLATTEN, dense(), RELU, dense()])
    x, v = np.random.default_rng(1).standard_normal((2, 1, 6, 6, 2))
    for dtype in ("float32", "float64"):
        images = x.astype(dtype)
        for made, own in zip(arch(images, images.copy()), arch.diagonal(images), strict=True):
            assert made[0, 0] == own[0]
    own = arch.diagonal(x).ntk[0]
    slope = abs(own - arch(x, x + 1e-4 * v).ntk[0, 0]) / 1e-4
    for h in (1e-8, 1e-12):
        assert abs(own - arch(x, x + h * v).ntk[0, 0]) <= 2 * slope * h + 3e-8 * own


def test_dropout_tells_copies_apart():
    """Copies have masks of their own: less than the diagonal, and the limit of near ones."""
    layers = [FLATTEN, dense(), RELU, {"op": "dropout", "rate": 0.7}, dense(), RELU, dense()]
    arch, x = Architecture.from_spec(layers), near_pairs("float64")[0][:3]
    made, own = arch(np.concatenate([x, x]))[1], arch.diagonal(x)[1]
    copies = made[3:, :3].diagonal()
    assert (copies < 0.9 * own).all()
    limit = arch(x, x * (1 + 1e-5))[1].diagonal()
    np.testing.assert_allclose(copies, limit, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_at_once(monkeypatch, dtype):
    """A tile full of copies and near ones in chunks of two pairs is that of one chunk, and symmetric."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.tile(rng.standard_normal((1, 6)), (6, 1)), rng.standard_normal((3, 6))])
    x[2:5] *= 1 + 1e-5 * rng.standard_normal((3, 6))
    x[7] = 0
    x = np.concatenate([x, x[5:8]]).astype(dtype)
    arch = Architecture.from_spec(NETWORKS["relu"])
    whole, tile = arch(x), arch(x[:5], x[4:])
    monkeypatch.setattr(near, "_SIZES", (2,))
    monkeypatch.setattr(distance_form, "_VALUES", 6)
    monkeypatch.setattr(host, "strip_rows", lambda rows, cols, itemsize: (4, 2))
    for a, b, part in zip(whole, arch(x), tile, strict=True):
        assert (b == b.T).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(a).max())
        np.testing.assert_allclose(part, a[:5, 4:], rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(a).max())
        assert b[7, 11] == b[7, 7]  # images of zeros equal each other


def test_a_data_set_far_from_the_origin():
    """All pairs nearly coincide: their distances come from products of what they differ by from their mean."""
    rng = np.random.default_rng(0)
    x = 5.0 + np.abs(rng.standard_normal((64, 1))) * 0.05 * rng.standard_normal((64, 6))
    x[7] = x[3] * (1 + 1e-9)
    x[8] = x[3] + 1e-8 * rng.standard_normal(6)
    arch = Architecture.from_spec(NETWORKS["relu"])
    made = arch(x)
    pairs = [(7, 3), (8, 3), *((row, row // 2) for row in range(10, 64))]
    for index in range(2):
        wanted = [float(kernels(arch.to_spec(), x[i], x[j])[index]) for i, j in pairs]
        values = [made[index][i, j] for i, j in pairs]
        np.testing.assert_allclose(values, wanted, rtol=30 * np.finfo(np.float64).eps)


def test_networks_of_one_evaluation():
    arch, x = Architecture.sharing([zoo.fcn(depth) for depth in (1, 2, 3)]), near_pairs("float64")[0][:3]
    with precision_context("float64"):
        together = arch.tiles(arch.prepare(x), arch.prepare(x * (1 + 1e-7)))
    for depth, made in zip((1, 2, 3), together, strict=True):
        alone = Architecture.from_spec(zoo.fcn(depth))(x, x * (1 + 1e-7))
        for a, b in zip(made, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("paired", [False, True])
def test_on_a_device(paired):
    """Found and put in there as well; under tracing they are pairs like all others."""
    arch, (x, y) = Architecture.from_spec(NETWORKS["relu"]), near_pairs("float32")
    images = (x[:7], y[:7]) if paired else (np.concatenate([x[:7], y[:7]]), None)
    made, expected = arch.on_device(*images), arch(*images)
    traced = jax.jit(arch.on_device)(*images)
    for a, b, c in zip(made, expected, traced, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
        np.testing.assert_allclose(c, b, rtol=1e-3)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_pairs_that_nearly_coincide_are_what_plain_evaluation_gives_but_for_its_rounding(op):
    """Of every nonlinearity, at variances far below and above one: a wrong formula is off by more than a lost half of the digits."""
    layer = {"op": op} | {"leaky_relu": {"alpha": 0.1}, "ab_relu": {"a": -0.5, "b": 1.2}, "monomial": {"degree": 3},
                          "rectified_monomial": {"degree": 0}, "hermite": {"degree": 2},
                          "elementwise": {"function": "tanh(x) + x"}}.get(op, {})  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3))
    z = x + 10.0 ** -np.array([[2], [3], [4], [6], [8], [10]]) * rng.normal(size=(6, 3))
    network = Architecture.from_spec([dense(1.0, None), layer, dense()])
    plain = jax.jit(lambda x, z: network(x, z))
    for size in (0.02, 1.0, 4.0):  # of the images instead of the weights: one program serves all
        with precision_context(x.dtype):
            expected = plain(size * x, size * z)
        for made, wanted in zip(network(size * x, size * z), expected, strict=True):
            scale = np.abs(np.asarray(wanted)).max()
            np.testing.assert_allclose(np.diagonal(made), np.diagonal(wanted), rtol=0, atol=1e-7 * scale)


def test_distance_form_is_accurate_where_layers_bring_all_points_together():
    """Twenty ReLU layers of small weights and a bias: angles of 1e-6, of which float64 loses what distances keep."""
    spec = [*[layer for _ in range(20) for layer in (dense(0.5, 1.0), {"op": "relu"})], dense(0.5, 1.0)]
    arch = Architecture.from_spec([{"op": "flatten"}, *spec])
    x = np.random.default_rng(0).standard_normal((6, 5))
    rows, columns = x[:2], x[2:]
    with_distances, usual = arch.in_distance_form(rows, columns), arch(rows, columns)
    exact = np.array([[kernels(spec, u, v)[1] for v in columns] for u in rows], dtype=np.float64)
    assert np.abs(with_distances.ntk / exact - 1).max() < 40 * 2.0**-52
    assert np.abs(np.asarray(usual.ntk) / exact - 1).max() > 1e4 * 2.0**-52


def test_distance_form_is_of_flat_networks():
    arch = Architecture.from_spec([conv(), {"op": "relu"}, {"op": "flatten"}, dense()])
    with pytest.raises(ConfigError, match="flatten"):
        arch.in_distance_form(np.ones((2, 4, 4, 1)), np.ones((2, 4, 4, 1)))
