"""Images paired with themselves: what layers see of each, and the diagonals of the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from ntkpipe.kernels import layout
from ntkpipe.kernels.evaluation.blocks import BLOCK_BYTES, COMPILER_OPTIONS
from ntkpipe.kernels.evaluation.fold import Seen, fold_own, kernels_of
from ntkpipe.kernels.evaluation.keeping import Fused, Materialised
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.state import Array, Kernels, KernelState


@lru_cache(maxsize=64)
def own_program(steps: tuple[Step, ...], with_kernels: bool, on_cpu: bool):
    """Compiled: from images `(h, w, channels, n)` to the kernels of each with itself, if asked for, and what was seen of it."""

    def program(alive: Array, x: Array) -> tuple[list[tuple[Array, Array]], Seen]:
        signature = steps[0].incoming
        nngp = layout.products(x, x, signature) / signature.features
        keep = Materialised(alive) if on_cpu else Fused()
        state = KernelState(nngp, None, signature, is_own=True, keep=keep)
        results: list[tuple[Array, Array]] = []

        def leave(branch: Sequence[Step], state: KernelState) -> None:
            results.append(kernels_of(fold_own(branch, state)[0]))

        state, seen = fold_own(steps, state, leave)
        return [*results, kernels_of(state)] if with_kernels else [], seen

    return jax.jit(program, compiler_options=COMPILER_OPTIONS if on_cpu else None)


def _own_batches(steps: Sequence[Step], x: np.ndarray, on_cpu: bool) -> Iterable[tuple[int, np.ndarray]]:
    """Batches `(h, w, channels, b)` of one size, the last padded, and how many images of each count."""
    limit = (8 * BLOCK_BYTES["cpu"] if on_cpu else BLOCK_BYTES["gpu"]) // x.itemsize
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
