"""Builds the context of the stages from a configuration, after all checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.source_records import same_source, source_key
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import check_kernel
from ntkpipe.planning.shapes import Shapes
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.sources.finding import Search, find_kernels, known_images
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.store import ObjectStore, open_store

_log = logging.getLogger(__name__)


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
    """Load, check and store the data (once per data set), open the kernels, and return the context of the run.

    The arguments are those of `Search`.

    Raises:
        ConfigError, DataError, ResourceError, IdentityError: before any work starts.
        StoreError: if data is missing and the store is not writable.
    """
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    found = find_kernels(Search(config, store, tell, source, siblings, measure, begun, reading))
    context = RunContext(found.config, store, found.data, found.source, found.opened, found.plan, found.warnings)
    if not reading:
        _ = context.initial  # refuse unfit outputs before any tile is computed
        _check_task(config, context)
    return context


def _check_task(config: RunConfig, context: RunContext) -> None:
    """Refuse settings of classification for real targets, and the reverse."""
    known = context.data.labels()
    if config.predict.noise is not None and known.labels_train is not None:
        raise ConfigError("predict.noise needs real targets, but these targets are classes: leave predict.noise out")
    if config.predict.loss == "cross_entropy" and known.y_train.shape[1] == 1:
        raise ConfigError(
            "predict.loss=cross_entropy needs classes, but there is one real target: set predict.loss=squared or huber, "
            "or data.labels=centered if its values are classes"
        )


def reopen(run: RunDir) -> RunContext:
    """Return the context of a run with prepared data, without reading raw data or writing anything.

    Raises:
        StoreError: if the prepared data or its store is missing.
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


def forget_data(context: RunContext) -> None:
    """Make the next `prepare` load the raw data again and rewrite missing or damaged parts."""
    context.store.delete(context.source)


def read_shapes(config: RunConfig) -> tuple[Shapes, ObjectStore]:
    """Return the shapes for a plan, in rows of the kernel, and the store. The function writes nothing.

    It loads raw images only if they are not prepared yet.
    """
    check_kernel(config.kernel)
    store = open_store(config.store.url)
    images = known_images(store, source_key(config))
    if images:
        return stored_shapes(config.data, images).for_kernel(config.kernel), store
    dataset = load_dataset(config.data, dtype=config.kernel.dtype)
    for note in dataset.notes:
        _log.warning("%s", note)
    return shapes_of(dataset).for_kernel(config.kernel), store


def has_data(config: RunConfig, receipt: Mapping[str, Any]) -> bool:
    """Return whether a receipt matches the current raw data, or the raw data is missing."""
    path, source = config.data.path, receipt.get("source")
    gone = path is not None and not Path(path).expanduser().exists()
    # The same files in another folder count as the same data.
    return source is not None and (gone or same_source(config, source, place=receipt.get("path")))
