"""Writes `predictions.zarr`, a Zarr v3 group with checksums that xarray can open.

The group appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ntkpipe.errors import ConfigError
from ntkpipe.predictions.schema import Predictions, array_fingerprint, combined_fingerprint

FORMAT_VERSION = 2
"""Version of the format. Since 2, attributes are text, names have a fixed width, and the group holds array metadata."""

DESCRIPTIONS = {
    "kernel": "ntk: all layers trained; nngp: the readout trained; ntkgp: posterior with the NTK as covariance",
    "time": "training time in gradient steps; inf is training to convergence",
    "ridge": "added to the diagonal of the train-train kernel; see the group's ridge_scale",
    "test": "index of the test point in the original test set",
    "class": "class, or output in regression",
    "label": "true class, a position along the dimension class",
    "target": "what the mean is regressed on",
    "mean": "predicted mean of the infinitely wide network",
    "error_bound": "bound of the numerical error of mean; see bound_kind",
    "error_estimate": "estimate of the numerical error of mean: 99% of the errors are at most this",
    "bound_kind": "rigorous, estimate, or minimum_norm (directions left out, no bound)",
    "variance": "predictive variance of each output; outputs are independent and share it",
    "variance_bound": "bound of the numerical error of variance",
    "noise": "variance of the targets about what networks predict",
    "covariance": "predictive covariance between test points of each output",
}


def write_predictions(predictions: Predictions, path: str | os.PathLike[str], *, overwrite: bool = True) -> str:
    """Write predictions as a Zarr group. It gets a temporary name first and is renamed at the end.

    `xarray.open_zarr(path)` opens the group. There `ds["mean"].sel(kernel="ntk")` works (`ds.mean` is a method of
    xarray), and so do `idxmax` and `to_netcdf`. Chunks carry CRC-32C checksums, and the group holds the SHA-256 of
    every array.

    Args:
        predictions: the predictions to write.
        path: path of the group, such as `runs/a/predictions.zarr`.
        overwrite: replace an existing group. The old group stays until the new one is complete.

    Returns:
        The fingerprint of the content, a SHA-256 in hexadecimal.

    Raises:
        ConfigError: if the path exists and `overwrite` is false.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: choose another path, or set overwrite=true")
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    temporary = target.with_name(f".{target.name}.{token}.partial")
    try:
        with warnings.catch_warnings():
            # Zarr warns that other programs may not support texts of fixed width or metadata of a whole group.
            warnings.filterwarnings("ignore", message="The data type .* does not have a Zarr V3 specification")
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            fingerprint = _write_group(predictions, temporary)
        _replace(temporary, target, token)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def _write_group(predictions: Predictions, path: Path) -> str:
    arrays = predictions.arrays()
    hashes = {name: array_fingerprint(array) for name, (array, _) in arrays.items()}
    fingerprint = combined_fingerprint(hashes, predictions.ridge_scale, predictions.attributes)
    group = zarr.create_group(
        path,
        zarr_format=3,
        attributes={
            "format": "ntkpipe-predictions",
            "format_version": FORMAT_VERSION,
            "ridge_scale": predictions.ridge_scale,
            "fingerprint": fingerprint,
            # Mappings are stored as text, because netCDF has no mappings among its attributes.
            "array_fingerprints": json.dumps(hashes),
            "attributes": json.dumps(predictions.attributes, allow_nan=False),
        },
    )
    for name, (array, dimensions) in arrays.items():
        is_text = array.dtype.kind not in "if"
        # Absent chunks read as NaN (or -1), which match no fingerprint of real values.
        fill = "" if is_text else (np.nan if array.dtype.kind == "f" else -1)
        description = DESCRIPTIONS.get(name)
        # Names have a fixed width, because `idxmax` of xarray does not support names of variable length.
        dtype = np.dtype(f"<U{max(1, array.dtype.itemsize // 4)}") if is_text else array.dtype
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=dtype,
            chunks=_chunks(array.shape, dimensions),
            # Floats of a kernel method hardly compress (8-12% on Gram tiles), so the codec only adds a checksum.
            compressors=Crc32cCodec(),
            fill_value=fill,
            dimension_names=dimensions,
            attributes={"long_name": description} if description else {},
            config={"write_empty_chunks": True},
        )
        if name == "covariance":
            for entry in predictions.entries():
                stored[entry] = array[entry]
        else:
            stored[...] = array
    zarr.consolidate_metadata(path)  # without it xarray warns that opening is slow
    return fingerprint


def _chunks(shape: tuple[int, ...], dimensions: tuple[str, ...]) -> tuple[int, ...]:
    """Return the chunk shape: one (kernel, time, ridge) per chunk, with at most 16 MiB of rows of test points."""
    if "test" not in dimensions or len(dimensions) < 3:
        return shape
    row = 8 * int(np.prod(shape[4:], dtype=np.int64))
    return (1, 1, 1, max(1, min(shape[3], 2**24 // max(row, 1))), *shape[4:])


def _replace(temporary: Path, target: Path, token: str) -> None:
    """Move a finished folder to its place. A crash between the two renames leaves no group, and never a partial one."""
    old = target.with_name(f".{target.name}.{token}.old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)
