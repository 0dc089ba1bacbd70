"""Tasks of the Gram stage: read rows of images, compute tiles, write them. They take addresses and return records."""

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
    """Prepared images, read by rows. Hashable, and cheap to pickle: an address, never pixels."""

    def read(self, block: Block, start: int, stop: int) -> np.ndarray:
        """Images `start` to `stop` of a block: `(stop - start, h, w, c)`."""
        ...


@dataclass(frozen=True)
class Output:
    """One Gram store to fill, and what with: the layers of an infinite network, or what evaluates another kernel."""

    gram: GramStore
    spec: tuple[Mapping[str, Any], ...] = ()
    evaluator: Evaluator | None = None

    @property
    def wanted(self) -> Wanted:
        """What its tiles hold."""
        return Wanted(canonical_json(self.spec), self.gram.identity.symmetry)


def evaluation_of(outputs: Sequence[Output], dtype: str) -> Evaluates:
    """What gives the tiles of all these stores at once; kernels that no spec names go one by one."""
    if (own := outputs[0].evaluator) is not None:
        return own.evaluation(dtype)
    return evaluation_of_all(tuple(output.wanted for output in outputs), dtype)


@dataclass(frozen=True)
class GramJob:
    """What the tasks of one Gram stage share: every tile is evaluated once and written to each store that lacks it.

    Args:
        outputs: stores of the same images, grid and dtypes: even and odd part of a kernel, one network at several depths, or parts of a
            sum or product.
        images: that tiles are computed from.
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
        """Tiles of the whole block, of every store."""
        return self.outputs[0].gram.grid(block)

    def missing(self, block: Block, used: TileGrid) -> Iterator[Tile]:
        """Tiles of `used` that any store lacks, in the grid's order; see `GramStore.missing`."""
        lacking = [output.gram.missing(block, used) for output in self.outputs]
        return _merged(lacking, lambda tile: (tile.i, tile.j))

    def missing_diagonal(self, block: Block, rows: int) -> Iterator[int]:
        """Rows of tiles whose part of the diagonal any store lacks; see `GramStore.missing_diagonal`."""
        lacking = [iter(output.gram.missing_diagonal(block, rows)) for output in self.outputs]
        return _merged(lacking, lambda row: row)

    def lacking(self, label: str, i: int, j: int) -> tuple[Output, ...]:
        """The stores without a receipt for this address now."""
        return tuple(output for output in self.outputs if not _is_done(output.gram, label, i, j))


def _merged(sorted_parts: Sequence[Iterator[_T]], key: Callable[[_T], Any]) -> Iterator[_T]:
    """What any of the sorted parts has, once each, in order, and lazily."""
    last: Any = None
    for item in heapq.merge(*sorted_parts, key=key):
        if (address := key(item)) != last:
            yield item
        last = address


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
    """Compute and store the tiles of `block` at `addresses` that any store has no receipt for; one record per address.

    While a tile is computed a second thread writes the one before, and a third asks for the receipt and reads the images of
    the next: a bucket answers after tens of milliseconds. When this returns, every tile that is not reported as failed has
    its receipt. If the process dies, only the tiles in the making are lost.

    Raises:
        ResourceError: if the store or the memory is full, which no other tile would survive either.
        Exception: whatever is not an `NtkpipeError`: a programming error would spoil every tile.
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
    """Tile `(i, j)` of the whole grid of a block, per result of the evaluation; its row block is kept for the next."""

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
        pad_to=min(grid.edge, grid.cols),  # one shape, one compilation: the last row of tiles is ragged
        pairs_per_step=pairs_per_step,
    )


def diagonal_task(job: GramJob, block: Block, rows: Sequence[int]) -> list[TileRecord]:
    """Compute and store `k(x, x)`, in float64, for the images of the given rows of tiles; see `tile_task`."""
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
    """A block of images, ready for pairs; a task's row block stays while its column blocks and their flips pass."""
    return evaluation.prepare(_images(images, block, start, stop), flipped=flipped)


# A tile's rows and columns, and those of the next.
@functools.lru_cache(maxsize=4)
def _images(images: ImageSource, block: Block, start: int, stop: int) -> np.ndarray:
    return images.read(block, start, stop)


def release_rows() -> None:
    """Forget the row blocks that this process has read."""
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
    """Compute each address in turn while the one before is written and the next is read; at most one of each is pending."""

    def write_all(outputs: Sequence[Output], i: int, j: int, made: list[dict[str, np.ndarray]], seconds: float) -> None:
        failed: NtkpipeError | None = None
        for output in outputs:
            try:
                write(output.gram, i, j, made.pop(0), seconds)
            except ResourceError:
                raise
            except NtkpipeError as error:  # of one kernel alone, perhaps: the others are stored
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
            with contextlib.suppress(NtkpipeError, MemoryError):  # whoever computes meets it again, and says so
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
                    f"no memory left for tile ({i}, {j}) of {block}: set a smaller grid.edge or fewer cluster.workers"
                ) from error
            seconds = time.perf_counter() - start
            settle()
            pending = (i, j), seconds, writer.submit(write_all, outputs, i, j, made, seconds)
            # Two tiles are alive now; without this the one being written would stay until the next is complete.
            del made
        settle()
    return records


def _is_done(gram: GramStore, block: str, i: int, j: int) -> bool:
    try:
        return gram.receipt(block, i, j) is not None
    except CorruptionError:
        return False  # a damaged receipt proves nothing; the writer replaces it


@dataclass(frozen=True)
class Picked:
    """Images by number: of a block, in this order."""

    block: Block
    indices: tuple[int, ...]


def pairs_task(images: ImageSource, evaluation: Evaluates, rows: Picked, columns: Picked | None) -> Kernels:
    """Kernels of picked images that no tile holds: `{"nngp": (k, m), "ntk": (k, m)}`, float64; of a function `{"gram": (k, m)}`.

    Args:
        images: that are picked from.
        evaluation: of one kernel.
        rows: row images.
        columns: column images, likely neighbours; None pairs the rows with themselves.
    """
    first = evaluation.prepare(_picked(images, rows))
    second = None if columns is None else evaluation.prepare(_picked(images, columns))
    flipped = None
    if evaluation.flips:
        flipped = evaluation.prepare(_picked(images, columns or rows), flipped=True)
    # Powers of two: pairs of any number share what is compiled for a few sizes.
    edge = max(_LEAST_EDGE, 1 << (max(len(rows.indices), len((columns or rows).indices)) - 1).bit_length())
    (made,) = evaluation.tile(first, second, flipped, out_dtype="float64", pad_to=edge)
    return made


def distance_task(images: ImageSource, spec: Spec, rows: Picked, columns: Picked) -> Kernels | None:
    """As `pairs_task` in float64, each pair in distance form; None of a network on images, which has none."""
    network = architecture(spec)
    first, second = _picked(images, rows), _picked(images, columns)
    if not network.is_flat(first.shape[1:]):
        return None
    made = network.in_distance_form(first, second)
    return {"nngp": np.asarray(made.nngp), "ntk": np.asarray(made.ntk)}


_LEAST_EDGE = 64


def _picked(images: ImageSource, picked: Picked) -> np.ndarray:
    chosen = picked.indices
    if chosen == tuple(range(chosen[0], chosen[0] + len(chosen))):
        return images.read(picked.block, chosen[0], chosen[0] + len(chosen))
    return np.concatenate([images.read(picked.block, i, i + 1) for i in chosen])
