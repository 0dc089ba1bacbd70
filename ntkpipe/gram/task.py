"""Tasks of the Gram stage: read images, compute tiles and write them. They take addresses and return records."""

from __future__ import annotations

import contextlib
import functools
import heapq
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from ntkpipe import __version__
from ntkpipe.errors import CorruptionError, NtkpipeError, ResourceError
from ntkpipe.gram.combined import evaluation_of_all
from ntkpipe.gram.function import Evaluates, Evaluator
from ntkpipe.gram.worker import Spec, Wanted, architecture
from ntkpipe.kernels.spec import canonical_json
from ntkpipe.tiles.grid import Tile, TileGrid
from ntkpipe.tiles.store import Block, GramStore

_T = TypeVar("_T")
Kernels = dict[str, np.ndarray]


class ImageSource(Protocol):
    """The address of prepared images, which are read by rows. It is hashable and cheap to pickle: it contains no pixels."""

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """Read images `start` to `stop - 1` of a block: (stop - start, h, w, c)."""
        ...


@dataclass(frozen=True)
class Output:
    """A Gram store to fill, and its kernel: the layers of an infinite network, or the evaluator of another kernel."""

    gram: GramStore
    spec: tuple[Mapping[str, Any], ...] = ()
    evaluator: Evaluator | None = None

    @property
    def wanted(self) -> Wanted:
        """The kernels in its tiles."""
        return Wanted(canonical_json(self.spec), self.gram.identity.symmetry)


def evaluation_of(outputs: Sequence[Output], dtype: str) -> Evaluates:
    """The evaluation of the tiles of all these stores at once. A kernel without a spec has only one store."""
    if (own := outputs[0].evaluator) is not None:
        return own.evaluation(dtype)
    return evaluation_of_all(tuple(output.wanted for output in outputs), dtype)


@dataclass(frozen=True)
class GramJob:
    """Arguments shared by the tasks of one Gram stage. Every tile is evaluated once and written to each store that
    lacks it.

    Args:
        outputs: stores with the same images, grid and dtypes: the even and the odd part of a kernel, one network at
            several depths, or the parts of a sum or product.
        images: the source of the images.
        pairs_per_step: see `Evaluation.tile`.

    Raises:
        ValueError: if the stores differ in more than the kernel.
    """

    outputs: tuple[Output, ...]
    images: ImageSource
    pairs_per_step: int | None = None

    def __post_init__(self) -> None:
        for output in self.outputs[1:]:
            mine, first = output.gram.identity.compared(), self.outputs[0].gram.identity.compared()
            for name in ("architecture", "symmetry"):
                del mine[name], first[name]
            if mine != first:
                raise ValueError(f"{output.gram.where} and {self.outputs[0].gram.where} differ in more than the kernel")

    def grid(self, block: Block) -> TileGrid:
        """The tiles of the whole block, which are the same in every store."""
        return self.outputs[0].gram.grid(block)

    def missing(self, block: Block, used: TileGrid) -> Iterator[Tile]:
        """Tiles of `used` that at least one store lacks, in the order of the grid; see `GramStore.missing`."""
        lacking = [output.gram.missing(block, used) for output in self.outputs]
        return _merged(lacking, lambda tile: (tile.i, tile.j))

    def missing_diagonal(self, block: Block, rows: int) -> Iterator[int]:
        """Rows of tiles whose part of the diagonal at least one store lacks; see `GramStore.missing_diagonal`."""
        lacking = [iter(output.gram.missing_diagonal(block, rows)) for output in self.outputs]
        return _merged(lacking, lambda row: row)

    def lacking(self, label: str, i: int, j: int) -> tuple[Output, ...]:
        """The stores that have no receipt for this address at the moment."""
        return tuple(output for output in self.outputs if not _is_done(output.gram, label, i, j))


def _merged(sorted_parts: Sequence[Iterator[_T]], key: Callable[[_T], Any]) -> Iterator[_T]:
    """Merge sorted parts lazily, without duplicates."""
    last: Any = None
    for item in heapq.merge(*sorted_parts, key=key):
        if (address := key(item)) != last:
            yield item
        last = address


@dataclass(frozen=True)
class TileRecord:
    """The outcome of one tile, or of one part of a diagonal.

    Args:
        block: `train`, `test`, `diagonal/train` or `diagonal/test`.
        i: row of tiles.
        j: column of tiles; 0 for diagonals.
        pairs: number of kernel evaluations.
        outcome: `computed` by this task, `found` in the store, or `failed`.
        seconds: of the computation.
        error: the message of a failure.
    """

    block: str
    i: int
    j: int
    pairs: int
    outcome: Literal["computed", "found", "failed"]
    seconds: float = 0.0
    error: str | None = None


def tile_task(job: GramJob, block: Block, addresses: Sequence[tuple[int, int]]) -> list[TileRecord]:
    """Compute and store the tiles of `block` at `addresses` that lack a receipt in some store; one record per address.

    While a tile is computed, a second thread writes the previous tile, and a third looks for the receipt and reads the
    images of the next tile, because a bucket takes tens of milliseconds to answer. When the task returns, every tile that
    is not reported as failed has its receipt. If the process dies, only the tiles in progress are lost.

    Raises:
        ResourceError: if the store or the memory is full, because all other tiles would fail as well.
        Exception: any error other than an `NtkpipeError`, because a programming error affects every tile.
    """
    grid = job.grid(block)

    def compute(outputs: Sequence[Output], i: int, j: int) -> list[dict[str, np.ndarray]]:
        identity = outputs[0].gram.identity
        evaluation = evaluation_of(outputs, identity.dtype)
        return evaluate_tile(job.images, evaluation, block, grid, i, j, identity.stored_dtype, job.pairs_per_step)

    def write(gram: GramStore, i: int, j: int, arrays: dict[str, np.ndarray], seconds: float) -> None:
        gram.write_tile(block, i, j, arrays, seconds=seconds, provenance=provenance())

    def read(i: int, j: int) -> None:
        tile = grid.tile(i, j)
        _images(job.images, block, tile.row_start, tile.row_stop)
        _images(job.images, "train", tile.col_start, tile.col_stop)

    def pairs(i: int, j: int) -> int:
        rows, cols = grid.tile(i, j).shape
        return rows * cols

    return _overlapped(job, block, addresses, read, compute, write, pairs)


def evaluate_tile(
    images: ImageSource,
    evaluation: Evaluates,
    block: Block,
    grid: TileGrid,
    i: int,
    j: int,
    out_dtype: str,
    pairs_per_step: int | None,
) -> list[Kernels]:
    """Tile `(i, j)` of the whole grid of a block, for each result of the evaluation. Its row block is cached."""

    def prepared(of: Block, start: int, stop: int, flipped: bool = False) -> Any:
        return _prepared(images, evaluation, of, start, stop, flipped)

    tile = grid.tile(i, j)
    rows = prepared(block, tile.row_start, tile.row_stop)
    columns = ("train", tile.col_start, tile.col_stop)
    return evaluation.tile(
        rows,
        None if grid.symmetric and i == j else prepared(*columns),
        prepared(*columns, flipped=True) if evaluation.flips else None,
        out_dtype=out_dtype,
        pad_to=min(grid.edge, grid.cols),  # the tiles of the last row are smaller: one shape means one compilation
        pairs_per_step=pairs_per_step,
    )


def diagonal_task(job: GramJob, block: Block, rows: Sequence[int]) -> list[TileRecord]:
    """Compute and store `k(x, x)` in float64 for the images of the given rows of tiles; see `tile_task`."""
    grid = job.grid(block)

    def images(i: int) -> np.ndarray:
        tile = grid.tile(i, 0)
        return _images(job.images, block, tile.row_start, tile.row_stop)

    def read(i: int, _: int) -> None:
        images(i)

    def compute(outputs: Sequence[Output], i: int, _: int) -> list[dict[str, np.ndarray]]:
        return evaluation_of(outputs, "float64").diagonal(images(i))

    def write(gram: GramStore, i: int, _: int, arrays: dict[str, np.ndarray], seconds: float) -> None:
        gram.write_diagonal(block, i, arrays, seconds=seconds, provenance=provenance())

    return _overlapped(job, f"diagonal/{block}", [(i, 0) for i in rows], read, compute, write, lambda i, j: 0)


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


@functools.lru_cache(maxsize=3)
def _prepared(images: ImageSource, evaluation: Evaluates, block: Block, start: int, stop: int, flipped: bool) -> Any:
    """A block of prepared images. The cache keeps a task's row block while its column blocks and their flips change."""
    return evaluation.prepare(_images(images, block, start, stop), flipped=flipped)


# Four entries: the rows and columns of a tile, and those of the next tile.
@functools.lru_cache(maxsize=4)
def _images(images: ImageSource, block: Block, start: int, stop: int) -> np.ndarray:
    return images.read(block, start, stop)


def release_rows() -> None:
    """Clear the caches of images of this process."""
    _prepared.cache_clear()
    _images.cache_clear()


def _overlapped(
    job: GramJob,
    block: str,
    addresses: Sequence[tuple[int, int]],
    read: Callable[[int, int], None],
    compute: Callable[[Sequence[Output], int, int], list[dict[str, np.ndarray]]],
    write: Callable[[GramStore, int, int, dict[str, np.ndarray], float], None],
    pairs: Callable[[int, int], int],
) -> list[TileRecord]:
    """Compute the addresses in turn, while one thread writes the previous result and another reads the next input."""

    def write_all(outputs: Sequence[Output], i: int, j: int, made: list[dict[str, np.ndarray]], seconds: float) -> None:
        failed: NtkpipeError | None = None
        for output in outputs:
            try:
                write(output.gram, i, j, made.pop(0), seconds)
            except ResourceError:
                raise
            except NtkpipeError as error:  # perhaps for only one kernel, while the others are stored
                failed = failed or error
        if failed is not None:
            raise failed

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

    def look(i: int, j: int) -> tuple[Output, ...]:
        if outputs := job.lacking(block, i, j):
            with contextlib.suppress(NtkpipeError, MemoryError):  # the computation meets the error again and reports it
                read(i, j)
        return outputs

    with (
        ThreadPoolExecutor(1, thread_name_prefix="tile-writer") as writer,
        ThreadPoolExecutor(1, thread_name_prefix="tile-reader") as reader,
    ):
        ahead = reader.submit(look, *addresses[0]) if addresses else None
        for k, (i, j) in enumerate(addresses):
            assert ahead is not None
            outputs = ahead.result()
            ahead = reader.submit(look, *addresses[k + 1]) if k + 1 < len(addresses) else None
            if not outputs:
                records.append(TileRecord(block, i, j, pairs(i, j), "found"))
                continue
            start = time.perf_counter()
            try:
                made = compute(outputs, i, j)
            except ResourceError:
                raise
            except NtkpipeError as error:
                seconds = time.perf_counter() - start
                records.append(TileRecord(block, i, j, pairs(i, j), "failed", seconds, str(error)))
                continue
            except MemoryError as error:
                raise ResourceError(
                    f"insufficient memory for tile ({i}, {j}) of {block}: set a smaller grid.edge or fewer "
                    "cluster.workers"
                ) from error
            seconds = time.perf_counter() - start
            settle()
            pending = (i, j), seconds, writer.submit(write_all, outputs, i, j, made, seconds)
            # Without this line, the tile that is being written would stay in memory until the next one is complete.
            del made
        settle()
    return records


def _is_done(gram: GramStore, block: str, i: int, j: int) -> bool:
    try:
        return gram.receipt(block, i, j) is not None
    except CorruptionError:
        return False  # the writer replaces a damaged receipt


@dataclass(frozen=True)
class Picked:
    """Images of a block by number, in this order."""

    block: Block
    indices: tuple[int, ...]


def pairs_task(images: ImageSource, evaluation: Evaluates, rows: Picked, columns: Picked | None) -> Kernels:
    """Kernels of chosen images, without tiles: `{"nngp": (k, m), "ntk": (k, m)}` float64; `{"gram": (k, m)}` for a function.

    Args:
        images: the source of the images.
        evaluation: of one kernel.
        rows: row images.
        columns: column images; None pairs the rows with themselves.
    """
    first = evaluation.prepare(_picked(images, rows))
    second = None if columns is None else evaluation.prepare(_picked(images, columns))
    flipped = None
    if evaluation.flips:
        flipped = evaluation.prepare(_picked(images, columns or rows), flipped=True)
    # The size is a power of two, so that few programs are compiled.
    edge = max(_LEAST_EDGE, 1 << (max(len(rows.indices), len((columns or rows).indices)) - 1).bit_length())
    (made,) = evaluation.tile(first, second, flipped, out_dtype="float64", pad_to=edge)
    return made


def distance_task(images: ImageSource, spec: Spec, rows: Picked, columns: Picked) -> Kernels | None:
    """Kernels of chosen images in float64, computed in distance form; None for a network on images, which has no such form."""
    network = architecture(spec)
    first, second = _picked(images, rows), _picked(images, columns)
    if not network.is_flat(first.shape[1:]):
        return None
    made = network.in_distance_form(first, second)
    return {"nngp": np.asarray(made.nngp), "ntk": np.asarray(made.ntk)}


_LEAST_EDGE = 64


def _picked(images: ImageSource, picked: Picked) -> np.ndarray:
    """Read the picked images; consecutive images are read at once."""
    chosen = picked.indices
    if chosen == tuple(range(chosen[0], chosen[0] + len(chosen))):
        return images.read(picked.block, chosen[0], chosen[0] + len(chosen))
    return np.concatenate([images.read(picked.block, i, i + 1) for i in chosen])
