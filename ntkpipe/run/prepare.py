"""From a configuration to what the stages start from: images loaded, checked and stored once, kernels opened. All checks come first."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.labels import class_notes
from ntkpipe.data.prepared import PreparedImages, verify_prepared, write_prepared
from ntkpipe.data.source_records import read_source, source_key, write_source
from ntkpipe.data.stored_labels import GIVEN_PREFIX, GivenLabels, damaged_labels
from ntkpipe.errors import IncompleteError, StoreError
from ntkpipe.gram.from_config import check_kernel
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import plan_given_here, plan_here
from ntkpipe.predictions.points import TestPoints
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.sources.gram import InUse, open_given, open_network
from ntkpipe.sources.precomputed import find_given, given_shapes
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.store import ObjectStore, open_store

_log = logging.getLogger(__name__)

# Pairs of equal images that a record of an earlier version holds at most; and images that are read at once to find all.
_EARLIER_LIMIT, _ROWS_AT_ONCE = 1000, 1024


def prepare(
    config: RunConfig,
    tell: Callable[[str], None],
    *,
    source: str | None = None,
    siblings: Sequence[RunConfig] = (),
    measure: bool = True,
    begun: bool | None = None,
    reading: bool = False,
) -> RunContext:
    """Load, check and store the images (once per data set), and open the Gram stores.

    Args:
        config: of the run.
        tell: receives lines for people.
        source: of an earlier `RunContext`: its images are taken, whatever has become of the raw data.
        siblings: see `plan_here`.
        measure: see `plan_here`.
        begun: see `plan_here`.
        reading: write nothing: what is not stored is missing.

    Raises:
        ConfigError, DataError, ResourceError, IdentityError: before any work starts.
        StoreError: if images are missing and nothing may be written.
    """
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    source = source or source_key(config)
    if config.kernel.kind == "gram":
        return _prepare_given(config, store, source, tell, reading=reading)
    images = _known_images(store, source)
    if images is None and reading:
        raise StoreError(
            f"the prepared images are not in {store.url} or are damaged: ntkpipe run with the same settings prepares them "
            "again"
        )
    if images is None:
        dataset = load_dataset(config.data, dtype=config.kernel.dtype)
        shapes = shapes_of(dataset)
        # Before anything is written: it may refuse.
        planned = plan_here(config, shapes, store, siblings, begun=begun, measure=measure)
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
        tell(f"{what}   {dataset.x_train.shape[0]:,} + {dataset.x_test.shape[0]:,} prepared: {images.prefix}")
    else:
        shapes = stored_shapes(config.data, images)
        planned = plan_here(config, shapes, store, siblings, begun=begun, measure=measure)
        what = "points" if images.shape("train")[1:3] == (1, 1) else "images"
        tell(f"{what}   found prepared: {images.prefix}")
    wanted, plan = planned.stores, planned.tiles
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
    use = InUse(
        shapes.used_train,
        shapes.used_test,
        Copies.of(equal, shapes.used_train),
        images_per_row=config.copies,
        workers=config.cluster.worker_count(),
        sample=config.solver.sample_rows,
        points=test_points(images, shapes.used_test),
    )
    opened = open_network(store, images, wanted, plan, use, name=config.store.name, reading=reading)
    return RunContext(
        config,
        store,
        images,
        wanted[0].spec,
        opened.stores[0],
        opened.job,
        plan,
        shapes.used_train,
        shapes.used_test,
        config.cluster.worker_count(),
        planned.work.sizes.budget.solving,
        source,
        tuple(warnings),
        equal,
        opened=opened,
    )


def test_points(images: PreparedImages | GivenLabels, p: int) -> TestPoints:
    """What is known of the first p test images besides their kernel."""
    labels = images.labels()
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


test_points.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of its name


def _equal_images(record: dict[str, Any], images: PreparedImages) -> tuple[tuple[int, int], ...]:
    """Pairs of equal training images; records of earlier versions hold the first thousand alone."""
    pairs = record["duplicates"]
    if len(pairs) == _EARLIER_LIMIT:
        n = images.shape("train")[0]
        parts = (images.read("train", i, min(i + _ROWS_AT_ONCE, n)) for i in range(0, n, _ROWS_AT_ONCE))
        pairs = find_duplicates(itertools.chain.from_iterable(parts))
    return tuple((int(a), int(b)) for a, b in pairs)


def _prepare_given(
    config: RunConfig, store: ObjectStore, source: str, tell: Callable[[str], None], *, reading: bool
) -> RunContext:
    given = find_given(config, store, source, tell, reading=reading)
    shapes = given_shapes(config, given)
    planned = plan_given_here(config, shapes, store, dtype=given.gram.dtype, edge=given.gram.edge)
    labels = given.labels.labels()
    use = InUse(
        shapes.used_train,
        shapes.used_test,
        Copies.of((), shapes.used_train),
        images_per_row=config.copies,
        workers=config.cluster.worker_count(),
        sample=config.solver.sample_rows,
        points=test_points(given.labels, shapes.used_test),
    )
    return RunContext(
        config,
        store,
        given.labels,
        [],
        given.gram,
        None,
        planned.tiles,
        shapes.used_train,
        shapes.used_test,
        config.cluster.worker_count(),
        planned.work.sizes.budget.solving,
        source,
        class_notes(labels.labels_train, labels.labels_test, labels.class_names),
        opened=open_given(given.gram, planned.tiles, use),
    )


def damaged_images(inputs: RunContext) -> list[str]:
    """What is wrong with the prepared images and labels, a line per object."""
    if isinstance(inputs.images, GivenLabels):
        return damaged_labels(inputs.store, GIVEN_PREFIX)
    return verify_prepared(inputs.store, inputs.images.prefix)


def reopen(run: RunDir) -> RunContext:
    """The inputs of a run whose images are prepared; reads no raw data, and writes nothing.

    Raises:
        StoreError: if they are not there any more, nor perhaps their store.
    """
    run.require_store()
    config = run.config
    receipt = run.receipt("data") or {}
    return prepare(
        config,
        lambda line: None,
        source=receipt.get("source") or source_key(config),
        measure=False,
        begun=receipt.get("tiles_stored"),
        reading=True,
    )


def forget_images(inputs: RunContext) -> None:
    """Have the next `prepare` load the raw data again, which writes whatever is missing or damaged."""
    inputs.store.delete(inputs.source)


def read_shapes(config: RunConfig) -> tuple[Shapes, ObjectStore]:
    """Sizes for a plan; writes nothing. Raw images are loaded only if they are not prepared yet."""
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    images = _known_images(store, source_key(config))
    if images:
        return stored_shapes(config.data, images), store
    dataset = load_dataset(config.data, dtype=config.kernel.dtype)
    for note in dataset.notes:
        _log.warning("%s", note)
    return shapes_of(dataset), store


def _known_images(store: ObjectStore, source: str) -> PreparedImages | None:
    """The handle that an earlier run left for the same raw data and preparation, if everything is still there."""
    try:
        record = read_source(store, source)
        images = PreparedImages(**{**record["images"], "url": store.url})
        images.shape("train")
        images.labels()
    except (StoreError, IncompleteError, ValueError, KeyError, TypeError):
        return None  # no record, or one of images that are gone or damaged: they are prepared again
    return images
