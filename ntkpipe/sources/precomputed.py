"""Opens given kernels (`kernel=gram`), checks them once, and recognises them by their content."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.given_gram import GivenGram, check_gram, open_gram
from ntkpipe.data.stored_labels import GIVEN_PREFIX
from ntkpipe.errors import CorruptionError
from ntkpipe.planning.shapes import Shapes
from ntkpipe.sources.given_files import Checked, FileKind, find_files, read_labels_beside, shapes_of_files
from ntkpipe.storage.checksum import content_hash
from ntkpipe.storage.store import ObjectStore


def _opened(config: RunConfig) -> GivenGram:
    """Open the files of the kernel without reading them."""
    k = config.kernel
    assert k.train is not None  # checked by KernelConfig
    assert k.test is not None
    return open_gram(k.train, k.test, k.test_diagonal, config.grid.edge)


def _keep_diagonals(gram: GivenGram, store: ObjectStore) -> dict[str, str]:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **gram.diagonals)
    data = buffer.getvalue()
    key = f"{GIVEN_PREFIX}/diagonals/{content_hash(data)}.npz"
    store.put(key, data, overwrite=True)
    return {"diagonals": key}


def _with_diagonals(gram: GivenGram, record: Mapping[str, Any], store: ObjectStore) -> GivenGram:
    key = record["diagonals"]
    data = store.get(key)
    if content_hash(data) != key.rpartition("/")[2].removesuffix(".npz"):
        raise CorruptionError(f"{key} in {store.url} does not match its name")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        diagonals = {name: archive[name] for name in ("train", "test")}
    return replace(gram, content=record["content"], diagonals=diagonals)


_KERNEL = FileKind[GivenGram]("kernel", check_gram, _keep_diagonals, _with_diagonals)


def find_given(
    config: RunConfig, store: ObjectStore, source: str, tell: Callable[[str], None], *, reading: bool = False
) -> Checked[GivenGram]:
    """Check the kernel of a configuration; see `find_files`."""
    return find_files(_KERNEL, _opened(config), config, store, source, tell, reading=reading)


def read_given_shapes(config: RunConfig) -> tuple[GivenGram, Shapes]:
    """The kernel and its sizes, for a plan. Reads only headers and labels, and writes nothing."""
    gram = _opened(config)
    return gram, shapes_of_files(config, gram, read_labels_beside(config, gram))


def describe_given(gram: GivenGram, shapes: Shapes) -> str:
    """The plan of a given kernel as lines of text."""
    lines = [f"{'block':<8}{'points':>20}{'dtype':>10}  file"]
    for block, array, rows in (("train", gram.train, shapes.used_train), ("test", gram.test, shapes.used_test)):
        lines.append(f"{block:<8}{f'{rows:,} x {shapes.used_train:,}':>20}{array.dtype:>10}  {array.path}")
    known = "given" if gram.test_diagonal is not None else "estimated for error bounds, which are then estimates"
    return "\n".join(
        [
            *lines,
            "",
            f"tile        {gram.edge} x {gram.edge}, read in place",
            f"k(x, x)     of test points {known}",
        ]
    )
