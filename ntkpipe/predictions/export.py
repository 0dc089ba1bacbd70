"""Writes predictions as Parquet, CSV, NPZ or Zarr, for other programs."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.extras import require
from ntkpipe.predictions.schema import Predictions
from ntkpipe.predictions.tables import iterate_tables
from ntkpipe.predictions.write import write_predictions
from ntkpipe.storage.replace import replacing

FORMATS = ("parquet", "csv", "npz", "zarr")


def check_format(format: str, setting: str = "format") -> None:
    """Refuse an unknown format, or one whose package is not installed.

    Args:
        format: one of the formats of `export_predictions`.
        setting: the setting that names it, for the message.

    Raises:
        ConfigError: if the format is unknown. The text names the formats.
        MissingExtraError: if its package is not installed. The text gives the command that installs it.
    """
    if format not in FORMATS:
        raise ConfigError(f"{setting}={format} is not one of {', '.join(FORMATS)}")
    if format in ("parquet", "csv"):
        require("pyarrow", f"{setting}={format}", "npz and zarr need no further package")


def export_predictions(
    predictions: Predictions, path: str | os.PathLike[str], format: str, *, overwrite: bool = False
) -> Path:
    """Write predictions for other programs. The file gets a temporary name first and is renamed at the end.

    `parquet` and `csv` hold one row per kernel, time, ridge and test point, in that order, with these columns:

    - `kernel`, `time` (may be inf), `ridge`, `test_index`, `bound_kind`;
    - for classification `label` and `label_name` if labels are known, `predicted`, `predicted_name`, and `margin` (the
      largest mean minus the second largest);
    - for regression `target_0` ... `target_{c-1}`, if targets are known;
    - `mean_0` ... `mean_{c-1}` and `error_bound_0` ... `error_bound_{c-1}`;
    - `error_estimate_0` ... `error_estimate_{c-1}`, if errors were estimated;
    - `variance` and `variance_bound`, if they were computed (`variance_0` and so on for several standardised targets);
    - `noise_0` ... `noise_{c-1}`, if the noise of targets is included.

    Parquet keeps class names, ridge scale and attributes as JSON under the metadata key `ntkpipe`. `npz` holds every
    array by its name, without pickled objects; `attributes` is JSON text. `npz` and `zarr` also hold the covariances.

    Args:
        predictions: the predictions to export.
        path: path of the file, or of the folder for `zarr`.
        format: `parquet`, `csv`, `npz` or `zarr`.
        overwrite: replace an existing file.

    Returns:
        The path of the written file.

    Raises:
        ConfigError: if the format is unknown, the path exists and `overwrite` is false, or it cannot be written.
        ResourceError: if the disk is full.
    """
    target = Path(path).expanduser()
    check_format(format)
    try:
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists: choose another path, or set overwrite=true")
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
    import pyarrow.parquet as arrow_parquet

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
    import pyarrow.csv as arrow_csv

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
