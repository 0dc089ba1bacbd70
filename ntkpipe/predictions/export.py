"""Predictions as Parquet, CSV, NPZ or Zarr, for other programs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.predictions.schema import Predictions
from ntkpipe.predictions.write import write_predictions

FORMATS = ("parquet", "csv", "npz", "zarr")
# 65,536 rows of 10 classes are 11 MB: large enough for Parquet to be efficient, small enough to ignore.
ROWS_PER_GROUP = 2**16


def export_predictions(
    predictions: Predictions, path: str | os.PathLike[str], format: str, *, overwrite: bool = False
) -> Path:
    """Write predictions for other programs, under a temporary name first and renamed at the end.

    `parquet` and `csv` hold one row per kernel, time, ridge and test point, in that order, with the columns

    - `kernel`, `time` (inf allowed), `ridge`, `test_index`, `bound_kind`;
    - in classification `label`, `label_name`, `predicted`, `predicted_name`, `margin` (largest mean less the second
      largest); in regression `target_0` ... `target_{c-1}`;
    - `mean_0` ... `mean_{c-1}`, `error_bound_0` ... `error_bound_{c-1}`, and `variance` with its `variance_bound` where
      computed.

    Parquet keeps class names, ridge scale and attributes as JSON under the metadata key `ntkpipe`. `npz` holds every
    array by its name (no pickled objects; `attributes` is JSON text) and, as `zarr` does, the covariances too.

    Args:
        predictions: what to export.
        path: of the file (of the folder, for `zarr`).
        format: `parquet`, `csv`, `npz` or `zarr`.
        overwrite: replace what is there.

    Returns:
        The path written.

    Raises:
        ConfigError: an unknown format, or something is there and `overwrite` is false, or it cannot be written there.
        ResourceError: the disk is full.
    """
    target = Path(path).expanduser()
    if format not in FORMATS:
        raise ConfigError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    try:
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists and is left as it is: choose another path, or set overwrite=true")
        if target.is_dir() and format != "zarr":
            raise ConfigError(f"{target} is a folder: format={format} needs the path of a file")
        _write(predictions, target, format, overwrite=overwrite)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space to write {target}: free some, or choose another path") from error
        raise ConfigError(f"{target} cannot be written ({error.strerror or error}): choose another path") from error
    return target


def _write(predictions: Predictions, target: Path, format: str, *, overwrite: bool) -> None:
    if format == "zarr":
        write_predictions(predictions, target, overwrite=overwrite)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        {"parquet": _write_parquet, "csv": _write_csv, "npz": _write_npz}[format](predictions, temporary)
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def iterate_tables(predictions: Predictions, rows: int = ROWS_PER_GROUP) -> Iterator[pa.Table]:
    """The rows of `export_predictions` as Arrow tables of at most `rows` rows, each of one (kernel, time, ridge)."""
    for entry in predictions.entries():
        for start in range(0, len(predictions.test_index), rows):
            yield _table(predictions, entry, slice(start, start + rows))


def _table(predictions: Predictions, entry: tuple[int, int, int], rows: slice) -> pa.Table:
    k, t, r = entry
    mean, bound = predictions.mean[entry][rows], predictions.error_bound[entry][rows]
    count, outputs = mean.shape
    columns: dict[str, Any] = {
        "kernel": pa.array([predictions.kernels[k]] * count, pa.string()),
        "time": np.full(count, predictions.times[t]),
        "ridge": np.full(count, predictions.ridges[r]),
        "test_index": predictions.test_index[rows],
    }
    if predictions.label is not None:
        names = np.array(predictions.class_names, dtype=object)
        label, predicted = predictions.label[rows], mean.argmax(1)
        top = np.partition(mean, -2, axis=1)[:, -2:] if outputs > 1 else np.full((count, 2), np.nan)
        columns |= {
            "label": label,
            "label_name": pa.array(names[label], pa.string()),
            "predicted": predicted,
            "predicted_name": pa.array(names[predicted], pa.string()),
            "margin": top[:, 1] - top[:, 0],
        }
    else:
        columns |= {f"target_{i}": predictions.target[rows, i] for i in range(outputs)}
    columns |= {f"mean_{i}": mean[:, i] for i in range(outputs)}
    columns |= {f"error_bound_{i}": bound[:, i] for i in range(outputs)}
    columns["bound_kind"] = pa.array([str(predictions.bound_kind[entry])] * count, pa.string())
    if predictions.variance is not None:
        columns["variance"] = predictions.variance[entry][rows]
    if predictions.variance_bound is not None:
        columns["variance_bound"] = predictions.variance_bound[entry][rows]
    return pa.table(columns)


def _write_parquet(predictions: Predictions, path: Path) -> None:
    described = {
        "class_names": predictions.class_names,
        "ridge_scale": predictions.ridge_scale,
        "fingerprint": predictions.fingerprint(),
        "attributes": predictions.attributes,
    }
    tables = iterate_tables(predictions)
    first = next(tables)
    schema = first.schema.with_metadata({"ntkpipe": json.dumps(described)})
    with arrow_parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def _write_csv(predictions: Predictions, path: Path) -> None:
    tables = iterate_tables(predictions)
    first = next(tables)
    with arrow_csv.CSVWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_npz(predictions: Predictions, path: Path) -> None:
    arrays = {name: array for name, (array, _) in predictions.arrays().items()}
    arrays["ridge_scale"] = np.array(predictions.ridge_scale)
    arrays["attributes"] = np.array(json.dumps(predictions.attributes))
    with path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
