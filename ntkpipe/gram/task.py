"""Tasks of the Gram stage: read rows of images, compute tiles, write them. They take addresses and return records."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

import numpy as np

from ntkpipe import __version__
from ntkpipe.errors import CorruptionError, NtkpipeError, ResourceError
from ntkpipe.gram import worker
from ntkpipe.tiles.store import Block, GramStore


class ImageSource(Protocol):
    """Prepared images, read by rows. Hashable, and cheap to pickle: an address, never pixels."""

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """Images `start` to `stop` of a block: `(stop - start, h, w, c)`."""
        ...


@dataclass(frozen=True)
class GramJob:
    """What the tasks of one Gram stage share.

    Args:
        gram: store that tiles are written to.
        images: that they are computed from.
        spec: layers of the architecture.
    """

    gram: GramStore
    images: ImageSource
    spec: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class TileRecord:
    """What became of one tile, or of one part of a diagonal.

    Args:
        block: `train`, `test`, `diagonal/train` or `diagonal/test`.
        i: row of tiles.
        j: column of tiles; 0 for diagonals.
        pairs: kernel evaluations that it stands for.
        outcome: `computed` here, `found` done by somebody else, or `failed`.
        seconds: that this took.
        error: what to say of a failure.
    """

    block: str
    i: int
    j: int
    pairs: int
    outcome: Literal["computed", "found", "failed"]
    seconds: float = 0.0
    error: str | None = None


def tile_task(job: GramJob, block: Block, addresses: Sequence[tuple[int, int]]) -> list[TileRecord]:
    """Compute and store the tiles of `block` at `addresses` that have no receipt; one record per tile.

    A tile is written by a second thread while the next is computed, one at a time; when this returns, every tile that
    is not reported as failed has its receipt. If the process dies, only the tiles in the making are lost.

    Raises:
        ResourceError: if the store or the memory is full, which no other tile would survive either.
        Exception: whatever is not an `NtkpipeError`: a programming error would spoil every tile.
    """
    grid = job.gram.grid(block)

    def compute(i: int, j: int) -> dict[str, np.ndarray]:
        tile = grid.tile(i, j)
        x1 = _rows(job.images, "train" if block == "train" else "test", tile.row_start, tile.row_stop)
        diagonal = grid.symmetric and i == j
        x2 = None if diagonal else _rows(job.images, "train", tile.col_start, tile.col_stop)
        identity = job.gram.identity
        return worker.compute_tile(
            job.spec,
            x1,
            x2,
            diagonal=diagonal,
            dtype=identity.dtype,
            out_dtype=identity.stored_dtype,
            pad_to=min(grid.edge, grid.cols),  # one shape, one compilation: the last row of tiles is ragged
        )

    def write(i: int, j: int, arrays: dict[str, np.ndarray], seconds: float) -> None:
        job.gram.write_tile(block, i, j, arrays, seconds=seconds, provenance=provenance())

    def pairs(i: int, j: int) -> int:
        rows, cols = grid.tile(i, j).shape
        return rows * cols

    return _overlapped(job.gram, block, addresses, compute, write, pairs)


def diagonal_task(job: GramJob, block: Block, rows: Sequence[int]) -> list[TileRecord]:
    """Compute and store `k(x, x)`, in float64, for the images of the given rows of tiles; see `tile_task`."""
    grid = job.gram.grid(block)

    def compute(i: int, _: int) -> dict[str, np.ndarray]:
        tile = grid.tile(i, 0)
        images = _rows(job.images, block, tile.row_start, tile.row_stop)
        return worker.compute_diagonal(job.spec, images, dtype="float64")

    def write(i: int, _: int, arrays: dict[str, np.ndarray], seconds: float) -> None:
        job.gram.write_diagonal(block, i, arrays, seconds=seconds, provenance=provenance())

    return _overlapped(job.gram, f"diagonal/{block}", [(i, 0) for i in rows], compute, write, lambda i, j: 0)


@functools.cache
def provenance() -> dict[str, str]:
    """Versions and hardware of this process, for receipts."""
    found = {"ntkpipe": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("jax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a vendored copy without metadata
            found[package] = "unknown"
    return found


@functools.lru_cache(maxsize=2)
def _rows(images: ImageSource, block: Block, start: int, stop: int) -> np.ndarray:
    """A row block of images; a task's row block stays while its column blocks pass."""
    return images.read(block, start, stop)


def release_rows() -> None:
    """Forget the row blocks that this process has read."""
    _rows.cache_clear()


def _overlapped(
    gram: GramStore,
    block: str,
    addresses: Sequence[tuple[int, int]],
    compute: Callable[[int, int], dict[str, np.ndarray]],
    write: Callable[[int, int, dict[str, np.ndarray], float], None],
    pairs: Callable[[int, int], int],
) -> list[TileRecord]:
    """Compute each address in turn while the one before is written; at most one write is pending."""
    records: list[TileRecord] = []
    pending: tuple[tuple[int, int], float, Future[None]] | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        (i, j), seconds, future = pending
        pending = None
        try:
            future.result()
            records.append(TileRecord(block, i, j, pairs(i, j), "computed", seconds))
        except ResourceError:
            raise
        except NtkpipeError as error:
            records.append(TileRecord(block, i, j, pairs(i, j), "failed", seconds, str(error)))

    with ThreadPoolExecutor(1, thread_name_prefix="tile-writer") as writer:
        for i, j in addresses:
            if _is_done(gram, block, i, j):
                records.append(TileRecord(block, i, j, pairs(i, j), "found"))
                continue
            start = time.perf_counter()
            try:
                arrays = compute(i, j)
            except ResourceError:
                raise
            except NtkpipeError as error:
                seconds = time.perf_counter() - start
                records.append(TileRecord(block, i, j, pairs(i, j), "failed", seconds, str(error)))
                continue
            except MemoryError as error:
                raise ResourceError(
                    f"no memory left for tile ({i}, {j}) of {block}: set a smaller grid.edge or fewer cluster.workers"
                ) from error
            seconds = time.perf_counter() - start
            settle()
            pending = (i, j), seconds, writer.submit(write, i, j, arrays, seconds)
            # Two tiles are alive now; without this the one being written would stay until the next is complete.
            del arrays
        settle()
    return records


def _is_done(gram: GramStore, block: str, i: int, j: int) -> bool:
    try:
        return gram.receipt(block, i, j) is not None
    except CorruptionError:
        return False  # a damaged receipt proves nothing; the writer replaces it
