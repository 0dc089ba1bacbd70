"""What every stage starts from: prepared images, the kernel, the Gram store and its plan. All checks come first here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ntkpipe.config import RunConfig
from ntkpipe.data.dataset import Dataset, load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.labels import require_two_classes
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.errors import DataError, IncompleteError, ResourceError, StoreError
from ntkpipe.gram.plan import GramPlan, choose_edge, human_bytes, plan_gram
from ntkpipe.gram.task import GramJob, Output
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.spec import FORMULA_VERSION, fingerprint
from ntkpipe.pipeline.flips import FLIP_SAMPLE, check_flips
from ntkpipe.pipeline.kernel import check_kernel, kernel_spec, pair_cost
from ntkpipe.pipeline.run_dir import RunDir, digest
from ntkpipe.storage.store import ObjectStore, open_store
from ntkpipe.tiles.catalogue import usage
from ntkpipe.tiles.identity import GramIdentity, Symmetry
from ntkpipe.tiles.store import GramStore

# Of the memory that the machine has free, the part that a run takes when it is not told: the rest is for page cache.
_MEMORY_SHARE = 0.6
# Settings that change neither the prepared images nor the labels stored with them.
_NOT_OF_THE_IMAGES = ("train_size", "test_size", "download", "source")


@dataclass(frozen=True)
class Inputs:
    """Everything known before the first tile.

    Args:
        config: of the run.
        store: of images and tiles.
        images: handle of the prepared images.
        spec: layers of the architecture, canonical.
        gram: handle of the Gram store of the kernel that is solved with.
        job: every store that the Gram stage fills, `gram` first, and the images.
        plan: of the tiles that this run needs.
        n_train: training images in use, the leading rows.
        n_test: test images in use.
        workers: processes that compute.
        memory_bytes: budget of all processes together.
        source: key of the record that leads from the raw data to the images.
        warnings: what the user should know.
    """

    config: RunConfig
    store: ObjectStore
    images: PreparedImages
    spec: list[dict[str, Any]]
    gram: GramStore
    job: GramJob
    plan: GramPlan
    n_train: int
    n_test: int
    workers: int
    memory_bytes: int
    source: str
    warnings: tuple[str, ...] = ()

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """Every store that the Gram stage fills."""
        return tuple(output.gram for output in self.job.outputs)

    @property
    def parts(self) -> tuple[GramStore, ...]:
        """Those of the run's own network: `gram`, and for variances under flips the odd part."""
        own = self.gram.identity.architecture
        return tuple(gram for gram in self.stores if gram.identity.architecture == own)


@dataclass(frozen=True)
class WantedStore:
    """A Gram store that a run needs.

    Args:
        text: what it is, for people.
        identity: of the store.
        spec: layers of its network.
    """

    text: str
    identity: GramIdentity
    spec: list[dict[str, Any]]


@dataclass(frozen=True)
class Shapes:
    """Sizes of a data set, which is all that a plan needs of it."""

    fingerprint: str
    n_train: int
    n_test: int
    used_train: int
    used_test: int
    image: tuple[int, ...]
    outputs: int


def memory_budget(config: RunConfig) -> int:
    """Bytes for all processes together: as configured, or a share of what is free now."""
    if config.cluster.memory_gib is not None:
        return int(config.cluster.memory_gib * 2**30)
    return int(_MEMORY_SHARE * psutil.virtual_memory().available)


def wanted_stores(config: RunConfig, shapes: Shapes, siblings: Sequence[RunConfig] = ()) -> list[WantedStore]:
    """The Gram stores of a run and of those that share its evaluations; the one to solve with comes first.

    Args:
        config: of the run.
        shapes: of its images.
        siblings: configurations of the same images and precision, with networks of other depths.
    """
    symmetries: tuple[Symmetry, ...] = ("none",)
    if config.augment == "hflip":
        # Means are those of the even part alone; the odd one adds its variance.
        symmetries = ("even",) if config.predict.covariance == "none" else ("even", "odd")
    found = []
    for one in (config, *siblings):
        spec = kernel_spec(one.kernel, shapes.image)
        depth = [f"depth {one.kernel.depth}"] if siblings else []
        for symmetry in symmetries:
            part = [f"{symmetry} part under flips"] if symmetry != "none" else []
            identity = _identity(one, shapes, spec, symmetry)
            found.append(WantedStore(" ".join([*depth, *part]) or "the kernel", identity, spec))
    return found


def make_plan(config: RunConfig, shapes: Shapes, wanted: Sequence[WantedStore], store: ObjectStore) -> GramPlan:
    """The frozen plan of the run's tiles, checked against memory and disk.

    Args:
        config: of the run.
        shapes: of its images.
        wanted: from `wanted_stores`.
        store: where the Gram stores lie.

    Raises:
        ConfigError, ResourceError: naming the setting to change.
    """
    architecture(*(one.spec for one in wanted)).check_input(shapes.image)
    memory = memory_budget(config)
    names = [config.store.gram or wanted[0].identity.key, *(one.identity.key for one in wanted[1:])]
    deepest = max((one.spec for one in wanted), key=len)
    plan = plan_gram(
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        spec=deepest,
        cost=pair_cost(deepest, shapes.image),
        edge=wanted[0].identity.edge,
        kernel_dtype=config.kernel.dtype,
        store_dtype=config.store_dtype,
        train_rows=shapes.used_train,
        test_rows=shapes.used_test,
        workers=config.cluster.worker_count(),
        memory_bytes=memory,
        free_bytes=store.free_bytes(),
        stored_bytes=sum(usage(store, name) for name in names),
        stores=[one.text for one in wanted],
        evaluations=config.copies,
    )
    _check_dense(config, shapes.used_train, memory)
    return plan


def prepare(
    config: RunConfig,
    tell: Callable[[str], None],
    *,
    source: str | None = None,
    siblings: Sequence[RunConfig] = (),
) -> Inputs:
    """Load, check and store the images (once per data set), and open the Gram stores.

    Args:
        config: of the run.
        tell: receives lines for people.
        source: of an earlier `Inputs`: its images are taken, whatever has become of the raw data.
        siblings: see `wanted_stores`.

    Raises:
        ConfigError, DataError, ResourceError, IdentityError: before any work starts.
    """
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    source = source or source_key(config)
    images = _known_images(store, source)
    warnings: list[str] = []
    if images is None:
        dataset = load_dataset(config.data, dtype=config.kernel.dtype)
        shapes = _shapes(dataset)
        wanted = wanted_stores(config, shapes, siblings)
        plan = make_plan(config, shapes, wanted, store)  # before anything is written: it may refuse
        _check_symmetry(wanted, dataset.x_train)
        images = write_prepared(dataset, store)
        duplicates = find_duplicates(dataset.x_train)
        record = {
            "images": dataclasses.asdict(images),
            "duplicates": [[int(a), int(b)] for a, b in duplicates[:1000]],
        }
        source = source_key(config)  # once more: the loader may have downloaded the files
        store.put(source, json.dumps(record).encode(), overwrite=True)
        tell(f"images   {dataset.x_train.shape[0]:,} + {dataset.x_test.shape[0]:,} prepared: {images.prefix}")
    else:
        shapes = stored_shapes(config, images)
        wanted = wanted_stores(config, shapes, siblings)
        plan = make_plan(config, shapes, wanted, store)
        _check_symmetry(wanted, images.read("train", 0, min(FLIP_SAMPLE, shapes.n_train)))
        tell(f"images   found prepared: {images.prefix}")
    grams = [
        GramStore.create_or_open(store, one.identity, name=None if k else config.store.gram)
        for k, one in enumerate(wanted)
    ]
    outputs = tuple(Output(gram, tuple(one.spec)) for gram, one in zip(grams, wanted, strict=True))
    record = json.loads(store.get(source))
    inside = [(a, b) for a, b in record["duplicates"] if b < shapes.used_train]
    if inside:
        index = images.labels().train_index
        a, b = inside[0]
        warnings.append(
            f"{len(inside)} training images equal another one exactly (images {index[a]} and {index[b]}, for one): the "
            "kernel is singular. Predictions stay finite; with ridge 0 and t = inf they leave out what cannot be learnt."
        )
    return Inputs(
        config,
        store,
        images,
        wanted[0].spec,
        grams[0],
        GramJob(outputs, images),
        plan,
        shapes.used_train,
        shapes.used_test,
        config.cluster.worker_count(),
        memory_budget(config),
        source,
        tuple(warnings),
    )


def reopen(run: RunDir) -> Inputs:
    """The inputs of a run whose images are prepared; reads no raw data.

    Raises:
        StoreError: if they are not there any more.
    """
    config = run.config
    source = (run.receipt("data") or {}).get("source") or source_key(config)
    if _known_images(open_store(config.store.url), source) is None:
        raise StoreError(
            f"the prepared images of {run.path} are not in {config.store.url} or are damaged: ntkpipe run with the same "
            "settings prepares them again"
        )
    return prepare(config, lambda line: None, source=source)


def forget_images(inputs: Inputs) -> None:
    """Have the next `prepare` load the raw data again, which writes whatever is missing or damaged."""
    inputs.store.delete(inputs.source)


def look_at(config: RunConfig) -> tuple[Shapes, ObjectStore]:
    """Sizes for a plan; writes nothing. Raw images are loaded only if they are not prepared yet."""
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    images = _known_images(store, source_key(config))
    shapes = stored_shapes(config, images) if images else _shapes(load_dataset(config.data, dtype=config.kernel.dtype))
    return shapes, store


def stored_shapes(config: RunConfig, images: PreparedImages) -> Shapes:
    """Sizes of a stored data set and of the subset that the run uses.

    Raises:
        DataError: if fewer images are there than asked for.
    """
    n_train, n_test = images.shape("train")[0], images.shape("test")[0]
    for name, asked, there in (("train", config.data.train_size, n_train), ("test", config.data.test_size, n_test)):
        if asked is not None and asked > there:
            raise DataError(f"data.{name}_size={asked}, but the data set has {there} such images")
    used = config.data.train_size or n_train
    labels = images.labels()
    if labels.labels_train is not None:
        require_two_classes(labels.labels_train[:used], labels.class_names, f"the subset data.train_size={used}")
    return Shapes(
        images.fingerprint,
        n_train,
        n_test,
        used,
        config.data.test_size or n_test,
        images.shape("train")[1:],
        labels.y_train.shape[1],
    )


def _shapes(dataset: Dataset) -> Shapes:
    return Shapes(
        dataset.fingerprint,
        len(dataset.x_train),
        len(dataset.x_test),
        dataset.n_train,
        dataset.n_test,
        dataset.x_train.shape[1:],
        dataset.y_train.shape[1],
    )


def _check_symmetry(wanted: Sequence[WantedStore], images: np.ndarray) -> None:
    if any(one.identity.symmetry != "none" for one in wanted):
        check_flips([one.spec for one in wanted], images)


def _identity(config: RunConfig, shapes: Shapes, spec: list[dict[str, Any]], symmetry: Symmetry) -> GramIdentity:
    return GramIdentity(
        data=shapes.fingerprint,
        architecture=fingerprint(spec),
        formula_version=str(FORMULA_VERSION),
        dtype=config.kernel.dtype,
        stored_dtype=config.store_dtype,
        edge=config.grid.edge or choose_edge(shapes.n_train, pair_cost(spec, shapes.image)),
        n_train=shapes.n_train,
        n_test=shapes.n_test,
        symmetry=symmetry,
        spec=spec,
    )


def _check_dense(config: RunConfig, n: int, memory: int) -> None:
    """Refuse a dense solver that would not fit: the matrix, its eigenvectors and LAPACK's workspace."""
    if config.solver.kind == "krylov":
        return
    copies = 3 if config.solver.kind == "eigh" else 2
    copies += config.copies if config.predict.covariance != "none" else 0  # with flips both parts have eigenvectors
    need = copies * 8 * n * n
    if need > memory:
        raise ResourceError(
            f"solver={config.solver.kind} needs {human_bytes(need)} for {n:,} training images and the budget is "
            f"{human_bytes(memory)}: use solver=krylov, a smaller data.train_size, or more cluster.memory_gib"
        )


def source_key(config: RunConfig) -> str:
    """Key of the record that leads from the raw data, as it is now, to its prepared images."""
    return f"data/sources/{_source_stamp(config)}.json"


def _source_stamp(config: RunConfig) -> str:
    """Changes whenever the raw data or its preparation may have: lets a later run skip loading and decoding."""
    d = config.data
    settings = {k: v for k, v in dataclasses.asdict(d).items() if k not in _NOT_OF_THE_IMAGES}
    if d.statistics == "subset":
        settings["train_size"] = d.train_size
    files: Any = None
    if d.path is not None:
        path = Path(d.path)
        settings["path"] = str(path.resolve())
        files = _folder_stamp(path) if path.is_dir() else _file_stamp(path) if path.exists() else None
    versions = {"digits": importlib.metadata.version("scikit-learn")} if d.kind == "digits" else {}
    return digest({"settings": settings, "files": files, "dtype": config.kernel.dtype, "versions": versions})


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
        record = json.loads(store.get(source))
        images = PreparedImages(**{**record["images"], "url": store.url})
        images.shape("train")
        images.labels()
    except (StoreError, IncompleteError, ValueError, KeyError, TypeError):
        return None  # no record, or one of images that are gone or damaged: they are prepared again
    return images
