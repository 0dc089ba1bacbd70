from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.predictions.export import export_predictions, iterate_tables
from ntkpipe.predictions.read import read_predictions


def check_frame(frame: pd.DataFrame, predictions) -> None:
    K, T, R, p, c = predictions.shape
    assert len(frame) == K * T * R * p
    assert ("error_estimate_0" in frame) == (predictions.error_estimate is not None)
    names = ["mean", "error_bound", *([] if predictions.error_estimate is None else ["error_estimate"])]
    for name, array in ((name, getattr(predictions, name)) for name in names):
        values = frame[[f"{name}_{i}" for i in range(c)]].to_numpy().reshape(K, T, R, p, c)
        np.testing.assert_array_equal(values, array)  # exactly: text keeps 17 digits
    np.testing.assert_array_equal(frame["time"].to_numpy().reshape(K, T, R, p)[0, :, 0, 0], predictions.times)
    np.testing.assert_array_equal(frame["test_index"].to_numpy()[:p], predictions.test_index)
    np.testing.assert_array_equal(frame["variance"].to_numpy(), predictions.variance.ravel())
    np.testing.assert_array_equal(frame["variance_bound"].to_numpy(), predictions.variance_bound.ravel())
    assert frame["kernel"].tolist() == np.repeat(predictions.kernels, T * R * p).tolist()
    if predictions.is_classification:
        names = predictions.class_names
        assert frame["label_name"].tolist()[:p] == [names[i] for i in predictions.label]
        predicted = predictions.mean.argmax(-1).ravel()
        assert frame["predicted_name"].tolist() == [names[i] for i in predicted]
        top = np.sort(predictions.mean, axis=-1)
        np.testing.assert_array_equal(frame["margin"], (top[..., -1] - top[..., -2]).ravel())
    else:
        np.testing.assert_array_equal(frame["target_1"].to_numpy()[:p], predictions.target[:, 1])
        assert "label" not in frame


HOSTILE = ('a,"b"\nc', "=1+1", "<script>alert(1)</script>")


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_tables_hold_every_value(make, tmp_path, format, regression) -> None:
    predictions = make(regression=regression, class_names=HOSTILE)
    path = export_predictions(predictions, tmp_path / f"new folder/p.{format}", format)
    if format == "parquet":
        frame = pd.read_parquet(path)
    else:
        # Python's own float() rounds to nearest; what pandas does by default depends on its version.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        text = ("kernel", "label_name", "predicted_name", "bound_kind")
        frame = frame.assign(**{name: frame[name].map(float) for name in frame if name not in text})
    check_frame(frame, predictions)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_parquet_is_written_in_groups_and_describes_itself(make, tmp_path) -> None:
    predictions = make()
    file = pq.ParquetFile(export_predictions(predictions, tmp_path / "p.parquet", "parquet"))
    assert file.num_row_groups == 12
    described = json.loads(file.schema_arrow.metadata[b"ntkpipe"])
    assert described["class_names"] == list(predictions.class_names)
    assert described["fingerprint"] == predictions.fingerprint()


def test_tables_are_bounded(make) -> None:
    tables = list(iterate_tables(make(p=7), rows=3))
    assert [table.num_rows for table in tables[:3]] == [3, 3, 1]


def test_npz_holds_every_array_without_pickle(make, tmp_path) -> None:
    predictions = make(covariance=True)
    with np.load(export_predictions(predictions, tmp_path / "p.npz", "npz"), allow_pickle=False) as loaded:
        for name, (array, _) in predictions.arrays().items():
            np.testing.assert_array_equal(loaded[name], array)
        assert json.loads(str(loaded["attributes"])) == predictions.attributes


def test_zarr_is_a_copy(make, tmp_path) -> None:
    path = export_predictions(make(), tmp_path / "copy.zarr", "zarr")
    assert read_predictions(path).fingerprint() == make().fingerprint()


@pytest.mark.parametrize("format", ["parquet", "csv", "npz", "zarr"])
def test_nothing_is_overwritten_unless_asked(make, tmp_path, format) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="overwrite=true"):
        export_predictions(make(), path, format)
    assert path.read_text() == "mine"
    export_predictions(make(), path, format, overwrite=True)
    assert path.is_dir() == (format == "zarr")


def test_a_folder_is_never_replaced_by_a_file(make, tmp_path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        export_predictions(make(), tmp_path, "csv", overwrite=True)


def test_unknown_format(make, tmp_path) -> None:
    with pytest.raises(ConfigError, match="parquet"):
        export_predictions(make(), tmp_path / "p", "xlsx")


def test_a_single_output_has_no_margin(make, tmp_path) -> None:
    predictions = make(regression=True, c=1)
    frame = pd.read_parquet(export_predictions(predictions, tmp_path / "p.parquet", "parquet"))
    np.testing.assert_array_equal(frame["mean_0"], predictions.mean.ravel())
