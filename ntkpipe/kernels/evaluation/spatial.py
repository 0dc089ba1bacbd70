"""Tiles of networks that look at images: pair after pair through all layers, in blocks that stay in a core's cache.

A 32 x 32 pair of a pooled network is a million covariances, 4 MiB for each kernel in float32. Up to the first layer that mixes
them, classes of pixel pairs never meet (see `geometry`), so that one class of rows at a time goes through all layers:
32,768 covariances, 128 KiB, and a handful of such blocks. Small images, and networks that need the diagonal alone, go
several pairs at a time. One compiled program holds the loop over rows; threads share the columns of a tile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntkpipe.kernels.accelerator import to_host
from ntkpipe.kernels.evaluation.blocks import COMPILER_OPTIONS, Batch, choose_batch
from ntkpipe.kernels.evaluation.fold import PerImageFeatures
from ntkpipe.kernels.evaluation.fusion import Fused, Materialised
from ntkpipe.kernels.evaluation.pairs import Pairs
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.state import Array, FusionPolicy, Kernels
from ntkpipe.limits import processors


@lru_cache(maxsize=64)
def tile_program(steps: tuple[Step, ...], batch: Batch):
    """Compiled: both kernels of rows `first` to `last` with one batch of columns.

    Of `(alive, first, last, rows, rows_seen, columns, columns_seen)`: images `(n, h, w, channels)` and what was seen of each,
    `(n, ...)`. Returns, for every tap and the end, two arrays `(n1, b)`, zero in the rows that were not asked for: one
    program serves ragged tiles, and triangles.
    """

    def program(
        alive: Array,
        first: Array,
        last: Array,
        rows: Array,
        rows_seen: PerImageFeatures,
        columns: Array,
        columns_seen: PerImageFeatures,
    ) -> list[tuple[Array, Array]]:
        fusion = Materialised(alive) if batch.on_cpu else Fused()
        pairs = Pairs(steps, batch, fusion, columns, columns_seen)

        def one(row: jax.Array, made: Any) -> Any:
            of_row = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, row, keepdims=False), (rows, rows_seen))
            return jax.tree.map(lambda block, values: block.at[row].set(values), made, pairs(row, *of_row))

        empty = jnp.zeros((rows.shape[0], columns.shape[0]), rows.dtype)
        return lax.fori_loop(first, last, one, [(empty, empty)] * (1 + taps(steps)))

    return jax.jit(program, compiler_options=COMPILER_OPTIONS if batch.on_cpu else None)


def taps(steps: Sequence[Step]) -> int:
    """Networks that leave before the end."""
    return sum(len(step.branches) for step in steps if isinstance(step.layer, Tap))


def threads() -> int:
    """Threads that share a tile: the cores that this process may use, or as many as `NPROC` says, as XLA does."""
    told = os.environ.get("NPROC", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return processors()


def evaluate(
    steps: tuple[Step, ...],
    x1: np.ndarray,
    seen1: PerImageFeatures,
    x2: np.ndarray | None,
    seen2: PerImageFeatures,
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
        seen1: of the row images, `(n1, ...)`, from `image_features`.
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
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    batch = choose_batch(steps, x1.itemsize, pairs, on_cpu=on_cpu, columns=max(n2, pad_to or 0))
    program = tile_program(steps, batch)
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
                    whole[:, start:stop] = to_host(part)[:n1, : stop - start]

    starts = range(0, n2, batch.pairs)
    with ThreadPoolExecutor(threads() if on_cpu else 1) as pool:
        list(pool.map(compute, starts))
    if x2 is None:
        for whole in (whole for result in results for whole in result):
            whole[:] = np.tril(whole) + np.tril(whole, -1).T
    return results


def traced(
    steps: tuple[Step, ...], x1: Array, seen1: PerImageFeatures, x2: Array, seen2: PerImageFeatures
) -> list[Kernels]:
    """The same under tracing, of images and what was seen of them that are traced, without the economy of `evaluate`.

    A row of pairs at a time, with all its covariances; what its gradient needs of it is computed again when it is asked for.
    """
    pairs = Pairs(
        steps, Batch(len(x2), len(x2) * max(step.incoming.entries for step in steps), False), FusionPolicy(), x2, seen2
    )

    def one(of_row: tuple[Array, Array, PerImageFeatures]) -> list[tuple[Array, Array]]:
        return pairs(*of_row)

    made = lax.map(jax.checkpoint(one), (jnp.arange(len(x1)), x1, seen1))
    return [Kernels(*kernels) for kernels in made]


def _padded(a: np.ndarray, count: int) -> np.ndarray:
    missing = count - len(a)
    return a if missing == 0 else np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])
