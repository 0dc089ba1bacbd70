"""Tiles of networks that look at images: pair after pair through all layers, in blocks that stay in a core's cache.

A 32 x 32 pair of a pooled network is a million covariances, 4 MiB for each kernel in float32. Up to the first layer that mixes
them, classes of pixel pairs never meet (see `geometry`), so that one class of rows at a time goes through all layers:
32,768 covariances, 128 KiB, and a handful of such blocks. Small images, and networks that need the diagonal alone, go
several pairs at a time. One compiled program holds the loop over rows; threads share the columns of a tile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.fold import Seen, barrier, fold, fold_own, materialise, unseen, views
from ntkpipe.kernels.pooling import Mixing
from ntkpipe.kernels.readouts import Tap
from ntkpipe.kernels.resolve import Step
from ntkpipe.kernels.state import Array, Keep, Kernels, KernelState, Signature, View

# XLA's default is vectors of 256 bits: 15% slower where there are 512, and no different where there are not.
_COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}

# Bytes of one kernel's block of covariances. Measured on cores with 2 MiB of L2 cache: see docs/performance.md.
BLOCK_BYTES = {"cpu": 128 << 10, "gpu": 64 << 20}


@dataclass(frozen=True)
class Batch:
    """How pairs are batched.

    Args:
        pairs: columns of a tile that go through the layers together.
        limit: covariances in a block; where more are left, the classes of rows go one by one.
        on_cpu: keep intermediate results in memory by force (see `fold`).
    """

    pairs: int
    limit: int
    on_cpu: bool


def choose_batch(steps: Sequence[Step], itemsize: int, pairs: int | None = None, *, on_cpu: bool = True) -> Batch:
    """As many pairs as fill a block with all their covariances, or with one class of rows of them.

    Args:
        steps: of the network.
        itemsize: bytes of a covariance.
        pairs: columns that go through the layers together; None chooses as above.
        on_cpu: see `Batch`.
    """
    limit = BLOCK_BYTES["cpu" if on_cpu else "gpu"] // itemsize
    entries = steps[0].incoming.entries
    together = entries if entries <= limit else entries // len(steps[0].incoming.support[0])
    if pairs is None:
        pairs = 1 << (max(1, limit // together).bit_length() - 1)
    return Batch(pairs, max(limit, pairs * together), on_cpu)


# ---- images by themselves


@lru_cache(maxsize=64)
def own_program(steps: tuple[Step, ...], with_kernels: bool, on_cpu: bool):
    """Compiled: from images `(h, w, channels, n)` to the kernels of each with itself, if asked for, and what was seen of it."""

    def program(alive: Array, x: Array) -> tuple[list[tuple[Array, Array]], Seen]:
        signature = steps[0].incoming
        nngp = layout.products(x, x, signature) / signature.features
        keep = materialise(alive) if on_cpu else barrier
        state = KernelState(nngp, None, signature, is_own=True, keep=keep)
        results: list[tuple[Array, Array]] = []

        def leave(branch: Sequence[Step], state: KernelState) -> None:
            results.append(_kernels(fold_own(branch, state)[0]))

        state, seen = fold_own(steps, state, leave)
        return [*results, _kernels(state)] if with_kernels else [], seen

    return jax.jit(program, compiler_options=_COMPILER_OPTIONS if on_cpu else None)


def _own_batches(steps: Sequence[Step], x: np.ndarray, on_cpu: bool) -> Iterable[tuple[int, np.ndarray]]:
    """Batches `(h, w, channels, b)` of one size, the last padded, and how many images of each count."""
    limit = 8 * BLOCK_BYTES["cpu" if on_cpu else "gpu"] // x.itemsize
    size = int(np.clip(limit // max(step.incoming.entries for step in steps), 1, 256))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        padded = np.zeros((size, *x.shape[1:]), x.dtype)
        padded[: len(part)] = part
        yield len(part), np.ascontiguousarray(np.moveaxis(padded, 0, -1))


def observe(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> Seen:
    """What the steps see of each image: arrays `(n, ...)`.

    Args:
        steps: of an own block, up to the last that sees.
        x: images, `(n, h, w, channels)`.
        on_cpu: see `Batch`.
    """
    if not steps:
        return ()
    parts = []
    for count, batch in _own_batches(steps, x, on_cpu):
        _, seen = own_program(steps, False, on_cpu)(np.int32(1), batch)
        parts.append(_images_first(steps, seen, count))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def diagonals(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> list[Kernels]:
    """Both kernels of every image with itself, `(n,)` each: of every tap, then of the end."""
    parts = []
    for count, batch in _own_batches(steps, x, on_cpu):
        results, _ = own_program(steps, True, on_cpu)(np.int32(1), batch)
        parts.append([Kernels(*(np.asarray(kernel)[:count] for kernel in result)) for result in results])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _images_first(steps: Sequence[Step], seen: Seen, count: int) -> Seen:
    made: list[Any] = []
    for step, of_step in zip(steps, seen, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            made.append(tuple(_images_first(b, s, count) for b, s in zip(step.branches, of_step, strict=True)))
        else:
            axis = 0 if step.layer.sees == "matrices" else -1
            made.append(tuple(np.ascontiguousarray(np.moveaxis(np.asarray(a), axis, 0)[:count]) for a in of_step))
    return tuple(made)


# ---- pairs


def section(steps: Sequence[Step]) -> tuple[Sequence[Step], Step | None, Sequence[Step]]:
    """The run of steps that keep classes, the pool that ends it (None if something else does), and the rest."""
    length = next((k for k, step in enumerate(steps) if not step.keeps_classes), len(steps))
    pooled = length < len(steps) and isinstance(steps[length].layer, Mixing)
    return steps[:length], steps[length] if pooled else None, steps[length + pooled :]


@dataclass(frozen=True)
class _Section:
    """Steps that are taken together: where they begin, and if classes of rows go one by one, the pool that ends them."""

    start: int
    run: Sequence[Step]
    mixing: Step | None
    looped: bool

    @property
    def stop(self) -> int:
        return self.start + len(self.run)


class _Pairs:
    """Pairs of one row image with a batch of column images, under tracing.

    Args:
        steps: of the network.
        batch: how many columns, and how large a block.
        keep: see `Keep`.
        columns: `(b, h, w, channels)`.
        seen: of the columns, `(b, ...)`.
    """

    def __init__(self, steps: Sequence[Step], batch: Batch, keep: Keep, columns: Array, seen: Seen) -> None:
        self._steps, self._batch, self._keep = steps, batch, keep
        self._parts = self._sections()
        first = steps[0].incoming
        images = jnp.moveaxis(columns, 0, -1)  # (h, w, channels, b)
        whole = not self._parts[0].looped
        self._images = [self._column(first, images[:, :, k], whole) for k in range(images.shape[2])]
        self._columns = [
            self._column_views(part.run, seen[part.start : part.stop], whole=not part.looped) for part in self._parts
        ]

    def _sections(self) -> list[_Section]:
        made, steps = [], self._steps
        start = 0
        while start < len(steps):
            run, mixing, _ = section(steps[start:])
            classes = run[0].incoming.support[0] if run and run[0].incoming.spatial else ()
            looped = len(classes) > 1 and run[0].incoming.entries * self._batch.pairs > self._batch.limit
            if not looped:
                # The layer that ends the run is like any other where all classes are there.
                run = steps[start : start + max(len(run) + (mixing is not None), 1)]
            made.append(_Section(start, run, mixing if looped else None, looped))
            start += len(run) + (looped and mixing is not None)
        return made

    def _column(self, signature: Signature, field: Array, whole: bool) -> Array:
        """A column field ready to be looked up: at all its places, or skewed and doubled, for `_at`."""
        if whole:
            return layout.spread_column(field, signature)
        skewed = layout.skew_columns(field, signature)
        return skewed if field.shape[0] == 1 else jnp.concatenate([skewed, skewed])

    def _at(self, signature: Signature, column: Array, chunk: Array) -> Array:
        """A doubled column field at the k-th class of rows."""
        if column.shape[0] == 1:
            return column[None]
        extent = signature.spatial[0]
        cut = jnp.asarray(signature.support[0], jnp.int32)[chunk]
        return lax.dynamic_slice_in_dim(column, extent - cut, extent)[None]

    def _column_views(self, steps: Sequence[Step], seen: Seen, *, whole: bool) -> Any:
        """Of all classes: views. Of one class at a time: functions from the chunk to views."""

        def prepare(step: Step, arrays: tuple[Array, ...]) -> Any:
            if step.layer.sees == "matrices" or not step.incoming.spatial:
                return lambda chunk: lambda: arrays
            fields = [self._column(step.incoming, jnp.moveaxis(a, 0, -1), whole) for a in arrays]
            if whole:
                return lambda chunk: lambda: tuple(fields)
            return lambda chunk: lambda: tuple(self._at(step.incoming, field, chunk) for field in fields)

        return views(steps, seen, prepare)

    def _row_views(self, steps: Sequence[Step], seen: Seen) -> Seen:
        def prepare(step: Step, arrays: tuple[Array, ...]) -> View:
            if step.layer.sees == "matrices" or not step.incoming.spatial:
                return lambda: tuple(a[None] for a in arrays)
            return lambda: tuple(layout.spread_row(a[..., None]) for a in arrays)

        return views(steps, seen, prepare)

    def __call__(self, row: Array, seen: Seen) -> list[tuple[Array, Array]]:
        """Both kernels of the row image `(h, w, channels)` with each column, `(b,)` each: of every tap, then of the end."""
        results: list[tuple[Array, Array]] = []

        def leave(steps: Sequence[Step], state: KernelState) -> None:
            results.append(_kernels(fold(steps, state, unseen(steps), unseen(steps))))

        state: KernelState | None = None
        for part, columns in zip(self._parts, self._columns, strict=True):
            rows = self._row_views(part.run, seen[part.start : part.stop])
            if part.looped:
                state, left = self._class_by_class(part, state, row, rows, columns)
                results += left
            else:
                state = self._begin(row, None) if state is None else state
                state = fold(part.run, state, rows, _of_chunk(part.run, columns, None), leave)
        assert state is not None
        return [*results, _kernels(state)]

    def _begin(self, row: Array, chunk: Array | None) -> KernelState:
        signature = self._steps[0].incoming
        columns = self._images if chunk is None else [self._at(signature, c, chunk) for c in self._images]
        scale = 1.0 / signature.features
        nngp = layout.added(layout.spread_row((row[:, :, k] * scale)[..., None]) * c for k, c in enumerate(columns))
        return KernelState(nngp, None, signature, keep=self._keep, chunk=chunk)

    def _class_by_class(
        self, part: _Section, before: KernelState | None, row: Array, rows: Seen, columns: Any
    ) -> tuple[KernelState, list[tuple[Array, Array]]]:
        """One class of rows after the other through a run, and as far into the layer that mixes them as one class goes.

        Returns:
            The state after the run and the layer that mixes, and the kernels of the networks that leave in between.
        """
        leaving: list[Sequence[Step]] = []

        def one(chunk: Array) -> list[tuple[Array, Array | None]]:
            leaving.clear()
            partial: list[KernelState] = []

            def leave(steps: Sequence[Step], state: KernelState) -> None:
                run, mixing, _ = section(steps)
                leaving.append(steps)
                partial.append(_within(mixing, fold(run, state, unseen(run), unseen(run))))

            if before is None:
                state = self._begin(row, chunk)
            else:
                cut = lambda x: lax.dynamic_slice_in_dim(x, chunk, 1)  # noqa: E731
                state = before.map(cut, before.signature).replace(chunk=chunk)
            state = fold(part.run, state, rows, _of_chunk(part.run, columns, chunk), leave)
            return [(s.nngp[0], None if s.ntk is None else s.ntk[0]) for s in (*partial, _within(part.mixing, state))]

        *left, (nngp, ntk) = lax.map(one, jnp.arange(len(part.run[0].incoming.support[0])))
        results = []
        for steps, (k, t) in zip(leaving, left, strict=True):
            run, mixing, rest = section(steps)
            entering = run[-1].outgoing if run else steps[0].incoming
            state = _across(mixing, KernelState(k, t, entering, keep=self._keep))
            results.append(_kernels(fold(rest, state, unseen(rest), unseen(rest))))
        return _across(part.mixing, KernelState(nngp, ntk, part.run[-1].outgoing, keep=self._keep)), results


def _within(mixing: Step | None, state: KernelState) -> KernelState:
    return mixing.layer.within(state, mixing.outgoing) if mixing and isinstance(mixing.layer, Mixing) else state


def _across(mixing: Step | None, state: KernelState) -> KernelState:
    return mixing.layer.across(state, mixing.outgoing) if mixing and isinstance(mixing.layer, Mixing) else state


def _kernels(state: KernelState) -> tuple[Array, Array]:
    return state.nngp, jnp.zeros_like(state.nngp) if state.ntk is None else state.ntk


def _of_chunk(steps: Sequence[Step], columns: Any, chunk: Array | None) -> Seen:
    made: list[Any] = []
    for step, of_step in zip(steps, columns, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            made.append(tuple(_of_chunk(b, c, chunk) for b, c in zip(step.branches, of_step, strict=True)))
        else:
            made.append(of_step(chunk))
    return tuple(made)


@lru_cache(maxsize=64)
def tile_program(steps: tuple[Step, ...], batch: Batch):
    """Compiled: both kernels of rows `first` to `last` with one batch of columns.

    Of `(alive, first, last, rows, rows_seen, columns, columns_seen)`: images `(n, h, w, channels)` and what was seen of each,
    `(n, ...)`. Returns, for every tap and the end, two arrays `(n1, b)`, zero in the rows that were not asked for: one
    program serves ragged tiles, and triangles.
    """

    def program(
        alive: Array, first: Array, last: Array, rows: Array, rows_seen: Seen, columns: Array, columns_seen: Seen
    ) -> list[tuple[Array, Array]]:
        keep = materialise(alive) if batch.on_cpu else barrier
        pairs = _Pairs(steps, batch, keep, columns, columns_seen)

        def one(row: jax.Array, made: Any) -> Any:
            of_row = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, row, keepdims=False), (rows, rows_seen))
            return jax.tree.map(lambda block, values: block.at[row].set(values), made, pairs(*of_row))

        empty = jnp.zeros((rows.shape[0], columns.shape[0]), rows.dtype)
        return lax.fori_loop(first, last, one, [(empty, empty)] * (1 + taps(steps)))

    return jax.jit(program, compiler_options=_COMPILER_OPTIONS if batch.on_cpu else None)


def taps(steps: Sequence[Step]) -> int:
    """Networks that leave before the end."""
    return sum(len(step.branches) for step in steps if isinstance(step.layer, Tap))


def threads() -> int:
    """Threads that share a tile: the cores that this process may use, or as many as `NPROC` says, as XLA does."""
    told = os.environ.get("NPROC", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluate(
    steps: tuple[Step, ...],
    x1: np.ndarray,
    seen1: Seen,
    x2: np.ndarray | None,
    seen2: Seen,
    *,
    pad_to: int | None,
    context: Any,
    pairs: int | None = None,
    on_cpu: bool = True,
) -> list[Kernels]:
    """Both kernels of every pair of images.

    Args:
        steps: of the network.
        x1: row images, `(n1, h, w, channels)`.
        seen1: of the row images, `(n1, ...)`, from `observe`.
        x2: column images; None pairs `x1` with itself: the lower triangle is computed and mirrored, and its diagonal left to
            the caller.
        seen2: of the column images.
        pad_to: compile for so many rows, so that ragged tiles at the edge need no compilation of their own.
        context: makes the context in which each thread computes.
        pairs: see `choose_batch`.
        on_cpu: see `Batch`.

    Returns:
        For every tap and the end: NNGP and NTK, `(n1, n2)` each.
    """
    batch = choose_batch(steps, x1.itemsize, pairs, on_cpu=on_cpu)
    program = tile_program(steps, batch)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    # Arrays go to the device once, not with every batch of columns.
    with context():
        rows, rows_seen = jax.tree.map(lambda a: jnp.asarray(_padded(a, max(n1, pad_to or 0))), (x1, seen1))
    columns, columns_seen = (x1, seen1) if x2 is None else (x2, seen2)
    results = [Kernels(*np.empty((2, n1, n2), x1.dtype)) for _ in range(1 + taps(steps))]

    def compute(start: int) -> None:
        stop = min(start + batch.pairs, n2)
        of_batch = jax.tree.map(lambda a: _padded(a[start:stop], batch.pairs), (columns, columns_seen))
        first = start if x2 is None else 0
        with context():
            made = program(np.int32(1), np.int32(first), np.int32(n1), rows, rows_seen, *of_batch)
            for result, kernels in zip(results, made, strict=True):
                for whole, part in zip(result, kernels, strict=True):
                    whole[:, start:stop] = np.asarray(part)[:n1, : stop - start]

    starts = range(0, n2, batch.pairs)
    with ThreadPoolExecutor(threads() if on_cpu else 1) as pool:
        list(pool.map(compute, starts))
    if x2 is None:
        for whole in (whole for result in results for whole in result):
            whole[:] = np.tril(whole) + np.tril(whole, -1).T
    return results


def _padded(a: np.ndarray, count: int) -> np.ndarray:
    missing = count - len(a)
    return a if missing == 0 else np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])
