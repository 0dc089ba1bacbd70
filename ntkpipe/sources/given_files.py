"""Finds the files of a kernel or of features that a user gives: they are checked once, and then recognised by their content."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.data.given_gram import GivenGram
from ntkpipe.data.given_labels import load_given_labels
from ntkpipe.data.labels import require_two_classes
from ntkpipe.data.source_records import read_source, write_source
from ntkpipe.data.stored_labels import GIVEN_PREFIX, GivenLabels, Labels, read_labels, write_labels
from ntkpipe.errors import DataError, NtkpipeError, StoreError
from ntkpipe.planning.shapes import Shapes
from ntkpipe.storage.store import ObjectStore
from ntkpipe.units import human_bytes

Files = TypeVar("Files", GivenGram, GivenFeatures)


@dataclass(frozen=True)
class Checked(Generic[Files]):
    """Checked files and their labels."""

    files: Files
    labels: GivenLabels


@dataclass(frozen=True)
class FileKind(Generic[Files]):
    """What the check of one kind of files does.

    Args:
        name: the kind, for messages.
        check: reads all values, refuses invalid ones, and fills in `content`.
        keep: stores what a later run needs besides the files, and returns its keys for the record.
        restore: returns the files as `check` does, from the record of an earlier run.
    """

    name: str
    check: Callable[[Files], Files]
    keep: Callable[[Files, ObjectStore], dict[str, str]]
    restore: Callable[[Files, Mapping[str, Any], ObjectStore], Files]


def find_files(
    kind: FileKind[Files],
    files: Files,
    config: RunConfig,
    store: ObjectStore,
    source: str,
    tell: Callable[[str], None],
    *,
    reading: bool = False,
) -> Checked[Files]:
    """Check the files and their labels. All values are read once, unless an earlier run has read the same files.

    Args:
        kind: of the files.
        files: that were opened but not read.
        config: of the run.
        store: keeps the labels and the record of the check.
        source: key of the record; it changes with the files.
        tell: receives lines for the user.
        reading: whether nothing may be written.

    Raises:
        DataError: if the files are invalid, or the labels do not match them.
        StoreError: if `reading` is set and there is no record of these files.
    """
    known = _known(kind, files, store, source)
    if known is not None:
        tell(f"{kind.name:<8} {files.where}, checked before: {known.files.content[:16]}")
        return known
    if reading:
        raise StoreError(
            f"the record of {files.where} in {store.url} is missing or damaged, or the file has changed: run ntkpipe "
            "run with the same settings to read it again"
        )
    sizes = _sizes(files)
    labels = load_given_labels(config.data, *sizes)
    _used(config, sizes, labels)
    size = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in (files.train, files.test))
    tell(f"{kind.name:<8} {files.where} and {files.test.path}: reading {human_bytes(size)} once to check and hash them")
    files = kind.check(files)
    key = write_labels(labels, store, GIVEN_PREFIX)
    write_source(store, source, {"content": files.content, **kind.keep(files, store), "labels": key})
    return Checked(files, GivenLabels(store.url, key, files.content, sizes))


def _known(kind: FileKind[Files], files: Files, store: ObjectStore, source: str) -> Checked[Files] | None:
    """The result of an earlier run for the same files, if it still exists."""
    try:
        record = read_source(store, source)
        read_labels(store, record["labels"])
        labels = GivenLabels(store.url, record["labels"], record["content"], _sizes(files))
        return Checked(kind.restore(files, record, store), labels)
    except (NtkpipeError, ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile, zlib.error):
        return None  # no record, or its data is missing or damaged: read the files again


def shapes_of_files(config: RunConfig, files: GivenGram | GivenFeatures, labels: Labels) -> Shapes:
    """The sizes of the kernel and of the leading block that the run uses.

    Args:
        config: of the run.
        files: opened, and checked if there is a store.
        labels: of the points.

    Raises:
        DataError: if the files have fewer points than configured.
    """
    n, p = _sizes(files)
    train, test = _used(config, (n, p), labels)
    return Shapes(files.content, n, p, train, test, (0, 0, 0), outputs=labels.y_train.shape[1])


def read_labels_beside(config: RunConfig, files: GivenGram | GivenFeatures) -> Labels:
    """The labels of files that were opened, for a plan; nothing is written."""
    return load_given_labels(config.data, *_sizes(files))


def _sizes(files: GivenGram | GivenFeatures) -> tuple[int, int]:
    """Numbers of training and test points."""
    return files.train.shape[0], files.test.shape[0]


def _used(config: RunConfig, sizes: tuple[int, int], labels: Labels) -> tuple[int, int]:
    """Numbers of training and test points in use, which are the leading rows of the files."""
    asked = (config.data.train_size, config.data.test_size)
    for name, wanted, there in zip(("train", "test"), asked, sizes, strict=True):
        if wanted is not None and wanted > there:
            raise DataError(f"data.{name}_size={wanted}, but kernel.{name} has {there} rows")
    train, test = (wanted or there for wanted, there in zip(asked, sizes, strict=True))
    if labels.labels_train is not None:
        require_two_classes(labels.labels_train[:train], labels.class_names, f"the first {train} training points")
    return train, test
