"""Predictions as Parquet, CSV, NPZ or Zarr, for other programs."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.predictions.schema import Predictions
from ntkpipe.predictions.tables import iterate_tables
from ntkpipe.predictions.write import write_predictions
from ntkpipe.storage.replace import replacing

FORMATS = ("parquet", "csv", "npz", "zarr")


def export_predictions(
    predictions: Predictions, path: str | os.PathLike[str], format: str, *, overwrite: bool = False
) -> Path:
    """Write predictions for other programs, under a temporary name first and renamed at the end.

    `parquet` and `csv` hold one row per kernel, time, ridge and test point, in that order, with the columns

    - `kernel`, `time` (inf allowed), `ridge`, `test_index`, `bound_kind`;
    - in classification `label`, `label_name`, `predicted`, `predicted_name`, `margin` (largest mean less the second
      largest); in regression `target_0` ... `target_{c-1}`; labels and targets only where they are known;
    - `mean_0` ... `mean_{c-1}`, `error_bound_0` ... `error_bound_{c-1}`, `error_estimate_0` ... where they were made, and
      `variance` with its `variance_bound` where
      computed (`variance_0` and so on of several standardised targets), and `noise_0` ... where it was asked for.

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
    with replacing(target) as temporary:
        {"parquet": _write_parquet, "csv": _write_csv, "npz": _write_npz}[format](predictions, temporary)


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
