"""Targets, labels and source rows as one stored object, named by its content."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ntkpipe.data.prepared_layout import REMEDY
from ntkpipe.errors import CorruptionError, IncompleteError
from ntkpipe.storage.checksum import content_hash
from ntkpipe.storage.store import MissingObjectError, ObjectStore, open_store

# What else lies there is nobody's labels.
_KEY = re.compile(r"/[0-9a-f]{16}\.npz$")

GIVEN_PREFIX = "data/given"
"""Where labels lie whose kernel was given, and which have no images."""


class Labelled(Protocol):
    """Whatever has labels: a `PreparedDataset`, or `Labels` themselves."""

    @property
    def y_train(self) -> np.ndarray:
        """`(n, c)` float64 targets, in stored order."""
        ...

    @property
    def y_test(self) -> np.ndarray:
        """`(p, c)`."""
        ...

    @property
    def labels_train(self) -> np.ndarray | None:
        """`(n,)` int64; None for regression."""
        ...

    @property
    def labels_test(self) -> np.ndarray | None:
        """`(p,)`."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per column."""
        ...

    @property
    def train_index(self) -> np.ndarray:
        """`(n,)` int64, rows of the source."""
        ...

    @property
    def test_index(self) -> np.ndarray:
        """`(p,)`."""
        ...

    @property
    def mean(self) -> np.ndarray | None:
        """`(c,)`, see `PreparedDataset`."""
        ...

    @property
    def scale(self) -> np.ndarray | None:
        """`(c,)`."""
        ...


@dataclass(frozen=True)
class Labels:
    """What is known of the images besides their pixels, in stored order; see `PreparedDataset`."""

    y_train: np.ndarray
    y_test: np.ndarray
    labels_train: np.ndarray | None
    labels_test: np.ndarray | None
    class_names: tuple[str, ...]
    train_index: np.ndarray
    test_index: np.ndarray
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None


class StoredData(Protocol):
    """Points with labels that lie in the store: images (`PreparedImages`), or labels alone (`GivenLabels`)."""

    @property
    def prefix(self) -> str:
        """Of its objects in the store."""
        ...

    @property
    def labels_key(self) -> str:
        """Of the object with targets and labels; a hash of their content."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the points."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Steps that they went through and their statistics, plain JSON."""
        ...

    def shape(self, block: str) -> tuple[int, ...]:
        """`(n, h, w, c)` of `train` or `test`; of volumes `(n, d, h, w, c)`, of points without pixels `(n, 0, 0, 0)`."""
        ...

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of a block, `(stop - start, h, w, c)`."""
        ...

    def labels(self) -> Labels:
        """Targets, labels and source rows; see `read_labels`."""
        ...

    def find_damage(self) -> list[str]:
        """Read everything, and say what is wrong with it, one line per object."""
        ...


@dataclass(frozen=True)
class GivenLabels:
    """Labels without images, a `StoredData`. Cheap to pickle.

    Args:
        url: of the store.
        labels_key: of the object with targets and labels.
        fingerprint: of the kernel that was given with them.
        sizes: of training and test set.
    """

    url: str
    labels_key: str
    fingerprint: str
    sizes: tuple[int, int]

    @property
    def prefix(self) -> str:
        """See `StoredData`."""
        return GIVEN_PREFIX

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Nothing: there are no images."""
        return {}

    def shape(self, block: str) -> tuple[int, int, int, int]:
        """`(n, 0, 0, 0)`: images that have no pixels."""
        return self.sizes[0 if block == "train" else 1], 0, 0, 0

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """No pixels: `(stop - start, 0, 0, 0)`."""
        del block
        return np.empty((stop - start, 0, 0, 0), np.float32)

    def find_damage(self) -> list[str]:
        """See `StoredData`."""
        return damaged_labels(open_store(self.url), self.prefix)

    def labels(self) -> Labels:
        """Targets, labels and source rows; see `read_labels`."""
        return read_labels(open_store(self.url), self.labels_key)


def write_labels(labelled: Labelled, store: ObjectStore, prefix: str) -> str:
    """Store labels under a name made from their content: runs with other labels or another coding share the images.

    Returns:
        The key.
    """
    arrays: dict[str, np.ndarray] = {
        "y_train": labelled.y_train,
        "y_test": labelled.y_test,
        "train_index": labelled.train_index,
        "test_index": labelled.test_index,
        "class_names": np.array(labelled.class_names, dtype=np.str_),
    }
    known = ("labels_train", "labels_test", "mean", "scale")
    arrays |= {name: array for name in known if (array := getattr(labelled, name)) is not None}
    buffer = io.BytesIO()
    # numpy.savez stamps every member with one constant date: equal arrays give equal bytes.
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    content = buffer.getvalue()
    key = f"{prefix}/labels/{content_hash(content)}.npz"
    if not store.put(key, content) and store.get(key) != content:
        store.put(key, content, overwrite=True)
    return key


def read_labels(store: ObjectStore, key: str) -> Labels:
    """Targets, labels and source rows.

    Raises:
        CorruptionError: if the stored object is damaged.
        IncompleteError: if it is absent.
    """
    try:
        content = store.get(key)
    except MissingObjectError as error:
        raise IncompleteError(f"{key} is missing in {store.url}: {REMEDY}") from error
    if not _is_intact(key, content):
        raise CorruptionError(f"{key} in {store.url} disagrees with its hash: {REMEDY}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptionError(f"stored labels cannot be read ({error}): {REMEDY}") from error
    names = tuple(map(str, arrays.pop("class_names").tolist()))
    return Labels(
        **{"labels_train": None, "labels_test": None, **arrays},
        class_names=names,
    )


def damaged_labels(store: ObjectStore, prefix: str) -> list[str]:
    """What is wrong with the labels under `prefix`, one line per object."""
    keys = store.list(f"{prefix}/labels/")
    return [
        f"{key} disagrees with its hash" for key in keys if _KEY.search(key) and not _is_intact(key, store.get(key))
    ]


def _is_intact(key: str, content: bytes) -> bool:
    return content_hash(content) == key.rpartition("/")[2].removesuffix(".npz")
