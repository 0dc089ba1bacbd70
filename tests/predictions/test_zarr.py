from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError, CorruptionError, IncompleteError, StoreError
from ntkpipe.predictions.read import read_predictions, verify_predictions
from ntkpipe.predictions.write import write_predictions


def assert_equal(a, b) -> None:
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype or x.dtype.kind == "U", field.name
            np.testing.assert_array_equal(x, y)
        elif field.name == "bound_terms":
            assert x.keys() == y.keys()
            for name in x:
                np.testing.assert_array_equal(x[name], y[name])
        else:
            assert x == y, field.name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regression": True, "variance": False},
        {"covariance": True},
        {"kernels": ("nngp",), "times": (np.inf,), "ridges": (0.0,), "p": 1, "c": 2},
    ],
)
def test_round_trip(make, tmp_path, options) -> None:
    predictions = make(**options)
    fingerprint = write_predictions(predictions, tmp_path / "predictions.zarr")
    again = read_predictions(tmp_path / "predictions.zarr")
    assert_equal(predictions, again)
    assert again.fingerprint() == fingerprint == predictions.fingerprint()
    assert verify_predictions(tmp_path / "predictions.zarr") == []
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.zarr"]


def test_covariance_can_be_left_out(make, tmp_path) -> None:
    write_predictions(make(covariance=True), tmp_path / "a.zarr")
    assert read_predictions(tmp_path / "a.zarr", covariance=False).covariance is None


def test_xarray_opens_it_and_selects_by_name(make, tmp_path) -> None:
    predictions = make(covariance=True, class_names=("airplane", "ship", "Übung 猫"))
    write_predictions(predictions, tmp_path / "predictions.zarr")
    dataset = xr.open_zarr(tmp_path / "predictions.zarr")
    assert dataset["mean"].dims == ("kernel", "time", "ridge", "test", "class")
    selected = dataset["mean"].sel(kernel="nngp", time=np.inf, ridge=1e-4)
    np.testing.assert_array_equal(selected.values, predictions.mean[1, 2, 1])
    np.testing.assert_array_equal(selected.sel({"class": "Übung 猫"}).values, predictions.mean[1, 2, 1, :, 2])
    np.testing.assert_array_equal(dataset["label"].values, predictions.label)
    assert dataset["label"].dtype == np.int64
    np.testing.assert_array_equal(dataset["test"].values, predictions.test_index)
    assert dataset["covariance"].dims == ("kernel", "time", "ridge", "test", "test_other")
    assert (dataset["bound_kind"].sel(time=np.inf) == "estimate").all()
    assert dataset.attrs["ridge_scale"] == "relative"


@pytest.mark.parametrize("stored", [True, False])
def test_xarray_finds_the_best_and_writes_netcdf(make, tmp_path, stored) -> None:
    predictions = make(covariance=True, class_names=("airplane", "ship", "Übung 猫"))
    write_predictions(predictions, tmp_path / "predictions.zarr")
    dataset = xr.open_zarr(tmp_path / "predictions.zarr") if stored else predictions.to_xarray()
    best = dataset["mean"].idxmax("class").sel(kernel="ntk", time=np.inf, ridge=0.0)
    assert best.values.tolist() == [predictions.class_names[k] for k in predictions.mean[0, -1, 0].argmax(axis=1)]
    assert dataset["mean"].mean(("test", "class")).idxmax("time").dtype == np.float64
    dataset.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as back:
        np.testing.assert_array_equal(back["mean"].values, predictions.mean)
        assert back["kernel"].values.tolist() == list(predictions.kernels)
        assert np.isinf(back["time"].values[-1])
        attributes = back.attrs["attributes"] if stored else json.dumps(back.attrs)
    for name, value in predictions.attributes.items():
        found = json.loads(attributes)[name]
        assert found == value or json.loads(found) == value


def test_groups_of_the_first_version_are_read(make, tmp_path) -> None:
    predictions = make()
    write_predictions(predictions, tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "zarr.json"
    metadata = json.loads(path.read_text())
    attributes = metadata["attributes"]
    for name in ("attributes", "array_fingerprints"):
        attributes[name] = json.loads(attributes[name])
    attributes["format_version"] = 1
    del metadata["consolidated_metadata"]
    path.write_text(json.dumps(metadata))
    assert_equal(read_predictions(tmp_path / "a.zarr"), predictions)
    attributes["format_version"] = 3
    path.write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="reads 2"):
        read_predictions(tmp_path / "a.zarr")


def test_missing_is_incomplete_and_foreign_is_refused(tmp_path) -> None:
    with pytest.raises(IncompleteError, match="ntkpipe predict"):
        read_predictions(tmp_path / "absent.zarr")
    assert len(verify_predictions(tmp_path / "absent.zarr")) == 1
    xr.Dataset({"x": ("y", np.ones(2))}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match="no predictions"):
        read_predictions(tmp_path / "other.zarr")
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(StoreError, match="cannot be opened"):
        read_predictions(tmp_path / "file.zarr")


def test_overwriting(make, tmp_path) -> None:
    write_predictions(make(seed=0), tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match="exists"):
        write_predictions(make(seed=1), tmp_path / "a.zarr", overwrite=False)
    write_predictions(make(seed=1), tmp_path / "a.zarr")
    assert_equal(read_predictions(tmp_path / "a.zarr"), make(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_failed_write_leaves_the_old_group_and_no_litter(make, tmp_path, monkeypatch) -> None:
    from ntkpipe.predictions import write

    write_predictions(make(seed=0), tmp_path / "a.zarr")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write, "_replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_predictions(make(seed=1), tmp_path / "a.zarr")
    assert_equal(read_predictions(tmp_path / "a.zarr"), make(seed=0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_a_chunk_is_found_and_named(make, tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("flip") / "a.zarr"
    write_predictions(make(p=3, c=2, ridges=(0.0,)), folder)
    chunks = sorted(path for path in folder.rglob("c/**/*") if path.is_file()) + sorted(folder.glob("*/c"))
    chunk = data.draw(st.sampled_from([path for path in chunks if path.is_file()]))
    content = bytearray(chunk.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    chunk.write_bytes(content)
    problems = verify_predictions(folder)
    assert len(problems) == 1
    assert str(folder / chunk.relative_to(folder).parts[0]) in problems[0]
    with pytest.raises(CorruptionError, match="ntkpipe predict"):
        read_predictions(folder)


def test_missing_truncated_and_swapped_chunks_are_found(make, tmp_path) -> None:
    def chunks(name):
        write_predictions(make(), tmp_path / name)
        return sorted(path for path in (tmp_path / name / "mean").rglob("*") if path.is_file() and "c" in path.parts)

    chunks("missing.zarr")[0].unlink()
    first = chunks("truncated.zarr")[0]
    first.write_bytes(first.read_bytes()[:-8])
    a, b = chunks("swapped.zarr")[:2]
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())  # each checksum stays right
    b.write_bytes(content)
    for name in ("missing", "truncated", "swapped"):
        assert any("mean" in problem for problem in verify_predictions(tmp_path / f"{name}.zarr")), name


def test_changed_metadata_is_found(make, tmp_path) -> None:
    write_predictions(make(), tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["ridge_scale"] = "absolute"
    path.write_text(json.dumps(metadata))
    assert "zarr.json" in verify_predictions(tmp_path / "a.zarr")[0]
    write_predictions(make(), tmp_path / "a.zarr")
    metadata = json.loads(path.read_text())
    metadata["consolidated_metadata"]["metadata"]["mean"]["shape"][0] = 1
    path.write_text(json.dumps(metadata))
    assert "mean/zarr.json disagrees" in verify_predictions(tmp_path / "a.zarr")[0]
    path.write_text("{")
    assert "cannot be opened" in verify_predictions(tmp_path / "a.zarr")[0]
