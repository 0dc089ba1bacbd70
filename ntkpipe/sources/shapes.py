"""The sizes of a data set that plans need."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import PreparedDataset
from ntkpipe.data.labels import require_two_classes
from ntkpipe.data.prepared import PreparedImages
from ntkpipe.data.prepared_layout import BLOCKS
from ntkpipe.errors import DataError
from ntkpipe.kernels.truncation import extreme_images
from ntkpipe.planning.shapes import Shapes

# Number of images that the search for extreme norms reads at once.
_ROWS = 4096


def stored_shapes(config: DataConfig, images: PreparedImages) -> Shapes:
    """The sizes of a stored data set and of the subset that the run uses.

    Raises:
        DataError: if the data set has fewer points than configured.
    """
    n_train, n_test = images.shape("train")[0], images.shape("test")[0]
    for name, asked, there in (("train", config.train_size, n_train), ("test", config.test_size, n_test)):
        if asked is not None and asked > there:
            raise DataError(
                f"data.{name}_size={asked}, but the data set has only {there} such points: set at most {there}"
            )
    used = config.train_size or n_train
    labels = images.labels()
    if labels.labels_train is not None:
        require_two_classes(labels.labels_train[:used], labels.class_names, f"the subset data.train_size={used}")
    return Shapes(
        images.fingerprint,
        n_train,
        n_test,
        used,
        config.test_size or n_test,
        images.shape("train")[1:],
        labels.y_train.shape[1],
        lambda: _stored_extremes(images),
        prepared=True,
    )


@lru_cache(maxsize=4)
def _stored_extremes(images: PreparedImages) -> np.ndarray:
    return _extremes({block: images.shape(block)[0] for block in BLOCKS}, images.read)


def _extremes(counts: dict[str, int], read: Callable[[str, int, int], np.ndarray]) -> np.ndarray:
    """The images with extreme norms, see `Shapes`. All images count, because subsets share the tiles."""
    made: list[np.ndarray] = []
    for block, n in counts.items():
        for start in range(0, n, _ROWS):
            part = read(block, start, min(start + _ROWS, n))
            made.append(part[extreme_images(part)])
    found = np.concatenate(made).astype(np.float64)
    return found[extreme_images(found)]


def shapes_of(dataset: PreparedDataset) -> Shapes:
    """The sizes of a data set in memory and of the subset that is used."""
    return Shapes(
        dataset.fingerprint,
        len(dataset.x_train),
        len(dataset.x_test),
        dataset.n_train,
        dataset.n_test,
        dataset.x_train.shape[1:],
        dataset.y_train.shape[1],
        lambda: _extremes(
            {"train": len(dataset.x_train), "test": len(dataset.x_test)},
            lambda block, start, stop: (dataset.x_train if block == "train" else dataset.x_test)[start:stop],
        ),
    )
