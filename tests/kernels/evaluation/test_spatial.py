"""Properties of kernels of networks that look at images, however their covariances are cut into blocks."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from brute_force import evaluate

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import zoo
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.evaluation import host
from ntkpipe.kernels.evaluation.blocks import BLOCK_BYTES, choose_batch
from ntkpipe.kernels.evaluation.self_pairs import own_program
from ntkpipe.kernels.evaluation.spatial import evaluate as evaluate_tile
from ntkpipe.kernels.evaluation.spatial import tile_program
from ntkpipe.kernels.sequences import masked_spec
from ntkpipe.kernels.spec import canonical_spec

RELU, FLATTEN, GAP = {"op": "relu"}, {"op": "flatten"}, {"op": "global_avg_pool"}
DENSE = {"op": "dense", "features": 1, "w_std": 1.3, "b_std": 0.1}
ROOT2 = math.sqrt(2)


def conv(size=3, strides=1, padding="SAME", features=4, b_std=0.2, w_std=ROOT2, op="conv"):
    shape = {"filter": [size, size], "strides": [strides, strides], "padding": padding}
    return {"op": op, "features": features, "w_std": w_std, "b_std": b_std} | shape


def pool(size, strides, padding="VALID", **settings):
    return {"op": "avg_pool", "window": [size, size], "strides": [strides, strides], "padding": padding} | settings


def residual(*branches):
    return {"op": "residual_sum", "branches": [list(branch) for branch in branches]}


def resize(size, method):
    return {"op": "resize", "shape": [size, size], "method": method}


def concat(*branches):
    return {"op": "fan_in_concat", "branches": [list(branch) for branch in branches]}


def product(*branches):
    return {"op": "fan_in_product", "branches": [list(branch) for branch in branches]}


ATTENTION = {
    "op": "global_self_attention",
    "n_heads": 1,
    "n_chan_out": 4,
    "n_chan_key": 4,
    "n_chan_val": 4,
    "mechanism": "SOFTMAX",
    "b_std": 0.1,
}
NETWORKS = {
    "diagonal": [conv(), RELU, conv(3, 2), {"op": "erf"}, FLATTEN, DENSE],
    "pooled": [conv(), residual([RELU, conv()], []), RELU, pool(2, 2), conv(), RELU, GAP, DENSE],
    "attention": [conv(), {"op": "layer_norm", "axis": [-1]}, RELU, ATTENTION, RELU, GAP, DENSE],
    "sizes": [
        conv(3, 2, op="conv_transpose"),
        RELU,
        resize(4, "linear"),
        conv(op="conv_local"),
        concat([RELU], [conv()]),
        conv(2),
        product([RELU, conv()], []),
        conv(),
        RELU,
        GAP,
        DENSE,
    ],
    "dropout": [conv(3, 2), RELU, {"op": "dropout", "rate": 0.7}, conv(2), RELU, GAP, DENSE, RELU, DENSE],
}


@pytest.fixture(scope="module")
def architectures():
    return {name: Architecture.from_spec(spec) for name, spec in NETWORKS.items()}


def images(n, shape=(6, 5, 2), dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(dtype)


def blocks_of(monkeypatch, size):
    monkeypatch.setitem(BLOCK_BYTES, "cpu", size)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in NETWORKS), ("diagonal", "float32"), ("pooled", "float32")]
)
def test_symmetric_and_positive_with_exact_diagonals(architectures, name, dtype):
    arch, x = architectures[name], images(9, dtype=dtype)
    made, diagonal = arch(x), arch.diagonal(x)
    for block, own in zip(made, diagonal, strict=True):
        assert block.dtype == dtype
        assert (np.diag(block) == own).all()
        assert (block == block.T).all()
        values = np.linalg.eigvalsh(block.astype(np.float64))
        # Weyl: a perturbation of entries by e moves eigenvalues by at most n e.
        assert values.min() >= -9 * 50 * np.finfo(dtype).eps * np.abs(block).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_of_any_shape_are_blocks_of_the_whole(architectures, name):
    """To the last bit: ragged tiles padded to the edge of the others run the same program, pair by pair."""
    arch, x = architectures[name], images(9)
    with precision_context("float64"):
        whole = arch.tiles(arch.prepare(x), None, pad_to=9)[0]
        for rows, columns in ((slice(0, 4), slice(4, 9)), (slice(8, 9), slice(0, 3)), (slice(2, 3), slice(7, 8))):
            made = arch.tiles(arch.prepare(x[rows]), arch.prepare(x[columns]), pad_to=9)[0]
            for part, block in zip(made, whole, strict=True):
                assert part.shape == (rows.stop - rows.start, columns.stop - columns.start)
                if rows.start > columns.start:  # the part of the whole that was computed, not mirrored
                    assert (part == block[rows, columns]).all()
                np.testing.assert_allclose(part, block[rows, columns], rtol=1e-13)
        corner = arch.tiles(arch.prepare(x[5:9]), None, pad_to=9)[0]
        for part, block in zip(corner, whole, strict=True):
            assert (part == block[5:9, 5:9]).all()


@pytest.mark.parametrize("name", ["diagonal", "pooled", "attention"])
def test_columns_that_equal_the_rows(architectures, name):
    """Off the diagonal the same; on it, the angle between equal pixels is rounded: off by the root of 2 eps at most."""
    arch, x = architectures[name], images(9)
    same, other = arch(x), arch(x, x.copy())
    off = ~np.eye(9, dtype=bool)
    for a, b in zip(same, other, strict=True):
        np.testing.assert_allclose(a[off], b[off], rtol=1e-13)
        np.testing.assert_allclose(np.diag(a), np.diag(b), rtol=3 * math.sqrt(2 * 20 * np.finfo(float).eps))


def test_dropout_knows_which_images_are_the_same(architectures):
    """Equal images in two places have masks of their own: only the diagonal of a block with itself is larger."""
    arch, x = architectures["dropout"], images(9)
    x[4] = x[2]
    same, other = arch(x), arch(x, x.copy())
    off = ~np.eye(9, dtype=bool)
    for a, b in zip(same, other, strict=True):
        np.testing.assert_allclose(a[off], b[off], rtol=1e-13)
        assert (np.diag(a) > 1.02 * np.diag(b)).all()
        assert abs(a[2, 4] / b[2, 2] - 1) <= 1e-13
        assert a[2, 4] < 0.98 * a[2, 2]


# Sums of the same terms in another order: some dozen roundings a layer.
REORDERED = 100 * np.finfo(np.float64).eps


@pytest.mark.parametrize("name", ["pooled", "attention", "dropout"])
def test_neither_blocks_nor_threads_change_values(architectures, name, monkeypatch):
    """Classes of rows one by one, or all at once; one pair at a time, or many; threads not even the last bit."""
    arch, x, y = architectures[name], images(9), images(9, seed=1)
    together = (*arch(x, y), *arch(x))
    blocks_of(monkeypatch, 64)
    monkeypatch.setenv("NPROC", "2")
    one_by_one = (*arch(x, y), *arch(x))
    monkeypatch.setenv("NPROC", "1")
    alone = (*arch(x, y), *arch(x))
    for a, b, c in zip(together, one_by_one, alone, strict=True):
        assert (b == c).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=REORDERED * np.abs(a).max())


def test_neither_does_the_device(architectures, monkeypatch):
    """Intermediate results kept in memory, as on CPUs, or as XLA likes."""
    arch, x, y = architectures["pooled"], images(9), images(9, seed=1)
    on_cpu = (*arch(x, y), *arch(x))
    monkeypatch.setattr(host, "is_default", lambda: False)
    for a, b in zip(on_cpu, (*arch(x, y), *arch(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=REORDERED * np.abs(a).max())


FLIPPED = {
    "transposed": [conv(3, op="conv_transpose"), RELU, conv(2, 2, op="conv_transpose"), RELU, GAP, DENSE],
    "local": [conv(op="conv_local"), RELU, conv(op="conv_local"), RELU, GAP, DENSE],
    "resized": [conv(), RELU, resize(7, "linear"), conv(), RELU, resize(3, "linear"), FLATTEN, DENSE],
    "nearest": [conv(), RELU, resize(12, "nearest"), conv(), RELU, FLATTEN, DENSE],
    "positions": [conv(), RELU, ATTENTION | {"pos_emb_type": "SUM", "pos_emb_decay_fn": "exp(-d)"}, FLATTEN, DENSE],
    "joined": [conv(), concat([RELU], []), conv(), product([RELU, conv()], []), FLATTEN, DENSE],
}
NOT_FLIPPED = {
    "transposed": [conv(), RELU, conv(3, 2, op="conv_transpose"), RELU, conv(), GAP, DENSE],
    "nearest": [conv(), RELU, resize(3, "nearest"), conv(), RELU, FLATTEN, DENSE],
}


@pytest.mark.parametrize("name", FLIPPED)
def test_flips_of_both_images_change_nothing(name):
    """Windows and triangles are symmetric, distances too, and so are the gaps of as many pixels as a filter has."""
    arch, x, y = Architecture.from_spec(FLIPPED[name]), images(2, (6, 4, 2)), images(2, (6, 4, 2), seed=1)
    for a, b in zip(arch(x, y), arch(x[:, :, ::-1], y[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", NOT_FLIPPED)
def test_flips_matter_where_windows_lie_unevenly(name):
    """An odd filter over gaps of one pixel, and the right one of two pixels that are equally near."""
    arch, x, y = Architecture.from_spec(NOT_FLIPPED[name]), images(2, (6, 6, 2)), images(2, (6, 6, 2), seed=1)
    assert np.abs(arch(x, y).ntk - arch(x[:, :, ::-1], y[:, :, ::-1]).ntk).max() > 1e-4


def test_a_decay_that_is_no_covariance_is_refused():
    spec = [ATTENTION | {"pos_emb_type": "SUM", "pos_emb_decay_fn": "max(1 - d / 3, -1)"}, GAP, DENSE]
    with pytest.raises(
        ConfigError, match=r"layer 0 \(global_self_attention\) pos_emb_decay_fn=.* is not a covariance of \[6, 5\]"
    ):
        Architecture.from_spec(spec)(images(2))


def test_cyclic_shifts_change_nothing_without_edges():
    """Circular convolutions commute with shifts, of which the mean over pixels knows nothing: k(x, shifted y) = k(x, y)."""
    spec = [conv(3, 1, "CIRCULAR"), RELU, pool(3, 1, "CIRCULAR"), conv(2, 1, "CIRCULAR"), RELU, GAP, DENSE]
    arch, x, y = Architecture.from_spec(spec), images(4), images(4, seed=1)
    plain = arch(x, y)
    for shift in ((1, 0), (0, 2), (4, 3)):
        for a, b in zip(plain, arch(x, np.roll(y, shift, axis=(1, 2))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    # Of pixels in another order it is another.
    scrambled = y.reshape(4, -1, 2)[:, np.random.default_rng(0).permutation(30)].reshape(y.shape)
    assert np.abs(plain.nngp - arch(x, scrambled).nngp).max() > 1e-4


def test_zero_images():
    spec = [conv(b_std=None), RELU, pool(2, 2), conv(b_std=None), RELU, GAP, DENSE | {"b_std": None}]
    x = images(4, (4, 4, 2), "float32")
    x[1] = 0
    x[2, :, :2] = 0
    made = Architecture.from_spec(spec)(x)
    for block in made:
        assert np.isfinite(block).all()
        assert (block[1] == 0).all()
        assert (block[:, 1] == 0).all()
        assert block[2, 2] > 0


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_one_pixel_of_one_channel(padding):
    """A filter over one pixel reads it once with zeros around, and 9 times if it wraps: then it is a dense layer."""
    x = images(5, (1, 1, 1))
    made = Architecture.from_spec([conv(3, 2, padding), RELU, conv(3, 1, padding), RELU, GAP, DENSE])(x)
    scale = 1 if padding == "CIRCULAR" else 1 / 3
    hidden = {"op": "dense", "features": 4, "w_std": ROOT2 * scale, "b_std": 0.2}
    expected = Architecture.from_spec([FLATTEN, hidden, RELU, hidden, RELU, DENSE])(x)
    # All cosines that are 1 or nearly so: of one channel, images are multiples of each other.
    np.testing.assert_allclose(made.nngp, expected.nngp, rtol=1e-13)
    np.testing.assert_allclose(made.ntk, expected.ntk, rtol=1e-6)


CRITICAL = [conv(3, 1, "CIRCULAR", b_std=None), RELU]


@pytest.mark.parametrize(
    ("depth", "readout"),
    [
        (8, GAP),
        pytest.param(100, GAP, marks=pytest.mark.exhaustive),  # two minutes of compilation
        pytest.param(30, FLATTEN, marks=pytest.mark.slow),
    ],
)
def test_float32_through_many_layers(depth, readout):
    """Float32 against float64, with u = 2^-24 and errors relative to sqrt(k(x, x) k(x', x')).

    The normalised arc-cosine map has a slope of at most 1 and a mean over taps one of 1, so that the NNGP's error grows by the
    rounding of both, at most 12 + 6 u a layer. The factor that enters the NTK in every layer depends on the angle, whose error is that
    of the cosine divided by the sine, over pi / 2. Relative to the kernels' roots, means over pixels weigh at most pi more
    than to each pixel's: the ReLU kernel of perpendicular pixels is 1 / pi of that of equal ones.
    """
    u, x = 2.0**-24, images(3, (3, 3, 2))
    spec = [*CRITICAL * depth, readout, {"op": "dense", "features": 1}]
    arch, x32 = Architecture.from_spec(spec), x.astype(np.float32)
    sine = evaluate(spec_with_defaults(spec), x32)[2]
    low, high = arch(x32), arch(x32.astype(np.float64))
    bound = math.pi * (18 * depth + 20) * u
    scale = [np.sqrt(np.outer(np.diag(b), np.diag(b))) for b in high]
    assert all(np.isfinite(block).all() for block in low)
    assert (np.abs(low.nngp - high.nngp) <= bound * scale[0]).all()
    assert (np.abs(low.ntk - high.ntk) <= (depth * (bound / sine / (math.pi / 2) + 12 * u) + bound) * scale[1]).all()
    assert np.median(np.abs(low.ntk - high.ntk) / scale[1]) <= depth * 1e-6


def spec_with_defaults(spec):
    return Architecture.from_spec(spec).to_spec()


# ---- which covariances are computed


@pytest.mark.parametrize(
    ("spec", "shape", "entries"),
    [
        ([conv(), RELU, conv(), RELU, FLATTEN], (8, 8), [64] * 5),
        ([conv(), RELU, conv(3, 2), RELU, FLATTEN], (7, 7), [49, 49, 49, 16, 16]),  # a stride that does not divide
        ([conv(), RELU, conv(), RELU, GAP], (8, 6), [48**2] * 5),
        ([conv(3, 2), RELU, conv(3, 2), RELU, GAP], (8, 8), [16**2, 64, 64, 16, 16]),
        ([conv(1), RELU, pool(3, 1, "SAME"), FLATTEN], (8, 8), [40**2, 40**2, 40**2, 64]),  # 5 classes of 8
        ([conv(1), RELU, pool(2, 2), conv(), RELU, FLATTEN], (8, 8), [24**2] * 3 + [16] * 3),  # 3 classes of 8
        ([conv(), RELU, ATTENTION, RELU, FLATTEN], (4, 4), [16**2] * 3 + [16] * 2),
        ([conv(), RELU, {"op": "dropout", "rate": 0.5}, FLATTEN], (4, 4), [16] * 4),
        ([conv(), residual([RELU, conv(3, 2)], [conv(1, 2)]), RELU, FLATTEN], (8, 8), [64, 64, 16, 16]),
        ([conv(), RELU, conv() | {"op": "conv_local"}, RELU, GAP], (4, 4), [16] * 3 + [16**2] * 2),
        ([conv(), RELU, conv(3, 2) | {"op": "conv_transpose"}, FLATTEN], (4, 4), [16, 16, 16, 64]),
        ([conv(), RELU, resize(8, "nearest"), FLATTEN], (4, 4), [16, 16, 16, 64]),
        ([conv(), RELU, resize(8, "linear"), FLATTEN], (5, 5), [15**2] * 3 + [64]),  # 3 classes of 5
        ([conv(), resize(4, "linear"), FLATTEN], (4, 4), [16] * 3),  # what is left as it is
    ],
)
def test_only_what_later_layers_need_is_computed(spec, shape, entries):
    steps = Architecture.from_spec([*spec, DENSE]).steps((*shape, 3))
    assert [step.incoming.entries for step in steps] == [*entries, 1]
    own = Architecture.from_spec([*spec, DENSE]).steps((*shape, 3), own=True)
    assert all(0 in classes for step in own for classes in step.incoming.support)


# ---- what is refused


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([conv(), residual([], []), RELU, FLATTEN], r"layer 1 \(residual_sum\) needs independent branches"),
        ([conv(), residual([], [pool(1, 1)]), RELU, FLATTEN], r"layer 1 \(residual_sum\) needs independent branches"),
        (
            [conv(), residual([RELU], [RELU, conv()]), FLATTEN],
            r"layer 1 \(residual_sum\) needs Gaussian.*branch 0 ends",
        ),
        ([conv(), RELU, residual([conv()], []), FLATTEN], r"layer 2 \(residual_sum\) needs Gaussian.*branch 1 ends"),
        (
            [conv(), residual([RELU, conv(), residual([conv(), RELU, RELU, conv()], [])], []), FLATTEN],
            r"layer 1 \(residual_sum\), branch 0, layer 2 \(residual_sum\), branch 0, layer 2 \(relu\) needs Gaussian",
        ),
        ([conv(), residual([RELU, conv(features=5)], []), FLATTEN], "5 in branch 0 and 4 in branch 1"),
        ([conv(), residual([], [RELU, conv(features=5)]), FLATTEN], "4 in branch 0 and 5 in branch 1"),
        ([conv(), residual([FLATTEN, DENSE], [conv()]), FLATTEN], r"layer 1 \(residual_sum\) adds.*different shapes"),
        ([FLATTEN, conv(), RELU], r"layer 1 \(conv\) acts on images"),
        ([GAP, pool(2, 2)], r"layer 1 \(avg_pool\) acts on images"),
        ([GAP, ATTENTION], r"layer 1 \(global_self_attention\) acts on images"),
        ([GAP, GAP], r"layer 1 \(global_avg_pool\) acts on images"),
        ([conv(), {"op": "dense", "features": 3}], r"layer 1 \(dense\) acts on flat"),
        ([conv(), concat([RELU], [conv(features=3)]), RELU, FLATTEN], r"layer 2 \(relu\) needs Gaussian"),
        ([conv(), product([RELU], []), FLATTEN], r"layer 1 \(fan_in_product\) needs independent branches"),
        ([conv(), product([conv(features=3)], []), FLATTEN], "multiplies.*3 in branch 0 and 4 in branch 1"),
        ([conv(), concat([FLATTEN], []), FLATTEN], r"layer 1 \(fan_in_concat\) puts side by side.*different shapes"),
        ([FLATTEN, resize(3, "linear")], r"layer 1 \(resize\) acts on images"),
        ([FLATTEN, conv() | {"op": "conv_local"}], r"layer 1 \(conv_local\) acts on images"),
        ([conv(), RELU, {"op": "layer_norm", "axis": [1, 2, 3]}], r"layer 2 \(layer_norm\) needs Gaussian"),
        ([conv(), {"op": "dropout", "rate": 0.5}, RELU], r"layer 2 \(relu\) needs Gaussian"),
    ],
)
def test_networks_without_a_formula_are_refused(layers, text):
    with pytest.raises(ConfigError, match=text):
        Architecture.from_spec(layers)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"ends with an image of \[3, 3\] pixels"):
        Architecture.from_spec([conv(3, 2), RELU])(images(2, (5, 6, 1)))
    with pytest.raises(ConfigError, match=r"layer 1 \(conv\) has a window of 3 pixels, but its input has 2"):
        Architecture.from_spec([conv(3, 1, "VALID"), conv(3, 1, "VALID"), FLATTEN])(images(2, (4, 9, 1)))
    with pytest.raises(ConfigError, match=r"layer 0 \(conv\) acts on images"):
        Architecture.from_spec([conv(), FLATTEN])(images(2, (9,)))
    strided = Architecture.from_spec([conv(), residual([conv(3, 2)], [conv(3, 1, "VALID")]), FLATTEN])
    with pytest.raises(ConfigError, match=r"layer 1 \(residual_sum\) adds activations of different shapes"):
        strided.check_input((8, 8, 1))
    strided.check_input((4, 4, 1))  # both give 2 x 2


@pytest.mark.parametrize("layer", [conv(op="conv_transpose"), conv(op="conv_local"), resize(3, "linear")])
def test_what_is_of_planes_alone(layer):
    """Not of volumes, nor of sequences that end at different places."""
    with pytest.raises(ConfigError, match=r"layer 0 \(\w+\) acts on images and sequences, not on volumes"):
        Architecture.from_spec([layer, GAP, DENSE]).check_input((3, 4, 5, 2))
    with pytest.raises(ConfigError, match=r"layer 0 \(\w+\) does not support sequences of different lengths"):
        masked_spec(canonical_spec([layer, GAP, DENSE]), 6)


def test_positional_embeddings_of_sequences_and_volumes():
    spec = canonical_spec([ATTENTION | {"pos_emb_type": "SUM"}, GAP, DENSE])
    with pytest.raises(ConfigError, match="has positional embeddings"):
        masked_spec(spec, 6)
    decay = {"pos_emb_type": "CONCAT", "pos_emb_decay_fn": "exp(-d)", "val_pos_emb": True}
    made = Architecture.from_spec([ATTENTION | decay, GAP, DENSE])(images(2, (2, 3, 2, 2)))
    assert np.isfinite(made.ntk).all()


def test_images_may_be_jax_arrays_and_traced(architectures):
    arch, x = architectures["diagonal"], images(9, dtype="float32")
    made = arch(jax.numpy.asarray(x))
    assert all(isinstance(block, jax.Array) for block in made)
    for a, b in zip(made, arch(x), strict=True):
        assert (np.asarray(a) == b).all()
    traced = jax.jit(lambda x: arch(x).nngp)(x)
    np.testing.assert_allclose(traced, made.nngp, atol=1e-5 * float(np.abs(made.nngp).max()))


# ---- several networks in one evaluation


SHARED = {
    "pooled": [[*[conv(), RELU] * depth, GAP, DENSE] for depth in (1, 2)],
    "several_readouts": [
        [conv(), RELU, FLATTEN, DENSE],
        [conv(), RELU, GAP, DENSE],
        [conv(), RELU, pool(2, 2), conv(), RELU, FLATTEN, DENSE],
        [conv(), RELU, pool(2, 2), conv(), RELU, conv(3, 2), RELU, GAP, DENSE],
    ],
    "strided": [
        [conv(), RELU, GAP, DENSE],
        [conv(), RELU, conv(3, 2), RELU, FLATTEN, DENSE],
        [conv(), RELU, conv(3, 2), RELU, conv(2), RELU, FLATTEN, DENSE],
    ],
}


@pytest.mark.parametrize(
    ("name", "block_bytes"), [("pooled", 1 << 20), ("pooled", 64), ("several_readouts", 64), ("strided", 64)]
)
def test_networks_that_share_an_evaluation(name, block_bytes, monkeypatch):
    """Each as by itself, in the order in which they were given."""
    blocks_of(monkeypatch, block_bytes)
    specs = SHARED[name][::-1]
    together, x, y = Architecture.sharing(specs), images(3), images(3, seed=1)
    with precision_context("float64"):
        rows, columns = together.prepare(x), together.prepare(y)
        same, others, own = together.tiles(rows, None), together.tiles(rows, columns), together.diagonals(x)
    for k, spec in enumerate(specs):
        nngp, ntk, sine = evaluate(spec_with_defaults(spec), np.concatenate([x, y]))
        bound = 1e-12 + 100 * np.finfo(float).eps / sine
        for j, expected in enumerate((nngp, ntk)):
            for made, block in ((same, expected[:3, :3]), (others, expected[:3, 3:]), (own, np.diag(expected)[:3])):
                assert np.abs(made[k][j] - block).max() <= bound * np.abs(expected).max(), (k, j)


@pytest.mark.parametrize(
    ("shallow", "text"),
    [
        ([conv(), RELU], r"ends with an image of \[4, 4\]"),
        ([conv(), RELU, conv(5, 1, "VALID"), FLATTEN], r"layer 2 \(conv\) has a window of 5"),
        ([conv(), RELU, DENSE], r"layer 2 \(dense\) acts on flat"),
        ([conv(), RELU, residual([conv(), RELU, conv()], []), GAP], "plain readouts"),
    ],
)
def test_shallower_networks_are_refused_like_any(shallow, text):
    with pytest.raises(ConfigError, match=text):
        Architecture.sharing([shallow, [conv(), RELU, conv(), RELU, GAP, DENSE]]).check_input((4, 4, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*NETWORKS, "large windows"])
def test_programs_for_accelerators_give_the_same_kernels(architectures, name, dtype):
    """Other orders of the same sums: of up to 9 taps a layer, in some ten layers."""
    large = [conv(5, padding="CIRCULAR"), RELU, conv(3, 2, padding="VALID"), RELU, GAP, DENSE]
    arch = architectures[name] if name in NETWORKS else Architecture.from_spec(large)
    x1, x2 = images(3, dtype=dtype), images(5, dtype=dtype, seed=1)
    shape = x1.shape[1:]
    with precision_context(dtype):
        steps, rows, columns = arch.steps(shape), arch.prepare(x1), arch.prepare(x2)
        made = [
            evaluate_tile(
                steps,
                x1,
                rows.along(steps),
                x2,
                columns.along(steps),
                pad_to=None,
                context=lambda: precision_context(dtype),
                on_cpu=on_cpu,
            )[0]
            for on_cpu in (True, False)
        ]
    for expected, kernel in zip(*made, strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=100 * np.finfo(dtype).eps * np.abs(expected).max())


@pytest.mark.parametrize("network", ["myrtle", "attention"])
@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_programs_can_be_made_for_accelerators(network, platform):
    """Lowered to what their compilers take, barriers included; whether these are fast, no machine here can tell."""
    spec = zoo.myrtle(5, (8, 8, 1)) if network == "myrtle" else zoo.attention(1)
    arch = Architecture.from_spec(spec)
    shape = (8, 8, 1)
    steps, own_steps = arch.steps(shape), arch.steps(shape, own=True)
    prepared = arch.prepare(images(2, shape, "float32"))
    block = (prepared.images, prepared.along(steps))
    batch = choose_batch(steps, 4, pairs=2, on_cpu=False)
    one = np.int32(1)
    tile = tile_program(steps, batch).trace(one, one, one, *block, *block)
    own = own_program(own_steps, True, False).trace(one, np.moveaxis(prepared.images, 0, -1))
    for traced in (tile, own):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "optimization_barrier" in text
        assert "stablehlo.case" not in text  # the walls that hold on CPUs make accelerators wait for the host
