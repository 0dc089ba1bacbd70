"""What every stage starts from: prepared images, the kernel, the Gram store and its plan. All checks come first here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.given_gram import GivenGram
from ntkpipe.data.labels import class_notes
from ntkpipe.data.prepared import PreparedImages, verify_prepared, write_prepared
from ntkpipe.data.source_records import read_source, write_source
from ntkpipe.data.stored_labels import GIVEN_PREFIX, GivenLabels, damaged_labels
from ntkpipe.errors import IncompleteError, StoreError
from ntkpipe.gram.from_config import check_kernel
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.recomputed import RecomputedTiles
from ntkpipe.gram.task import GramJob
from ntkpipe.gram.worker import Evaluation
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import plan_given_here, plan_here
from ntkpipe.predictions.points import TestPoints
from ntkpipe.run.run_dir import RunDir
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.gram import InUse, OpenGram, open_given, open_network
from ntkpipe.sources.precomputed import find_given, given_shapes
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.store import ObjectStore, open_store
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

_log = logging.getLogger(__name__)

# Pairs of equal images that a record of an earlier version holds at most; and images that are read at once to find all.
_EARLIER_LIMIT, _ROWS_AT_ONCE = 1000, 1024

# Settings that change neither the prepared images nor the labels stored with them.
_NOT_OF_THE_IMAGES = ("train_size", "test_size", "download", "source")

# Raised when a kind of file is read in another way, or checked for more: what was prepared before is looked at anew.
_READING = {"npz": 2, "image_folder": 2}


KernelSource = GramStore | GivenGram
"""What has tiles and diagonals of kernels: a store that ntkpipe fills, or files that the user did."""


@dataclass(frozen=True)
class Inputs:
    """Everything known before the first tile.

    Args:
        config: of the run.
        store: of images and tiles.
        images: handle of the prepared images; of a given kernel, of its labels.
        spec: layers of the architecture, canonical; empty of a given kernel.
        gram: handle of the Gram store of the kernel that is solved with, or the files of a given one.
        job: every store that the Gram stage fills, `gram` first, and the images; None of a given kernel.
        plan: of the tiles that this run needs.
        n_train: training images in use, the leading rows.
        n_test: test images in use.
        workers: processes that compute.
        memory_bytes: budget of all processes together, less what computing tiles takes while solving.
        source: key of the record that leads from the raw data to the images.
        warnings: what the user should know.
        equal: pairs of training images that are equal, the first of its kind and a later one.
        opened: the kernels among the images in use, as solvers and predictions take them, and what fills their tiles.
    """

    config: RunConfig
    store: ObjectStore
    images: PreparedImages | GivenLabels
    spec: list[dict[str, Any]]
    gram: KernelSource
    job: GramJob | None
    plan: GramPlan
    n_train: int
    n_test: int
    workers: int
    memory_bytes: int
    source: str
    warnings: tuple[str, ...] = ()
    equal: tuple[tuple[int, int], ...] = ()
    opened: OpenGram = field(kw_only=True, compare=False, repr=False)

    @property
    def kernels(self) -> KernelBlocks:
        """The kernels among the images in use, as solvers and predictions take them."""
        return self.opened.blocks

    @cached_property
    def copies(self) -> Copies:
        """Which of the training images in use equal which; of a given kernel nothing is known."""
        return Copies.of(self.equal, self.n_train)

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """Every store that the Gram stage fills; none of a given kernel."""
        return () if self.job is None else tuple(output.gram for output in self.job.outputs)

    @property
    def parts(self) -> tuple[KernelSource, ...]:
        """Those of the run's own network: `gram`, and for variances under flips the odd part."""
        if self.job is None:
            return (self.gram,)
        own = self.gram.identity.architecture
        return tuple(gram for gram in self.stores if gram.identity.architecture == own)

    def matrix(self, kernel: Kernel, block: Block, part: KernelSource | None = None) -> TileMatrix:
        """The kernel among the images in use: `train`, (n, n) symmetric, or `test`, (p, n).

        Every reader of tiles asks here, and none knows where they come from: stored, computed when they are read, or given.

        Args:
            kernel: `nngp` or `ntk`; `gram` of a given kernel.
            block: `train` or `test`.
            part: of `parts`; None is `gram`.
        """
        gram, rows = part or self.gram, self.n_train if block == "train" else self.n_test
        if self.plan.stored or self.job is None or isinstance(gram, GivenGram):
            return gram.matrix(kernel, block, rows=rows, cols=self.n_train)
        evaluation = Evaluation.of(self.spec, gram.identity.symmetry, gram.identity.dtype)
        whole = gram.grid(block)
        return RecomputedTiles(
            self.job.images,
            evaluation,
            kernel,
            block,
            whole,
            whole.leading(rows, self.n_train),
            gram.identity.stored_dtype,
            self.job.pairs_per_step,
        )

    def diagonal(
        self, kernel: Kernel, block: Block, part: KernelSource | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """`k(x, x)` of the images in use, float64; arguments as of `matrix`.

        Args:
            kernel: `nngp` or `ntk`.
            block: `train` or `test`.
            part: of `parts`; None is `gram`.
            plain: of the kernel itself, where the tiles hold its even or odd part.
        """
        rows = self.n_train if block == "train" else self.n_test
        return (part or self.gram).read_diagonal(block, kernel, rows=rows, plain=plain)

    @property
    def estimates_test_diagonal(self) -> bool:
        """Whether `k(x, x)` of the test points was not given: error bounds are estimates then."""
        return isinstance(self.gram, GivenGram) and self.gram.test_diagonal is None


def prepare(
    config: RunConfig,
    tell: Callable[[str], None],
    *,
    source: str | None = None,
    siblings: Sequence[RunConfig] = (),
    measure: bool = True,
    begun: bool | None = None,
    reading: bool = False,
) -> Inputs:
    """Load, check and store the images (once per data set), and open the Gram stores.

    Args:
        config: of the run.
        tell: receives lines for people.
        source: of an earlier `Inputs`: its images are taken, whatever has become of the raw data.
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
        tell(f"images   {dataset.x_train.shape[0]:,} + {dataset.x_test.shape[0]:,} prepared: {images.prefix}")
    else:
        shapes = stored_shapes(config.data, images)
        planned = plan_here(config, shapes, store, siblings, begun=begun, measure=measure)
        tell(f"images   found prepared: {images.prefix}")
    wanted, plan = planned.stores, planned.tiles
    record = read_source(store, source)
    warnings = [str(note) for note in record.get("notes", ())]
    equal = _equal_images(record, images)
    inside = [(a, b) for a, b in equal if b < shapes.used_train]
    if inside:
        index = images.labels().train_index
        a, b = inside[0]
        warnings.append(
            f"{len(inside)} training images equal another one exactly (images {index[a]} and {index[b]}, for one). Equal images "
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
    return Inputs(
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
    return TestPoints(labels.test_index[:p], labels.class_names, known, labels.y_test[:p])


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
) -> Inputs:
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
    return Inputs(
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


def damaged_images(inputs: Inputs) -> list[str]:
    """What is wrong with the prepared images and labels, a line per object."""
    if isinstance(inputs.images, GivenLabels):
        return damaged_labels(inputs.store, GIVEN_PREFIX)
    return verify_prepared(inputs.store, inputs.images.prefix)


def reopen(run: RunDir) -> Inputs:
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


def forget_images(inputs: Inputs) -> None:
    """Have the next `prepare` load the raw data again, which writes whatever is missing or damaged."""
    inputs.store.delete(inputs.source)


def look_at(config: RunConfig) -> tuple[Shapes, ObjectStore]:
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


def source_key(config: RunConfig, *, reading: int | None = None, place: str | None = None) -> str:
    """Key of the record that leads from the raw data, as it is now, to its prepared images.

    Args:
        config: of the run.
        reading: version of what files are taken for; None is that of today.
        place: where the data was when the record was made; None if it has not moved.
    """
    return f"data/sources/{_source_stamp(config, reading or _READING.get(config.data.kind, 1), place)}.json"


def same_source(config: RunConfig, source: str | None, *, place: str | None = None) -> bool:
    """Whether a record is of the raw data as it is now, under any version of reading: a run that has begun stays with its own.

    Args:
        config: of the run.
        source: key of the record.
        place: as of `source_key`.
    """
    versions = range(1, _READING.get(config.data.kind, 1) + 1)
    return any(source == source_key(config, reading=version, place=place) for version in versions)


def _source_stamp(config: RunConfig, reading: int, place: str | None) -> str:
    """Changes whenever the raw data or its preparation may have: lets a later run skip loading and decoding."""
    d, given = config.data, config.kernel
    settings = {k: v for k, v in dataclasses.asdict(d).items() if k not in _NOT_OF_THE_IMAGES}
    # Of records that were made before there was a version, or a layout to choose.
    if reading > 1:
        settings["reading"] = reading
    if d.layout is None:
        del settings["layout"]
    if d.statistics == "subset":
        settings["train_size"] = d.train_size
    files: Any = None
    if d.path is not None:
        path = Path(d.path)
        settings["path"] = place or str(path.resolve())
        files = _path_stamp(path)
    if given.kind == "gram":
        names = (given.train, given.test, given.test_diagonal)
        files = [files, *(_path_stamp(None if name is None else Path(name).expanduser()) for name in names)]
    versions = {"digits": importlib.metadata.version("scikit-learn")} if d.kind == "digits" else {}
    return digest({"settings": settings, "files": files, "dtype": config.kernel.dtype, "versions": versions})


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
