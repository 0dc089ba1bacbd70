"""The kernel between new points and the training points of a solved kernel, computed or given."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.data.given_array import GivenArray
from ntkpipe.data.given_features import with_test
from ntkpipe.data.given_gram import with_test as with_test_rows
from ntkpipe.data.in_memory import memory_array
from ntkpipe.data.new_points import prepared_new
from ntkpipe.data.prepared import PreparedImages
from ntkpipe.data.preprocess import Preprocessing
from ntkpipe.data.tables import is_frame
from ntkpipe.gram.plan import BlockPlan
from ntkpipe.gram.stage import compute_gram
from ntkpipe.gram.task import GramJob, ImageSource
from ntkpipe.planning.machine import assumed_machine
from ntkpipe.planning.tiles import pair_seconds
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.computed import ComputedSource
from ntkpipe.sources.features import FeatureSource
from ntkpipe.sources.given import PrecomputedSource
from ntkpipe.storage.store import local_folder, open_store
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.layout import Block

# Bytes of the tiles of one batch of new points.
_BATCH_BYTES = 256 << 20
_BLOCKS: tuple[Block, Block] = ("test", "train")


@dataclass(frozen=True, eq=False)
class NewPoints:
    """An `ImageSource` of stored training points and new test points, which are in the memory of this process.

    Args:
        images: the source of the training points.
        x: prepared new points (p, h, w, c), or given features (p, P).
        points: their indices and class names; None if these are unknown.
        notes: texts for the user.
    """

    images: ImageSource
    x: np.ndarray
    points: TestPoints | None
    notes: tuple[str, ...] = ()

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """See `ImageSource`."""
        return self.images.read(block, start, stop) if block == "train" else self.x[start:stop]

    def batches(self, n: int, kernels: int) -> Iterator[NewPoints]:
        """The same points in batches, whose tiles with n training points fit into memory."""
        rows = max(1, _BATCH_BYTES // (8 * n * kernels))
        for start in range(0, len(self.x), rows):
            part = slice(start, start + rows)
            known = self.points
            if known is not None:
                known = dataclasses.replace(known, index=known.index[part], target=known.target[part])
            yield dataclasses.replace(self, x=self.x[part], points=known)


def is_points(x: Any) -> bool:
    """Whether a value contains points: an array or a frame."""
    return isinstance(x, np.ndarray) or is_frame(x)


def new_points(
    blocks: KernelBlocks, x: Any, *, layout: str | None = None, whole: Preprocessing | None = None
) -> NewPoints:
    """Prepare new points in the same way as the training points of a kernel.

    Args:
        blocks: the kernel.
        x: a frame or an array; see `prepared_new`.
        layout: of images; see `prepared_new`.
        whole: all steps of the preparation, needed if points are whitened.

    Raises:
        DataError: if the points do not match the training points.
    """
    source = blocks.source
    if isinstance(source, FeatureSource):
        features = with_test(source.features, memory_array("of new points", x, 2))
        return NewPoints(source.images, features.test.read(slice(None)), _unknown(blocks, features.test.shape[0]))
    assert isinstance(source, ComputedSource)  # others are `given_blocks`
    assert isinstance(source.images, PreparedImages)
    images = source.images
    made, rows, notes = prepared_new(
        x, images.preprocessing, images.shape("train")[1:], images.dtype, layout=layout, whole=whole
    )
    labels = images.labels()
    known = TestPoints(
        rows,
        labels.class_names,
        None,
        np.full((len(rows), len(labels.class_names)), np.nan),
        labels.mean,
        labels.scale,
        classes=labels.labels_train is not None,
    )
    return NewPoints(images, made, known, tuple(notes))


def given_blocks(blocks: KernelBlocks, rows: Any, diagonal: Any = None) -> KernelBlocks:
    """A given kernel with new test points, whose rows are also given.

    Args:
        blocks: the kernel.
        rows: the kernel between p new points and all n training points, (p, n): an array in memory or on disk.
        diagonal: `k(x, x)` of the new points, (p,), in memory or on disk; None if it is unknown.

    Raises:
        DataError: if the shapes do not match the training points.
    """
    source = blocks.source
    assert isinstance(source, PrecomputedSource)
    test = rows if isinstance(rows, GivenArray) else memory_array("of new points", rows, 2)
    known = diagonal
    if known is not None and not isinstance(known, GivenArray):
        known = memory_array("diagonal", known, 1)
    gram = with_test_rows(source.gram, test, known)
    p, points = test.shape[0], _unknown(blocks, test.shape[0])
    return dataclasses.replace(blocks, parts=(dataclasses.replace(source, gram=gram),), p=p, points=points, _known={})


def _unknown(blocks: KernelBlocks, p: int) -> TestPoints | None:
    """Descriptions of p new points without labels, with the class names of the test points."""
    points = blocks.points
    if points is None:
        return None
    target = np.full((p, len(points.class_names)), np.nan)
    classes = points.classes or points.label is not None
    return dataclasses.replace(points, index=np.arange(p), label=None, target=target, classes=classes, initial=None)


@contextlib.contextmanager
def new_blocks(
    blocks: KernelBlocks, new: NewPoints, executor: Executor | None = None, place: str | None = None
) -> Iterator[KernelBlocks]:
    """Context manager: the kernels between new points and the training points in use. Its exit deletes their tiles.

    Args:
        blocks: of the training points.
        new: the points.
        executor: computes the tiles; None is this process.
        place: URL of a store that the processes of the executor can access. The tiles are stored there in a separate
            folder; None stores them in the memory of this process.
    """
    executor, p = executor or SerialExecutor(), len(new.x)
    name = f"new-{uuid.uuid4().hex}"
    url = f"memory://{name}" if place is None else f"{place.rstrip('/')}/{name}"
    store = open_store(url)
    digest = hashlib.sha256(np.ascontiguousarray(new.x).tobytes()).hexdigest()
    parts: list[ComputedSource] = []
    for source in blocks.parts:
        assert isinstance(source, ComputedSource)  # checked by `new_points`
        part = source.of_points(new, digest, blocks.n, p, store)
        if isinstance(source, FeatureSource):
            features = dataclasses.replace(
                source.features, test=memory_array("of new points", new.x, 2), content=digest
            )
            part = dataclasses.replace(part, images=source.images, features=features)
        parts.append(part)
    outputs = tuple(output for part in parts for output in part.outputs)
    job = GramJob(outputs, parts[0].images, parts[0].pairs_per_step)
    test, train = (BlockPlan(block, grid, grid) for block in _BLOCKS for grid in [parts[0].grid(block)])
    plan = dataclasses.replace(blocks.tiles, blocks=(test,), stored=True)
    try:
        compute_gram(executor, job, plan)
        # Errors are in units of the diagonal of the training points, which costs n evaluations.
        compute_gram(executor, job, dataclasses.replace(plan, blocks=(train,), stored=False))
        sample = blocks.sample_size(None)
        yield dataclasses.replace(blocks, parts=tuple(parts), p=p, sample=sample, points=new.points, _known={})
    finally:
        store.delete_all(list(store.list("")))
        if (folder := local_folder(url)) is not None:
            shutil.rmtree(folder, ignore_errors=True)


def seconds_of(blocks: KernelBlocks, p: int) -> float:
    """Projected seconds of one core for the kernel between p new points and the training points, from assumed rates."""
    pairs = len(blocks.parts) * (p + 1) * blocks.n
    return pairs * pair_seconds(blocks.tiles.cost, assumed_machine(), blocks.source.identity.dtype)
