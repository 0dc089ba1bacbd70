"""Reads `predictions.zarr` and checks that it is unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ntkpipe.errors import CorruptionError, IncompleteError, StoreError
from ntkpipe.predictions.schema import Predictions, array_fingerprint, combined_fingerprint
from ntkpipe.predictions.write import FORMAT_VERSION

REQUIRED = ("kernel", "time", "ridge", "test", "class", "target", "mean", "error_bound", "bound_kind")
REMEDY = "recompute it with `ntkpipe predict`"


def read_predictions(path: str | os.PathLike[str], *, covariance: bool = True) -> Predictions:
    """Read predictions that `write_predictions` wrote, and check every array against its fingerprint.

    Args:
        path: path of the Zarr group.
        covariance: also read the (p, p) covariances, if there are any. They can be far larger than the rest.

    Raises:
        IncompleteError: if the path does not exist.
        StoreError: if it is not a group of predictions, or was written by another version of the format.
        CorruptionError: if an array is missing, unreadable or changed. The text names it.
    """
    arrays, metadata, problems = _load(Path(path), covariance=covariance)
    if problems:
        raise CorruptionError(f"{'; '.join(problems)}. {REMEDY.capitalize()}.")
    terms = {name.removeprefix("bound_"): arrays[name] for name in arrays if name.startswith("bound_")}
    terms.pop("kind")
    return Predictions(
        kernels=tuple(arrays["kernel"].tolist()),
        times=arrays["time"],
        ridges=arrays["ridge"],
        ridge_scale=metadata["ridge_scale"],
        test_index=arrays["test"],
        class_names=tuple(arrays["class"].tolist()),
        label=arrays.get("label"),
        target=arrays["target"],
        mean=arrays["mean"],
        error_bound=arrays["error_bound"],
        error_estimate=arrays.get("error_estimate"),
        bound_kind=arrays["bound_kind"],
        bound_terms=terms,
        variance=arrays.get("variance"),
        variance_bound=arrays.get("variance_bound"),
        covariance=arrays.get("covariance"),
        noise=arrays.get("noise"),
        attributes=metadata["attributes"],
    )


def verify_predictions(path: str | os.PathLike[str]) -> list[str]:
    """Return one text per problem of a stored group of predictions; empty if every stored value is unchanged."""
    try:
        return _load(Path(path), covariance=True)[2]
    except (StoreError, IncompleteError) as error:
        return [str(error)]


def _load(path: Path, *, covariance: bool) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """Return the intact arrays, the group's metadata, and the problems of the other arrays."""
    if not path.exists():
        raise IncompleteError(f"{path} does not exist: {REMEDY}")
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
        metadata = {name: _plain(name, value) for name, value in group.attrs.items()}
    except Exception as error:  # Zarr has no common base class for errors of damaged files
        raise StoreError(f"{path} cannot be opened as a Zarr v3 group ({_brief(error)}): {REMEDY}") from error
    if metadata.get("format") != "ntkpipe-predictions":
        raise StoreError(f"{path} is a Zarr group but holds no predictions of ntkpipe: check the path")
    if metadata.get("format_version") not in (1, FORMAT_VERSION):
        raise StoreError(
            f"{path} has format version {metadata.get('format_version')}, this ntkpipe reads {FORMAT_VERSION}: {REMEDY}"
        )
    hashes, attributes = metadata.get("array_fingerprints"), metadata.get("attributes")
    if not isinstance(hashes, dict) or not isinstance(attributes, dict):
        raise CorruptionError(f"{path}/zarr.json lacks its fingerprints or attributes. {REMEDY.capitalize()}.")
    arrays: dict[str, np.ndarray] = {}
    problems = [f"{path}/{name} has no fingerprint" for name in REQUIRED if name not in hashes]
    if combined_fingerprint(hashes, str(metadata.get("ridge_scale")), attributes) != metadata.get("fingerprint"):
        problems.append(f"{path}/zarr.json disagrees with its fingerprint")
    problems += _disagreeing(path)
    for name, expected in hashes.items():
        if not name.isidentifier():
            problems.append(f"{path}/zarr.json names an impossible array {name!r}")
            continue
        if name == "covariance" and not covariance:
            continue
        try:
            array = _as_array(group, name)
        except Exception as error:  # a flipped bit may raise almost any exception
            problems.append(f"{path}/{name} cannot be read ({_brief(error)})")
            continue
        if array_fingerprint(array) != expected:
            problems.append(f"{path}/{name} disagrees with its fingerprint")
        else:
            arrays[name] = array
    return arrays, metadata, problems


def _plain(name: str, value: Any) -> Any:
    """Return an attribute of the group as a plain value. Mappings are stored as text since version 2."""
    return json.loads(value) if name in ("array_fingerprints", "attributes") and isinstance(value, str) else value


def _disagreeing(path: Path) -> list[str]:
    """Return a text per array whose metadata differ from the group's copy, which is the only copy that xarray reads."""
    whole = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    copies = ((whole.get("consolidated_metadata") or {}).get("metadata") or {}).items()
    found = []
    for name, copy in copies:
        try:
            same = json.loads((path / name / "zarr.json").read_text(encoding="utf-8")) == copy
        except (OSError, ValueError):
            same = False
        if not same:
            found.append(f"{path}/{name}/zarr.json disagrees with {path}/zarr.json")
    return found


def _as_array(group: zarr.Group, name: str) -> np.ndarray:
    stored = group[name]
    if not isinstance(stored, zarr.Array):
        raise TypeError("a group is in the place of an array")
    array = np.asarray(stored[...])
    return array if array.dtype.kind in "if" else np.array(array.tolist(), dtype=np.str_)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
