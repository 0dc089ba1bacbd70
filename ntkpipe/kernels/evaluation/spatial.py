"""Tiles of networks with pixels, evaluated pair by pair in blocks that fit in a core's cache.

A pair of 32 x 32 images in a network with pooling has a million covariances, 4 MiB for each kernel in float32. Before
the first layer that mixes them, classes of pixel pairs are independent (see `geometry`). So one class of rows at a time
passes through all layers: 32,768 covariances, 128 KiB, in a few blocks of that size. Small images, and networks that
need only the diagonal, are evaluated several pairs at a time. One compiled program contains the loop over rows; threads
share the columns of a tile.
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

from ntkpipe.kernels.accelerator import precision_context, to_host
from ntkpipe.kernels.evaluation import near, self_pairs
from ntkpipe.kernels.evaluation.blocks import COMPILER_OPTIONS, Batch, choose_batch
from ntkpipe.kernels.evaluation.fold import PerImageFeatures
from ntkpipe.kernels.evaluation.fusion import Fused, Materialised
from ntkpipe.kernels.evaluation.pairs import Pairs
from ntkpipe.kernels.evaluation.prepared import Prepared
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.images import as_planes
from ntkpipe.kernels.sequences import filled
from ntkpipe.kernels.state import Array, FusionPolicy, Kernels
from ntkpipe.limits import processors


@lru_cache(maxsize=64)
def tile_program(steps: tuple[Step, ...], batch: Batch):
    """Return a compiled function that evaluates both kernels of the rows `first:last` with one batch of columns.

    Its arguments are `(alive, first, last, rows, rows_seen, columns, columns_seen)`, with images `(n, h, w, channels)`
    and their features `(n, ...)`. For every tap and the end, it returns two arrays `(n1, b)`, which are zero outside
    `first:last`. So one program serves full tiles, smaller tiles and triangles.
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
    """Return the number of networks that end before the deepest one."""
    return sum(len(step.branches) for step in steps if isinstance(step.layer, Tap))


def threads() -> int:
    """Return the number of threads that share a tile.

    It is `NPROC` if that variable is set, as in XLA, and otherwise the number of cores that this process may use.
    """
    told = os.environ.get("NPROC", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return processors()


def tile(
    steps: tuple[Step, ...],
    own_steps: tuple[Step, ...],
    rows: Prepared,
    columns: Prepared | None,
    *,
    pad_to: int | None,
    pairs: int | None,
    on_cpu: bool,
) -> list[Kernels]:
    """Return both kernels of every pair of images, with exact diagonals and accurate nearly equal pairs.

    Args:
        steps: steps of the network.
        own_steps: steps of the network for images with themselves.
        rows: row images.
        columns: column images; None pairs the rows with themselves.
        pad_to: see `evaluate`.
        pairs: see `choose_batch`.
        on_cpu: see `Batch`.

    Returns:
        For every tap and the end: NNGP and NTK, `(n1, n2)` each, of the dtype of the images.
    """
    x1, x2 = rows.images, None if columns is None else columns.images
    planes, other_planes = as_planes(filled(x1)), None if x2 is None else as_planes(filled(x2))
    seen = rows.along(steps)
    made = evaluate(
        steps,
        planes,
        seen,
        other_planes,
        seen if columns is None else columns.along(steps),
        pad_to=pad_to,
        context=lambda: precision_context(x1.dtype),
        pairs=pairs,
        on_cpu=on_cpu,
    )

    def diagonals(x: np.ndarray) -> list[Kernels]:
        return self_pairs.diagonals(own_steps, as_planes(x), on_cpu=on_cpu)

    if x2 is None:
        self_pairs.set_diagonals(made, diagonals(x1))
    found = near.search(planes, other_planes)
    if found.rows.size:
        near.put(made, near.evaluate(own_steps, x1, x2, found, diagonals), found, mirrored=x2 is None)
    return made


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
    """Return both kernels of every pair of images.

    Args:
        steps: steps of the network.
        x1: row images, `(n1, h, w, channels)`.
        seen1: per-image features of the row images, `(n1, ...)`, from `image_features`.
        x2: column images, `(n2, h, w, channels)`. None pairs `x1` with itself: the function computes the lower triangle
            and mirrors it, and the caller sets the diagonal.
        seen2: per-image features of the column images, `(n2, ...)`.
        pad_to: number of rows to compile for, so that smaller tiles at the edge need no compilation of their own.
        context: returns the context in which each thread computes.
        pairs: see `choose_batch`.
        on_cpu: see `Batch`.

    Returns:
        For every tap and the end: NNGP and NTK, `(n1, n2)` each.
    """
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    batch = choose_batch(steps, x1.itemsize, pairs, on_cpu=on_cpu, columns=max(n2, pad_to or 0))
    program = tile_program(steps, batch)
    # The row images are copied to the device once, not with every batch of columns.
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
    """Return both kernels of every pair of traced images, for every tap and the end, without batching.

    It evaluates one row of pairs at a time with all its covariances. The gradient computes the intermediates of a row
    again instead of storing them.
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
