"""Products with kernels whose tiles are recomputed in float64. One pass serves several kernels of the same points.

The partial sum is stored a few times per pass, and a pass continues from it after a crash. Parts are always added in the
same order, so a resumed pass gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ntkpipe.errors import ConfigError, CorruptionError
from ntkpipe.events.event import Tell, tell_nobody
from ntkpipe.gram.products import Partial, ProductJob, product_task
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.sources.blocks import BlockTestKernel, BlockTrainKernel
from ntkpipe.sources.computed import ComputedSource
from ntkpipe.sources.kernels import TestKernel, TrainKernel
from ntkpipe.storage.checksum import content_hash, digest
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.layout import Block
from ntkpipe.units import human_seconds

PREFIX = "refine"
"""Folder of vectors, sums and products in a store."""

# Largest number of rows of a tile: larger tiles need more memory and save almost nothing.
_EDGE = 1024
# Share of a pass between two stored sums, which a crash may lose.
_KEPT = 1 / 16

AnyKernel = BlockTrainKernel | BlockTestKernel
_T = TypeVar("_T")


_GIVEN = "the kernel was given, and its entries cannot be computed again: give it in float64, and leave refine out"


def why_not(kernel: TrainKernel | TestKernel) -> str | None:
    """Why the entries of a kernel cannot be recomputed in float64, or need not be; None if they can."""
    if not isinstance(kernel, AnyKernel) or not isinstance(kernel.blocks.parts[kernel.part], ComputedSource):
        return _GIVEN
    identity = _source(kernel).identity
    if identity.dtype == identity.stored_dtype == "float64":
        return "the tiles are computed and stored in float64 already: leave refine out"
    return None


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of a pass in a store; see `gram.products.Vectors`.

    Args:
        store: the store that holds them.
        key: digest of the pass.
    """

    store: ObjectStore
    key: str

    def write(self, vectors: Sequence[np.ndarray]) -> None:
        """Store the vectors, so that the tasks can read them."""
        self._kept.append(0, 1, {f"x{k}": x for k, x in enumerate(vectors)})

    def read(self) -> list[np.ndarray]:
        """The vectors, (n, k) float64 each.

        Raises:
            CorruptionError: if they are missing or damaged.
        """
        found = self._kept.restore()
        if not found:
            raise CorruptionError(
                f"the vectors {self.key} are missing from {self.store.url} or damaged: repeat the same command"
            )
        return [found[0][f"x{k}"] for k in range(len(found[0]))]

    def clear(self) -> None:
        """Delete the vectors."""
        self._kept.clear()

    @property
    def _kept(self) -> StoreCheckpoint:
        return StoreCheckpoint(self.store, f"{PREFIX}/vectors.{self.key}", self.key)


def exact_products(
    asked: Sequence[tuple[TrainKernel | TestKernel, np.ndarray]],
    executor: Executor,
    store: ObjectStore,
    tell: Tell = tell_nobody,
) -> list[np.ndarray]:
    """The products `K x` (rows, k) of every kernel, with entries that are recomputed in float64.

    Kernels of the same points share one pass. Products are stored, and the same call reuses them.

    Args:
        asked: kernels that can be recomputed (see `why_not`), and float64 vectors (n, k) for each.
        executor: computes the tiles; with a store in memory, this process computes them instead.
        store: keeps sums and products.
        tell: receives lines of progress.

    Raises:
        ConfigError: if a kernel was given and cannot be recomputed.
        DataError: if values are not finite.
        CorruptionError: if prepared images are damaged.
    """
    if store.url.startswith("memory:") and not isinstance(executor, SerialExecutor):
        executor = SerialExecutor()  # other processes cannot read a store in the memory of this process
    known = [(_recomputable(kernel), x) for kernel, x in asked]
    kept = [_product_of(kernel, x, store) for kernel, x in known]
    made = [None if not (found := one.restore()) else found[0]["product"] for one in kept]
    groups: dict[Any, list[int]] = {}
    for k, (kernel, _) in enumerate(known):
        if made[k] is None:
            groups.setdefault((_source(kernel).identity.key, _block(kernel), kernel.shape), []).append(k)
    for group in groups.values():
        for k, product in zip(group, _pass([known[k] for k in group], executor, store, tell), strict=True):
            kept[k].append(0, 1, {"product": product})
            made[k] = product
    return [product for product in made if product is not None]


def _pass(
    asked: Sequence[tuple[AnyKernel, np.ndarray]], executor: Executor, store: ObjectStore, tell: Tell
) -> list[np.ndarray]:
    """The products of kernels of the same points, from one pass over the tiles of their block."""
    source, kernel = _source(asked[0][0]), asked[0][0]
    rows, n = kernel.shape
    grid = TileGrid(rows, n, min(source.identity.edge, _EDGE), symmetric=_block(kernel) == "train")
    # The number of workers is in the key, because sums over other parts cannot be continued.
    key = digest({"products": [_name(one, x) for one, x in asked], "edge": grid.edge, "workers": executor.workers})
    vectors, steps = StoredVectors(store, key), source.pairs_per_step
    job = ProductJob(
        source.images,
        source.evaluation("float64"),
        _block(kernel),
        grid,
        tuple(one.source for one, _ in asked),
        vectors,
        None if steps is None else max(1, steps // 2),
    )
    parts = list(job.parts(executor.workers))
    checkpoint = StoreCheckpoint(store, f"{PREFIX}/{key}", key)
    sums, done = [np.zeros((rows, x.shape[1])) for _, x in asked], 0
    if found := checkpoint.restore():
        done, sums = int(found[0]["done"]), [found[0][f"sum{k}"] for k in range(len(asked))]
    vectors.write([x for _, x in asked])
    names = " and ".join(dict.fromkeys(one.name for one, _ in asked))
    every, began, first = max(1, round(_KEPT * len(parts))), time.monotonic(), done
    tell(f"{names}: computing {len(grid):,} {_block(kernel)} tiles again in float64", force=True)
    tasks = (Task(k, product_task, (job, *parts[k])) for k in range(done, len(parts)))
    for part in _ordered(values_of(executor, tasks), done):
        assert isinstance(part, Partial)
        part.add_to(sums)
        done += 1
        left = (time.monotonic() - began) / (done - first) * (len(parts) - done)
        tell(f"{names}: {done:,} of {len(parts):,} parts in float64, {human_seconds(left)} to go", done=done)
        if done % every == 0 and done < len(parts):
            checkpoint.append(0, done, {"done": np.array(done), **{f"sum{k}": one for k, one in enumerate(sums)}})
    checkpoint.clear()
    vectors.clear()
    return sums


def _ordered(values: Iterator[tuple[int, _T]], first: int) -> Iterator[_T]:
    """Values in the order of their keys, each as soon as all earlier ones have arrived."""
    waiting: dict[int, _T] = {}
    for key, value in values:
        waiting[key] = value
        while first in waiting:
            yield waiting.pop(first)
            first += 1


def _product_of(kernel: AnyKernel, x: np.ndarray, store: ObjectStore) -> StoreCheckpoint:
    """The stored product of a kernel and vectors, which may not exist yet."""
    key = digest(_name(kernel, x))
    return StoreCheckpoint(store, f"{PREFIX}/product.{key}", key)


def _name(kernel: AnyKernel, x: np.ndarray) -> dict[str, Any]:
    """Everything that determines a product, for its key."""
    return {
        "gram": _source(kernel).identity.key,
        "kernel": kernel.source,
        "block": _block(kernel),
        "shape": list(kernel.shape),
        "vectors": content_hash(np.ascontiguousarray(x, dtype=np.float64).tobytes()),
    }


def _recomputable(kernel: TrainKernel | TestKernel) -> AnyKernel:
    """The kernel, with access to the source of its entries.

    Raises:
        ConfigError: if its entries cannot be recomputed.
    """
    if not isinstance(kernel, AnyKernel):
        raise ConfigError(_GIVEN)
    return kernel


def _source(kernel: AnyKernel) -> ComputedSource:
    """The source that recomputes the entries."""
    source = kernel.blocks.parts[kernel.part]
    if not isinstance(source, ComputedSource):
        raise ConfigError(_GIVEN)
    return source


def _block(kernel: AnyKernel) -> Block:
    return "train" if isinstance(kernel, BlockTrainKernel) else "test"
