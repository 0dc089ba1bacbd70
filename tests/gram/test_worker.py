"""One tile, arrays to arrays."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.gram import worker
from ntkpipe.gram.worker import architecture, compute_diagonal, compute_tile, flip
from ntkpipe.kernels.evaluation import flat, host
from ntkpipe.kernels.zoo import fcn

SPEC = fcn(2)


def images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 4, 4, 3))


@pytest.mark.parametrize("out_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tile_is_what_the_architecture_gives(dtype, out_dtype):
    x, y = images(9), images(7, 1)
    made = compute_tile(SPEC, x, y, diagonal=False, dtype=dtype, out_dtype=out_dtype)
    expected = architecture(SPEC)(x.astype(dtype), y.astype(dtype))
    for name in ("nngp", "ntk"):
        assert made[name].dtype == out_dtype
        assert made[name].flags.c_contiguous
        np.testing.assert_array_equal(made[name], getattr(expected, name).astype(out_dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_diagonal_tiles(dtype):
    x = images(50)
    made = compute_tile(SPEC, x, None, diagonal=True, dtype=dtype, out_dtype=dtype)
    own = compute_diagonal(SPEC, x, dtype=dtype)
    few = compute_diagonal(SPEC, x[:3], dtype=dtype)
    for name in ("nngp", "ntk"):
        assert own[name].dtype == np.float64
        np.testing.assert_array_equal(np.diag(made[name]), own[name])
        np.testing.assert_array_equal(few[name], own[name][:3])
        np.testing.assert_array_equal(made[name], made[name].T)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_ragged_tiles_are_padded_inside(monkeypatch, diagonal, on_device):
    if on_device:
        monkeypatch.setattr(host, "is_default", lambda: False)
    x, y = images(9), None if diagonal else images(7, 1)
    options = {"diagonal": diagonal, "dtype": "float64", "out_dtype": "float64"}
    plain = compute_tile(SPEC, x, y, **options)
    padded = compute_tile(SPEC, x, y, **options, pad_to=16)
    for name in ("nngp", "ntk"):
        assert padded[name].shape == plain[name].shape
        # Only the order of sums of 48 products can differ.
        np.testing.assert_allclose(padded[name], plain[name], rtol=0, atol=1e-12 * np.abs(plain[name]).max())


def test_ragged_tiles_share_compiled_functions():
    spec = fcn(2, w_std=1.23)  # of no other test
    options = {"dtype": "float32", "out_dtype": "float32", "pad_to": 16}
    compute_tile(spec, images(16), images(16, 1), diagonal=False, **options)
    first = architecture(spec)
    cached = [flat.compiled_pairs(steps) for steps in first._flat_runs(images(1))]
    before = [f._cache_size() for f in cached]
    compute_tile(spec, images(5), images(16, 1), diagonal=False, **options)
    compute_tile(spec, images(5), images(3, 1), diagonal=False, **options)
    assert [f._cache_size() for f in cached] == before
    assert architecture(list(map(dict, spec))) is first


def test_bad_arguments():
    x = images(2)
    with pytest.raises(ConfigError, match="out_dtype='float16'"):
        compute_tile(SPEC, x, x, diagonal=False, dtype="float32", out_dtype="float16")
    with pytest.raises(ConfigError, match="both blocks"):
        compute_tile(SPEC, x, None, diagonal=False, dtype="float32", out_dtype="float32")
    with pytest.raises(ConfigError, match="dtype='half'"):
        compute_diagonal(SPEC, x, dtype="half")
    with pytest.raises(ConfigError, match=r"layer 0 \(dense\)"):
        compute_tile([{"op": "dense", "features": 2}], x, x, diagonal=False, dtype="float32", out_dtype="float32")
    assert worker.architecture(SPEC) is worker.architecture(SPEC)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_of_a_diagonal_tile_are_symmetric_and_their_diagonals_exact(dtype):
    # More images than one block of pairs with their mirror images, and a ragged one.
    x = images(21)
    for symmetry, sign in (("even", 1), ("odd", -1)):
        made = compute_tile(SPEC, x, None, diagonal=True, dtype=dtype, out_dtype=dtype, symmetry=symmetry)
        plain = compute_tile(SPEC, x, None, diagonal=True, dtype=dtype, out_dtype=dtype)
        mirror = compute_tile(SPEC, x, flip(x), diagonal=False, dtype=dtype, out_dtype=dtype)
        own = compute_diagonal(SPEC, x, dtype=dtype, symmetry=symmetry)
        assert set(own) == {"nngp", "ntk", "plain_nngp", "plain_ntk"}
        for name in ("nngp", "ntk"):
            np.testing.assert_array_equal(made[name], made[name].T)
            # Sums of 48 products in another order, a few maps.
            scale = 100 * np.finfo(dtype).eps * np.abs(plain[name]).max()
            assert np.abs(made[name] - (plain[name] + sign * mirror[name])).max() <= scale
            assert np.abs(np.diag(made[name]) - own[name]).max() <= scale
            np.testing.assert_array_equal(own[f"plain_{name}"], np.diag(plain[name]))


def test_images_without_width_have_no_flips():
    with pytest.raises(ConfigError, match="no width to flip"):
        compute_tile(SPEC, np.ones((2, 5)), None, diagonal=True, dtype="float64", out_dtype="float64", symmetry="even")
