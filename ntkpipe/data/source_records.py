"""Records that lead from raw data, as it was, to what a run has made of it: later runs need not read it again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntkpipe.config import GIVEN_KERNELS, RunConfig
from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import digest, sealed, unsealed
from ntkpipe.storage.store import ObjectStore

# Settings that change neither the prepared images nor the labels stored with them.
_NOT_OF_THE_IMAGES = ("train_size", "test_size", "folds", "download", "source")

# Raised when a kind of file is read in another way, or checked for more: what was prepared before is looked at anew.
_READING = {"npz": 2, "image_folder": 2}


def write_source(store: ObjectStore, key: str, record: Mapping[str, Any]) -> None:
    """Put the record of the source `key`, which says whose it is and carries a hash of itself."""
    store.put(key, json.dumps(sealed({"key": key, **record})).encode(), overwrite=True)


def read_source(store: ObjectStore, key: str) -> dict[str, Any]:
    """The record of the source `key`.

    Raises:
        MissingObjectError: if there is none.
        CorruptionError: if it is damaged, or that of another source.
    """
    try:
        record = unsealed(json.loads(store.get(key)))
    except ValueError:
        record = None
    if record is None or record.get("key") != key:
        raise CorruptionError(f"{key} in {store.url} is damaged: ntkpipe run with the same settings writes it again")
    return record


def source_key(config: RunConfig, *, reading: int | None = None, place: str | None = None) -> str:
    """Key of the record that leads from the raw data, as it is now, to its prepared images.

    Args:
        config: of the run.
        reading: version of what files are taken for; None is that of today.
        place: where the data was when the record was made; None if it has not moved.
    """
    return f"data/sources/{_source_stamp(config, reading or _READING.get(config.data.kind, 1), place)}.json"


def same_source(config: RunConfig, source: str | None, *, place: str | None = None) -> bool:
    """Whether a record is of the raw data as it is now, under any version of reading: a run that has begun stays with its own.

    Args:
        config: of the run.
        source: key of the record.
        place: as of `source_key`.
    """
    versions = range(1, _READING.get(config.data.kind, 1) + 1)
    return any(source == source_key(config, reading=version, place=place) for version in versions)


def _source_stamp(config: RunConfig, reading: int, place: str | None) -> str:
    """Changes whenever the raw data or its preparation may have: lets a later run skip loading and decoding."""
    d, given = config.data, config.kernel
    settings = {k: v for k, v in dataclasses.asdict(d).items() if k not in _NOT_OF_THE_IMAGES}
    # Of records that were made before there was a version, or these settings.
    if reading > 1:
        settings["reading"] = reading
    added = ("layout", "target", "features", "missing", "split", "test_path", "test_fraction", "targets")
    for name in added:
        if not settings[name]:
            del settings[name]
    settings.pop("test_path", None)  # where it lies does not matter
    if d.statistics == "subset":
        settings["train_size"] = d.train_size
    files: Any = None
    if d.path is not None:
        path = Path(d.path)
        settings["path"] = place or str(path.resolve())
        files = _path_stamp(path)
    if d.test_path is not None:
        files = [files, _path_stamp(Path(d.test_path).expanduser())]
    if given.kind in GIVEN_KERNELS:
        names = (given.train, given.test, given.test_diagonal)
        files = [files, *(_path_stamp(None if name is None else Path(name).expanduser()) for name in names)]
        if given.kind != "gram":  # the same files, taken for something else
            files.append(given.kind)
    versions = {"digits": importlib.metadata.version("scikit-learn")} if d.kind == "digits" else {}
    return digest({"settings": settings, "files": files, "dtype": config.kernel.dtype, "versions": versions})


def _path_stamp(path: Path | None) -> Any:
    if path is None or not path.exists():
        return None
    return _folder_stamp(path) if path.is_dir() else _file_stamp(path)


def _file_stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _folder_stamp(path: Path) -> str:
    seen = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            seen.update(f"{file.relative_to(path)} {_file_stamp(file)}\n".encode())
    return seen.hexdigest()
