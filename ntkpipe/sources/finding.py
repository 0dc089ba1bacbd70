"""Opens the kernels of a configuration. Raw data is loaded, checked and stored once; later runs reuse it.

Only this module distinguishes the kinds of kernels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.config import COMBINED, RunConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.labels import class_notes, encode_labels
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.data.source_records import read_source, source_key, write_source
from ntkpipe.data.stored_labels import StoredData
from ntkpipe.errors import DataError, IncompleteError, StoreError
from ntkpipe.gram.from_config import empirical_kernel, kernel_spec
from ntkpipe.kernels.kinks import needs_slope_at_zero
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.combined import parts_for
from ntkpipe.planning.plan import RunPlan
from ntkpipe.planning.rank import refuse_low_rank
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import plan_features_here, plan_given_here, plan_here
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.features import feature_shapes, find_features
from ntkpipe.sources.given_files import shapes_of_files
from ntkpipe.sources.opened import (
    InUse,
    OpenGram,
    open_combined,
    open_empirical,
    open_features,
    open_given,
    open_network,
)
from ntkpipe.sources.precomputed import find_given
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.store import ObjectStore

# Largest number of pairs of equal images in records of earlier versions, and number of images that are read at once to
# find all pairs.
_EARLIER_LIMIT, _ROWS_AT_ONCE = 1000, 1024


@dataclass(frozen=True)
class Found:
    """Stored data and its kernels.

    Args:
        config: with choices for the size of the data instead of `auto`.
        data: points and labels.
        source: key of the record that connects the raw data with the stored data.
        opened: the kernels of the points in use.
        plan: of the run.
        warnings: texts for the user about the data.
    """

    config: RunConfig
    data: StoredData
    source: str
    opened: OpenGram
    plan: RunPlan
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """The arguments of `find_kernels`.

    Args:
        config: of the run.
        store: of data and tiles.
        tell: receives lines for the user.
        source: key of the record of an earlier search, whose data is used even if the raw data has changed or is
            missing; None takes the record of the present raw data.
        siblings: see `plan_here`.
        measure: see `plan_here`.
        begun: see `plan_here`.
        reading: whether nothing may be written; missing data is then an error.
    """

    config: RunConfig
    store: ObjectStore
    tell: Callable[[str], None]
    source: str | None = None
    siblings: Sequence[RunConfig] = ()
    measure: bool = True
    begun: bool | None = None
    reading: bool = False

    @property
    def key(self) -> str:
        """Key of the record."""
        return self.source or source_key(self.config)

    def chosen(self, shapes: Shapes) -> Search:
        """The search with choices instead of `auto`; reports these choices."""
        config, lines = choose(self.config, shapes, self.siblings)
        for line in lines:
            self.tell(line)
        return dataclasses.replace(self, config=config)

    def plan(self, shapes: Shapes) -> RunPlan:
        """The plan for a network."""
        return plan_here(self.config, shapes, self.store, self.siblings, begun=self.begun, measure=self.measure)

    def open(self, images: PreparedImages, plan: RunPlan, use: InUse) -> OpenGram:
        """Open the kernels of a network for points in the store."""
        if self.config.kernel.kind in COMBINED:
            parts = parts_for(self.config.kernel, plan.shapes)
            return open_combined(self.store, images, parts, plan.stores, plan.tiles, use, reading=self.reading)
        known = {"name": self.config.store.name, "reading": self.reading}
        if self.config.kernel.kind == "empirical":
            kernel = empirical_kernel(self.config.kernel).at(images.shape("train")[1:])
            return open_empirical(self.store, images, kernel, plan.stores[0], plan.tiles, use, **known)
        return open_network(self.store, images, plan.stores, plan.tiles, use, **known)

    def use(self, data: StoredData, shapes: Shapes, copies: Copies) -> InUse:
        """The points that the run uses."""
        config = self.config
        return InUse(
            shapes.used_train,
            shapes.used_test,
            copies,
            images_per_row=config.copies,
            rows_of_point=shapes.rows_of_point,
            workers=config.cluster.worker_count(),
            sample=config.solver.sample_rows,
            points=points_of(data, shapes.used_test // shapes.rows_of_point),
        )


def find_kernels(search: Search) -> Found:
    """Load, check and store the data of a configuration once, and open its kernels.

    Raises:
        ConfigError, DataError, ResourceError, IdentityError: before any work starts.
        StoreError: if data is missing and `reading` is set.
    """
    return {"gram": _find_matrices, "features": _find_features}.get(search.config.kernel.kind, _find_network)(search)


def _find_network(search: Search) -> Found:
    config, store, source = search.config, search.store, search.key
    images = known_images(store, source)
    if images is None and search.reading:
        raise StoreError(
            f"the prepared data is missing from {store.url} or damaged: run ntkpipe run with the same settings to "
            "prepare it again"
        )
    if images is None:
        dataset = load_dataset(config.data, dtype=config.kernel.dtype)
        shapes = shapes_of(dataset)
        rows = shapes.for_kernel(config.kernel)
        search = search.chosen(rows)
        plan = search.plan(rows)  # before anything is written, because it may raise
        images = write_prepared(dataset, store)
        duplicates = find_duplicates(dataset.x_train)
        record = {
            "images": dataclasses.asdict(images),
            "duplicates": [[int(a), int(b)] for a, b in duplicates],
            "notes": list(dataset.notes),
        }
        source = source_key(config)  # again, because the loader may have downloaded the files
        write_source(store, source, record)
        what = "points" if dataset.x_train.shape[1:3] == (1, 1) else "images"
        search.tell(f"{what}   {dataset.x_train.shape[0]:,} + {dataset.x_test.shape[0]:,} prepared: {images.prefix}")
    else:
        shapes = stored_shapes(config.data, images)
        rows = shapes.for_kernel(config.kernel)
        search = search.chosen(rows)
        plan = search.plan(rows)
        what = "points" if images.shape("train")[1:3] == (1, 1) else "images"
        search.tell(f"{what}   found in the store: {images.prefix}")
    record = read_source(store, source)
    warnings = [str(note) for note in record.get("notes", ())]
    equal = _equal_images(record, images)
    inside = [(a, b) for a, b in equal if b < shapes.used_train]
    if inside:
        index = images.labels().train_index
        a, b = inside[0]
        warnings.append(
            f"{len(inside)} training {what} exactly equal another one (such as {what} {index[a]} and {index[b]}). "
            f"They are trained on the mean of the targets of equal {what}, which gives the same predictions without "
            "rounding errors."
        )
    warnings += _slope_at_zero(search.config, images)
    use = search.use(images, rows, Copies.of(equal, shapes.used_train).of_rows(rows.rows_of_point))
    return Found(search.config, images, source, search.open(images, plan, use), plan, tuple(warnings))


def _find_matrices(search: Search) -> Found:
    config, source = search.config, search.key
    given = find_given(config, search.store, source, search.tell, reading=search.reading)
    gram, labels = given.files, given.labels.labels()
    shapes = shapes_of_files(config, gram, labels)
    search = search.chosen(shapes)
    config = search.config
    plan = plan_given_here(config, shapes, search.store, dtype=gram.dtype, edge=gram.edge)
    use = search.use(given.labels, shapes, Copies.of((), shapes.used_train))
    notes = class_notes(labels.labels_train, labels.labels_test, labels.class_names)
    return Found(config, given.labels, source, open_given(gram, plan.tiles, use), plan, notes)


def _find_features(search: Search) -> Found:
    source = search.key
    given = find_features(search.config, search.store, source, search.tell, reading=search.reading)
    features, labels = given.files, given.labels.labels()
    shapes = feature_shapes(search.config, features, labels)
    search = search.chosen(shapes)
    config, store = search.config, search.store
    refuse_low_rank(config, shapes.used_train, features.count, "the number of features")
    plan = plan_features_here(config, shapes, store, features)
    use = search.use(given.labels, shapes, Copies.of((), shapes.used_train))
    known = {"name": config.store.name, "reading": search.reading}
    opened = open_features(store, features, plan.stores[0], plan.tiles, use, **known)
    notes = class_notes(labels.labels_train, labels.labels_test, labels.class_names)
    return Found(config, given.labels, source, opened, plan, notes)


def points_of(data: StoredData, p: int) -> TestPoints:
    """Indices, labels and targets of the first p test points."""
    labels = data.labels()
    known = None if labels.labels_test is None else labels.labels_test[:p]
    return TestPoints(
        labels.test_index[:p],
        labels.class_names,
        known,
        labels.y_test[:p],
        labels.mean,
        labels.scale,
        classes=labels.labels_train is not None,
    )


def points_from_targets(y: Any, class_names: Sequence[str] | None, p: int) -> TestPoints | None:
    """The p test points of given matrices, from their labels or targets; None without these.

    Args:
        y: labels (p,) or float targets (p, c); None if there are none.
        class_names: of the labels; None numbers them.
        p: number of test points.

    Raises:
        DataError: if there is not one entry per point.
    """
    if y is None:
        return None
    y = np.asarray(y)
    if len(y) != p:
        raise DataError(f"y_test has {len(y)} entries for {p} test points: give one entry per point")
    index = np.arange(p)
    if y.dtype.kind == "f":
        target = y.reshape(p, -1).astype(np.float64)
        return TestPoints(index, tuple(class_names or (f"target_{k}" for k in range(target.shape[1]))), None, target)
    names = tuple(class_names or map(str, range(int(y.max()) + 1)))
    return TestPoints(index, names, y.astype(np.int64), encode_labels(y, len(names), "centered"))


def _slope_at_zero(config: RunConfig, images: PreparedImages) -> list[str]:
    """A warning if the NTK depends on the slope of the nonlinearity at 0. It looks at the first images only."""
    kernel, shape = config.kernel, images.shape("train")
    if kernel.kind in COMBINED or kernel.kind == "empirical":
        return []
    spec = kernel_spec(kernel, shape[1:])
    if not needs_slope_at_zero(canonical_spec(spec)):
        return []
    zero = (images.read("train", 0, min(shape[0], _ROWS_AT_ONCE)) == 0.0).all(axis=-1).mean()
    if not zero:
        return []
    what = "points" if math.prod(shape[1:-1]) == 1 else "pixels"
    return [
        f"{zero:.2%} of the {what} are 0, and so may be their activations: the biases start at 0 (b_std=0 in the "
        "standard parameterization). The NTK then depends on the slope of the nonlinearity at 0. ntkpipe uses the "
        "limit of a vanishing bias, which also holds in training after the first step (docs/mathematics.md, zero "
        "images). The gradients of a finite network at initialisation use another slope: to compare with them, set "
        "b_std above 0."
    ]


def _equal_images(record: dict[str, Any], images: PreparedImages) -> tuple[tuple[int, int], ...]:
    """Pairs of equal training images. Records of earlier versions contain only the first thousand pairs."""
    pairs = record["duplicates"]
    if len(pairs) == _EARLIER_LIMIT:
        n = images.shape("train")[0]
        parts = (images.read("train", i, min(i + _ROWS_AT_ONCE, n)) for i in range(0, n, _ROWS_AT_ONCE))
        pairs = find_duplicates(itertools.chain.from_iterable(parts))
    return tuple((int(a), int(b)) for a, b in pairs)


def known_images(store: ObjectStore, source: str) -> PreparedImages | None:
    """The images that an earlier run stored for the same raw data and preparation; None if anything is missing."""
    try:
        record = read_source(store, source)
        images = PreparedImages(**{**record["images"], "url": store.url})
        images.shape("train")
        images.labels()
    except (StoreError, IncompleteError, ValueError, KeyError, TypeError):
        return None  # no record, or its images are missing or damaged: prepare them again
    return images
