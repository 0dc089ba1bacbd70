"""Stores targets, labels and source rows as one object, named by a hash of its content."""

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

# Objects whose keys do not match are not labels.
_KEY = re.compile(r"/[0-9a-f]{16}\.npz$")

GIVEN_PREFIX = "data/given"
"""Prefix of labels for given kernels, which have no images."""


class Labelled(Protocol):
    """Any object with labels: a `PreparedDataset`, or `Labels`."""

    @property
    def y_train(self) -> np.ndarray:
        """`(n, c)` float64 targets of the training points, in stored order."""
        ...

    @property
    def y_test(self) -> np.ndarray:
        """`(p, c)` float64 targets of the test points, in stored order."""
        ...

    @property
    def labels_train(self) -> np.ndarray | None:
        """`(n,)` int64 labels of the training points; None for regression."""
        ...

    @property
    def labels_test(self) -> np.ndarray | None:
        """`(p,)` int64 labels of the test points; None for regression or if they are unknown."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per column of the targets."""
        ...

    @property
    def train_index(self) -> np.ndarray:
        """`(n,)` int64, the source row of every training point."""
        ...

    @property
    def test_index(self) -> np.ndarray:
        """`(p,)` int64, the source row of every test point."""
        ...

    @property
    def mean(self) -> np.ndarray | None:
        """`(c,)` mean that was subtracted from the training targets; None if they are unchanged."""
        ...

    @property
    def scale(self) -> np.ndarray | None:
        """`(c,)` divisor of the training targets; None if they are unchanged."""
        ...


@dataclass(frozen=True)
class Labels:
    """The data of images other than pixels, in stored order. The fields are those of `PreparedDataset`."""

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
    """Stored points with labels: images (`PreparedImages`), or only labels (`GivenLabels`)."""

    @property
    def prefix(self) -> str:
        """Prefix of its objects in the store."""
        ...

    @property
    def labels_key(self) -> str:
        """Key of the object with targets and labels. It contains a hash of their content."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the points."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing steps and their statistics, plain JSON."""
        ...

    def shape(self, block: str) -> tuple[int, ...]:
        """Return the shape of `train` or `test`.

        It is `(n, h, w, c)` for images, `(n, d, h, w, c)` for volumes and `(n, 0, 0, 0)` for points without pixels.
        """
        ...

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """Return rows `start:stop` of a block, `(stop - start, h, w, c)`."""
        ...

    def labels(self) -> Labels:
        """Targets, labels and source rows; see `read_labels`."""
        ...

    def find_damage(self) -> list[str]:
        """Read everything and return one line per damaged object."""
        ...


@dataclass(frozen=True)
class GivenLabels:
    """Labels without images, a `StoredData` that is cheap to pickle.

    Args:
        url: address of the store.
        labels_key: key of the object with targets and labels.
        fingerprint: hash of the given kernel.
        sizes: numbers of training and test points.
    """

    url: str
    labels_key: str
    fingerprint: str
    sizes: tuple[int, int]

    @property
    def prefix(self) -> str:
        """Prefix of the labels of given kernels in the store."""
        return GIVEN_PREFIX

    @property
    def preprocessing(self) -> dict[str, Any]:
        """An empty dictionary, because there are no images."""
        return {}

    def shape(self, block: str) -> tuple[int, int, int, int]:
        """Return `(n, 0, 0, 0)`, the shape of images without pixels."""
        return self.sizes[0 if block == "train" else 1], 0, 0, 0

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """Return an empty array `(stop - start, 0, 0, 0)` float32."""
        del block
        return np.empty((stop - start, 0, 0, 0), np.float32)

    def find_damage(self) -> list[str]:
        """Read all labels and return one line per damaged object."""
        return damaged_labels(open_store(self.url), self.prefix)

    def labels(self) -> Labels:
        """Targets, labels and source rows; see `read_labels`."""
        return read_labels(open_store(self.url), self.labels_key)


def write_labels(labelled: Labelled, store: ObjectStore, prefix: str) -> str:
    """Store labels under a hash of their content, so that runs with other labels or another coding share the images.

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
    # numpy.savez gives every member the same date, so equal arrays give equal bytes.
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    content = buffer.getvalue()
    key = f"{prefix}/labels/{content_hash(content)}.npz"
    if not store.put(key, content) and store.get(key) != content:
        store.put(key, content, overwrite=True)
    return key


def read_labels(store: ObjectStore, key: str) -> Labels:
    """Read targets, labels and source rows.

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
    """Return one line per damaged object of the labels under `prefix`."""
    keys = store.list(f"{prefix}/labels/")
    return [
        f"{key} disagrees with its hash" for key in keys if _KEY.search(key) and not _is_intact(key, store.get(key))
    ]


def _is_intact(key: str, content: bytes) -> bool:
    return content_hash(content) == key.rpartition("/")[2].removesuffix(".npz")
