"""From a configuration to kernels: raw data loaded, checked and stored once, or found as an earlier run left it; then opened.

Which kinds of kernels there are is known here, and by nobody who works with them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ntkpipe.config import COMBINED, RunConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.labels import class_notes
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.data.source_records import read_source, source_key, write_source
from ntkpipe.data.stored_labels import StoredData
from ntkpipe.errors import IncompleteError, StoreError
from ntkpipe.gram.from_config import empirical_kernel
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.combined import parts_for
from ntkpipe.planning.plan import RunPlan
from ntkpipe.planning.rank import refuse_low_rank
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import plan_features_here, plan_given_here, plan_here
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.features import feature_shapes, find_features
from ntkpipe.sources.opened import (
    InUse,
    OpenGram,
    open_combined,
    open_empirical,
    open_features,
    open_given,
    open_network,
)
from ntkpipe.sources.precomputed import find_given, given_shapes
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.store import ObjectStore

# Pairs of equal images that a record of an earlier version holds at most; and images that are read at once to find all.
_EARLIER_LIMIT, _ROWS_AT_ONCE = 1000, 1024


@dataclass(frozen=True)
class Found:
    """Data in the store, and the kernels of it.

    Args:
        config: without `auto`: what it stands for was chosen for the size of the data.
        data: points and labels.
        source: key of the record that leads from the raw data to them.
        opened: the kernels among the points in use.
        plan: of the run.
        warnings: what the user should know of the data.
    """

    config: RunConfig
    data: StoredData
    source: str
    opened: OpenGram
    plan: RunPlan
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """What is looked for, and how.

    Args:
        config: of the run.
        store: of data and tiles.
        tell: receives lines for people.
        source: key of the record that an earlier search left: its data is taken, whatever has become of the raw data; None is that of
            the raw data as it is now.
        siblings: see `plan_here`.
        measure: see `plan_here`.
        begun: see `plan_here`.
        reading: write nothing: what is not stored is missing.
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
        """Of the record."""
        return self.source or source_key(self.config)

    def chosen(self, shapes: Shapes) -> Search:
        """The search of a configuration without `auto`; tells what was chosen."""
        config, lines = choose(self.config, shapes, self.siblings)
        for line in lines:
            self.tell(line)
        return dataclasses.replace(self, config=config)

    def plan(self, shapes: Shapes) -> RunPlan:
        """Of a network."""
        return plan_here(self.config, shapes, self.store, self.siblings, begun=self.begun, measure=self.measure)

    def open(self, images: PreparedImages, plan: RunPlan, use: InUse) -> OpenGram:
        """A network's kernels of points that are in the store."""
        if self.config.kernel.kind in COMBINED:
            parts = parts_for(self.config.kernel, plan.shapes)
            return open_combined(self.store, images, parts, plan.stores, plan.tiles, use, reading=self.reading)
        known = {"name": self.config.store.name, "reading": self.reading}
        if self.config.kernel.kind == "empirical":
            kernel = empirical_kernel(self.config.kernel).at(images.shape("train")[1:])
            return open_empirical(self.store, images, kernel, plan.stores[0], plan.tiles, use, **known)
        return open_network(self.store, images, plan.stores, plan.tiles, use, **known)

    def use(self, data: StoredData, shapes: Shapes, copies: Copies) -> InUse:
        """The leading points that the run uses."""
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
        StoreError: if something is missing and nothing may be written.
    """
    return {"gram": _find_matrices, "features": _find_features}.get(search.config.kernel.kind, _find_network)(search)


def _find_network(search: Search) -> Found:
    config, store, source = search.config, search.store, search.key
    images = known_images(store, source)
    if images is None and search.reading:
        raise StoreError(
            f"the prepared data is not in {store.url} or damaged: ntkpipe run with the same settings prepares them "
            "again"
        )
    if images is None:
        dataset = load_dataset(config.data, dtype=config.kernel.dtype)
        shapes = shapes_of(dataset)
        rows = shapes.for_kernel(config.kernel)
        search = search.chosen(rows)
        plan = search.plan(rows)  # before anything is written: it may refuse
        images = write_prepared(dataset, store)
        duplicates = find_duplicates(dataset.x_train)
        record = {
            "images": dataclasses.asdict(images),
            "duplicates": [[int(a), int(b)] for a, b in duplicates],
            "notes": list(dataset.notes),
        }
        source = source_key(config)  # once more: the loader may have downloaded the files
        write_source(store, source, record)
        what = "points" if dataset.x_train.shape[1:3] == (1, 1) else "images"
        search.tell(f"{what}   {dataset.x_train.shape[0]:,} + {dataset.x_test.shape[0]:,} prepared: {images.prefix}")
    else:
        shapes = stored_shapes(config.data, images)
        rows = shapes.for_kernel(config.kernel)
        search = search.chosen(rows)
        plan = search.plan(rows)
        what = "points" if images.shape("train")[1:3] == (1, 1) else "images"
        search.tell(f"{what}   found prepared: {images.prefix}")
    record = read_source(store, source)
    warnings = [str(note) for note in record.get("notes", ())]
    equal = _equal_images(record, images)
    inside = [(a, b) for a, b in equal if b < shapes.used_train]
    if inside:
        index = images.labels().train_index
        a, b = inside[0]
        warnings.append(
            f"{len(inside)} training {what} equal another one exactly ({what} {index[a]} and {index[b]}, for one). Equal {what} "
            "are trained on the mean of their targets: the predictions are the same, and no rounding comes between them."
        )
    use = search.use(images, rows, Copies.of(equal, shapes.used_train).of_rows(rows.rows_of_point))
    return Found(search.config, images, source, search.open(images, plan, use), plan, tuple(warnings))


def _find_matrices(search: Search) -> Found:
    config, source = search.config, search.key
    given = find_given(config, search.store, source, search.tell, reading=search.reading)
    shapes = given_shapes(config, given)
    search = search.chosen(shapes)
    config = search.config
    plan = plan_given_here(config, shapes, search.store, dtype=given.gram.dtype, edge=given.gram.edge)
    labels = given.labels.labels()
    use = search.use(given.labels, shapes, Copies.of((), shapes.used_train))
    notes = class_notes(labels.labels_train, labels.labels_test, labels.class_names)
    return Found(config, given.labels, source, open_given(given.gram, plan.tiles, use), plan, notes)


def _find_features(search: Search) -> Found:
    source = search.key
    given = find_features(search.config, search.store, source, search.tell, reading=search.reading)
    shapes = feature_shapes(search.config, given)
    search = search.chosen(shapes)
    config, store = search.config, search.store
    refuse_low_rank(config, shapes.used_train, given.features.count, "the number of features")
    plan = plan_features_here(config, shapes, store, given.features)
    labels = given.labels.labels()
    use = search.use(given.labels, shapes, Copies.of((), shapes.used_train))
    known = {"name": config.store.name, "reading": search.reading}
    opened = open_features(store, given.features, plan.stores[0], plan.tiles, use, **known)
    notes = class_notes(labels.labels_train, labels.labels_test, labels.class_names)
    return Found(config, given.labels, source, opened, plan, notes)


def points_of(data: StoredData, p: int) -> TestPoints:
    """What is known of the first p test points besides their kernel."""
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


def _equal_images(record: dict[str, Any], images: PreparedImages) -> tuple[tuple[int, int], ...]:
    """Pairs of equal training images; records of earlier versions hold the first thousand alone."""
    pairs = record["duplicates"]
    if len(pairs) == _EARLIER_LIMIT:
        n = images.shape("train")[0]
        parts = (images.read("train", i, min(i + _ROWS_AT_ONCE, n)) for i in range(0, n, _ROWS_AT_ONCE))
        pairs = find_duplicates(itertools.chain.from_iterable(parts))
    return tuple((int(a), int(b)) for a, b in pairs)


def known_images(store: ObjectStore, source: str) -> PreparedImages | None:
    """The handle that an earlier run left for the same raw data and preparation, if everything is still there."""
    try:
        record = read_source(store, source)
        images = PreparedImages(**{**record["images"], "url": store.url})
        images.shape("train")
        images.labels()
    except (StoreError, IncompleteError, ValueError, KeyError, TypeError):
        return None  # no record, or one of images that are gone or damaged: they are prepared again
    return images
