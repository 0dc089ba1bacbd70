"""Products of given features as a kernel source: blocks of columns, memory that is planned, the Python interface."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import ntkpipe as nk
from ntkpipe.errors import DataError
from ntkpipe.gram import features as tiles


def arrays(n=23, p=6, f=40, dtype="float64"):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, f)).astype(dtype), rng.standard_normal((p, f)).astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
@pytest.mark.parametrize("at_once", [64 << 20, 512])
def test_tiles_are_products_whatever_is_read_at_once(monkeypatch, tmp_path, dtype, tolerance, at_once):
    monkeypatch.setattr(tiles, "_AT_ONCE", at_once)
    train, test = arrays()
    stored = zarr.create_array(str(tmp_path / "J.zarr"), shape=train.shape, chunks=(7, 6), dtype="float64")
    stored[:] = train
    gram = nk.Gram.from_features(tmp_path / "J.zarr", test, scale=40.0, dtype=dtype, edge=8)
    assert gram.compute().computed == 9
    scale = np.abs(train @ train.T / 40).max()
    np.testing.assert_allclose(gram.train().to_numpy(), train @ train.T / 40, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(gram.test().to_numpy(), test @ train.T / 40, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(gram.train().diagonal(), np.einsum("ij,ij->i", train, train) / 40, rtol=1e-13)
    np.testing.assert_array_equal(gram.train().to_numpy(), gram.train().to_numpy().T)


def test_columns_are_read_in_whole_chunks():
    def columns(chunks, rows):
        array = nk_array((1000, 5000), chunks)
        return tiles.columns_at_once(tiles.GivenFeatures(array, array), rows, "float32")

    assert columns((), 1 << 20) == 16
    assert columns((10, 7), 1 << 20) == 14
    assert columns((10, 600), 1 << 20) == 600
    assert columns((), 100) == 5000
    cost = tiles.feature_cost(tiles.GivenFeatures(*2 * (nk_array((1000, 5000), (10, 600)),)), 1 << 20, "float32")
    assert (cost.seen, cost.product_flops) == (600, 10000.0)


def nk_array(shape, chunks):
    from ntkpipe.data.given_array import GivenArray

    return GivenArray("x", shape, "float32", chunks, ())


def test_it_solves_and_refuses(tmp_path):
    train, test = arrays()
    targets = np.random.default_rng(2).standard_normal((23, 2))
    gram = nk.Gram.from_features(train, test, scale=10.0, dtype="float64", store=str(tmp_path / "store"))
    gram.compute()
    found = (
        nk.Eigh()
        .solve(gram.train(), targets, ridges=[0.1], ridge_scale="absolute")
        .predict(gram.test(), times=[nk.inf])
    )
    exact = test @ train.T @ np.linalg.solve(train @ train.T + 1.0 * np.eye(23), targets)
    np.testing.assert_allclose(found.mean[0, 0, 0], exact, atol=1e-10)
    again = nk.Gram.from_features(train, test, scale=10.0, dtype="float64", store=str(tmp_path / "store"))
    assert again.compute().computed == 0
    assert "features" in repr(again)
    with pytest.raises(DataError, match="features of each point"):
        nk.Gram.from_features(train[:, :5], test)
    train[2, 2] = np.nan
    with pytest.raises(DataError, match="entry"):
        nk.Gram.from_features(train, test)
