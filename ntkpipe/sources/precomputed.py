"""Kernels that the user computed (`kernel=gram`): found, checked once, and known again by their content."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.given_gram import GivenGram, check_gram, open_gram
from ntkpipe.data.given_labels import load_given_labels
from ntkpipe.data.labels import require_two_classes
from ntkpipe.data.source_records import read_source, write_source
from ntkpipe.data.stored_labels import GIVEN_PREFIX, GivenLabels, Labels, read_labels, write_labels
from ntkpipe.errors import DataError, NtkpipeError, StoreError
from ntkpipe.planning.shapes import Shapes
from ntkpipe.storage.checksum import content_hash
from ntkpipe.storage.store import ObjectStore
from ntkpipe.units import human_bytes


@dataclass(frozen=True)
class Given:
    """A checked kernel and its labels."""

    gram: GivenGram
    labels: GivenLabels


def open_files(config: RunConfig) -> GivenGram:
    """The files of the kernel, looked at but not read."""
    k = config.kernel
    assert k.train is not None  # checked by KernelConfig
    assert k.test is not None
    return open_gram(k.train, k.test, k.test_diagonal, config.grid.edge)


def not_known(store: ObjectStore, where: str) -> StoreError:
    """That nothing valid is kept of a file, which a command that writes nothing cannot change."""
    return StoreError(
        f"what {store.url} knows of {where} is gone or damaged, or the file has changed: ntkpipe run with the same "
        "settings reads it again"
    )


def find_given(
    config: RunConfig, store: ObjectStore, source: str, tell: Callable[[str], None], *, reading: bool = False
) -> Given:
    """The kernel and its labels, checked: all values are read once, unless an earlier run has read the same files.

    Args:
        config: of the run.
        store: where what was found is kept.
        source: key of the record that says so; it changes with the files.
        tell: receives lines for people.
        reading: write nothing.

    Raises:
        DataError: if the files are no kernel and labels that go together.
        StoreError: if nothing may be written, and nothing is known of these files.
    """
    gram = open_files(config)
    known = _known(gram, store, source)
    if known is not None:
        tell(f"kernel   {gram.where}, checked before: {known.gram.content[:16]}")
        return known
    if reading:
        raise not_known(store, gram.where)
    sizes = (gram.train.shape[0], gram.test.shape[0])
    labels = load_given_labels(config.data, *sizes)
    _used(config, gram, labels)
    size = sum(int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in (gram.train, gram.test))
    tell(
        f"kernel   {gram.where} and {gram.test.path}: reading {human_bytes(size)} once, to check and to know them again"
    )
    gram = check_gram(gram)
    found = Given(gram, GivenLabels(store.url, write_labels(labels, store, GIVEN_PREFIX), gram.content, sizes))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **gram.diagonals)
    data = buffer.getvalue()
    key = f"{GIVEN_PREFIX}/diagonals/{content_hash(data)}.npz"
    store.put(key, data, overwrite=True)
    record = {"content": gram.content, "diagonals": key, "labels": found.labels.labels_key}
    write_source(store, source, record)
    return found


def given_shapes(config: RunConfig, given: Given) -> Shapes:
    """Sizes of the kernel and of the leading block of it that the run uses.

    Raises:
        DataError: if the run asks for more than there is.
    """
    labels = given.labels.labels()
    train, test = _used(config, given.gram, labels)
    (n, p), outputs = given.labels.sizes, labels.y_train.shape[1]
    return Shapes(given.gram.content, n, p, train, test, (0, 0, 0), outputs)


def read_given_shapes(config: RunConfig) -> tuple[GivenGram, Shapes]:
    """For a plan: headers and labels alone are read, and nothing is written."""
    gram = open_files(config)
    labels = load_given_labels(config.data, gram.train.shape[0], gram.test.shape[0])
    train, test = _used(config, gram, labels)
    shapes = Shapes("", gram.train.shape[0], gram.test.shape[0], train, test, (0, 0, 0), labels.y_train.shape[1])
    return gram, shapes


def describe_given(gram: GivenGram, shapes: Shapes) -> str:
    """The plan as lines for people, as those of `GramPlan.describe`."""
    lines = [f"{'block':<8}{'points':>20}{'dtype':>10}  file"]
    for block, array, rows in (("train", gram.train, shapes.used_train), ("test", gram.test, shapes.used_test)):
        lines.append(f"{block:<8}{f'{rows:,} x {shapes.used_train:,}':>20}{array.dtype:>10}  {array.path}")
    known = "given" if gram.test_diagonal is not None else "estimated for error bounds, which are then estimates"
    return "\n".join(
        [
            *lines,
            "",
            f"tile        {gram.edge} x {gram.edge}, read where it lies",
            f"k(x, x)     of test points {known}",
        ]
    )


def _used(config: RunConfig, gram: GivenGram, labels: Labels) -> tuple[int, int]:
    """Training and test points in use: leading rows of the files."""
    used = []
    for name, asked, array in (
        ("train", config.data.train_size, gram.train),
        ("test", config.data.test_size, gram.test),
    ):
        if asked is not None and asked > array.shape[0]:
            raise DataError(f"data.{name}_size={asked}, but kernel.{name} has {array.shape[0]} rows")
        used.append(asked or array.shape[0])
    if labels.labels_train is not None:
        require_two_classes(labels.labels_train[: used[0]], labels.class_names, f"the first {used[0]} training points")
    return used[0], used[1]


def _known(gram: GivenGram, store: ObjectStore, source: str) -> Given | None:
    """What an earlier run found in the very same files, if all of it is still there."""
    try:
        record = read_source(store, source)
        data = store.get(record["diagonals"])
        if content_hash(data) != record["diagonals"].rpartition("/")[2].removesuffix(".npz"):
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            diagonals = {name: archive[name] for name in ("train", "test")}
        read_labels(store, record["labels"])
        sizes = (gram.train.shape[0], gram.test.shape[0])
        checked = replace(gram, content=record["content"], diagonals=diagonals)
        return Given(checked, GivenLabels(store.url, record["labels"], record["content"], sizes))
    except (NtkpipeError, ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile, zlib.error):
        return None  # no record, or one of what is gone or damaged: the files are read again
