"""Records that map raw data to its prepared form, so that later runs do not read it again."""

from __future__ import annotations

import dataclasses
import hashlib
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

# Versions of reading, by kind of file. Raise one when such files are read or checked differently, so that data that was
# prepared before is checked again.
_READING = {"npz": 2, "image_folder": 2}


def write_source(store: ObjectStore, key: str, record: Mapping[str, Any]) -> None:
    """Write the record of the source `key`, with its key and a hash of itself."""
    store.put(key, json.dumps(sealed({"key": key, **record})).encode(), overwrite=True)


def read_source(store: ObjectStore, key: str) -> dict[str, Any]:
    """Read the record of the source `key`.

    Raises:
        MissingObjectError: if there is none.
        CorruptionError: if it is damaged, or belongs to another source.
    """
    try:
        record = unsealed(json.loads(store.get(key)))
    except ValueError:
        record = None
    if record is None or record.get("key") != key:
        raise CorruptionError(f"{key} in {store.url} is damaged: ntkpipe run with the same settings writes it again")
    return record


def source_key(config: RunConfig, *, reading: int | None = None, place: str | None = None) -> str:
    """Return the key of the record that maps the present raw data to its prepared images.

    Args:
        config: configuration of the run.
        reading: version of reading files; None means the current version.
        place: path of the data when the record was made; None if it has not moved.
    """
    return f"data/sources/{_source_stamp(config, reading or _READING.get(config.data.kind, 1), place)}.json"


def same_source(config: RunConfig, source: str | None, *, place: str | None = None) -> bool:
    """Return whether a record belongs to the present raw data, under any version of reading.

    Older versions count, because a run keeps the version with which it started.

    Args:
        config: configuration of the run.
        source: key of the record.
        place: path of the data when the record was made; None if it has not moved.
    """
    versions = range(1, _READING.get(config.data.kind, 1) + 1)
    return any(source == source_key(config, reading=version, place=place) for version in versions)


def _source_stamp(config: RunConfig, reading: int, place: str | None) -> str:
    """Return a stamp that changes whenever the raw data or its preparation may have changed.

    A later run with an equal stamp can skip loading and decoding.
    """
    d, given = config.data, config.kernel
    settings = {k: v for k, v in dataclasses.asdict(d).items() if k not in _NOT_OF_THE_IMAGES}
    # Records from before these versions and settings existed must keep their stamps, so unset ones are left out.
    if reading > 1:
        settings["reading"] = reading
    added = ("layout", "target", "features", "missing", "split", "test_path", "test_fraction", "targets")
    for name in added:
        if not settings[name]:
            del settings[name]
    settings.pop("test_path", None)  # the path does not matter
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
        if given.kind != "gram":  # another kind interprets the same files differently
            files.append(given.kind)
    return digest({"settings": settings, "files": files, "dtype": config.kernel.dtype, "versions": {}})


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
