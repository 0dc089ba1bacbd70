"""Evaluation of images paired with themselves: per-image features and the diagonals of the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels import layout
from ntkpipe.kernels.evaluation.blocks import BLOCK_BYTES, COMPILER_OPTIONS
from ntkpipe.kernels.evaluation.fold import PerImageFeatures, fold_own, images_first, kernels_of
from ntkpipe.kernels.evaluation.fusion import Fused, Materialised
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.state import Array, FusionPolicy, Kernels, KernelState


@lru_cache(maxsize=64)
def own_program(steps: tuple[Step, ...], with_kernels: bool, on_cpu: bool):
    """Return a compiled function from images `(h, w, channels, n)` to their kernels with themselves and their features.

    The list of kernels is empty unless `with_kernels`.
    """

    def program(alive: Array, x: Array) -> tuple[list[tuple[Array, Array]], PerImageFeatures]:
        results, seen = _folded(steps, x, Materialised(alive) if on_cpu else Fused())
        return results if with_kernels else [], seen

    return jax.jit(program, compiler_options=COMPILER_OPTIONS if on_cpu else None)


def _folded(
    steps: Sequence[Step], x: Array, fusion: FusionPolicy
) -> tuple[list[tuple[Array, Array]], PerImageFeatures]:
    """Return the kernels of images `(h, w, channels, n)` with themselves, for every tap and the end, and the features."""
    signature = steps[0].incoming
    x, lengths = without_ends(steps, x)
    nngp = layout.products(x, x, signature) / signature.features
    results: list[tuple[Array, Array]] = []

    def leave(branch: Sequence[Step], state: KernelState) -> None:
        results.append(kernels_of(fold_own(branch, state)[0]))

    state, seen = fold_own(
        steps, KernelState(nngp, None, signature, is_own=True, fusion=fusion, lengths=lengths), leave
    )
    return [*results, kernels_of(state)], seen


def without_ends(steps: Sequence[Step], x: Array) -> tuple[Array, Array | None]:
    """Return sequences `(h, w, channels, n)` with zeros instead of NaN after their ends, and their lengths `(n,)`.

    If the network has no masks, the sequences are returned unchanged, with None for the lengths.
    """
    if not any(step.is_masked for step in steps):
        return x, None
    present = ~jnp.isnan(x)
    return jnp.where(present, x, 0.0), present[:, 0, 0, :].sum(axis=0)


def traced(steps: Sequence[Step], x: Array) -> tuple[list[Kernels], PerImageFeatures]:
    """Return, under tracing, the kernels of images `(n, h, w, channels)` with themselves and their features `(n, ...)`.

    See `spatial.traced`.
    """
    results, seen = _folded(steps, jnp.moveaxis(x, 0, -1), FusionPolicy())
    return [Kernels(*kernels) for kernels in results], images_first(steps, seen, jnp.moveaxis)


def _own_batches(steps: Sequence[Step], x: np.ndarray, on_cpu: bool) -> Iterable[tuple[int, np.ndarray]]:
    """Yield the number of images in each batch, and the batch `(h, w, channels, b)`; the last batch is padded."""
    limit = (8 * BLOCK_BYTES["cpu"] if on_cpu else BLOCK_BYTES["gpu"]) // x.itemsize
    size = int(np.clip(limit // max(step.incoming.entries for step in steps), 1, 256))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        padded = np.zeros((size, *x.shape[1:]), x.dtype)
        padded[: len(part)] = part
        yield len(part), np.ascontiguousarray(np.moveaxis(padded, 0, -1))


def image_features(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> PerImageFeatures:
    """Return the per-image features of each step, arrays `(n, ...)`.

    Args:
        steps: steps for images paired with themselves, up to the last one with features.
        x: images, `(n, h, w, channels)`.
        on_cpu: see `Batch`.
    """
    if not steps:
        return ()
    parts = []
    for count, batch in _own_batches(steps, x, on_cpu):
        _, seen = own_program(steps, False, on_cpu)(np.int32(1), batch)

        def first(a: Array, axis: int, to: int, count: int = count) -> np.ndarray:
            return np.ascontiguousarray(np.moveaxis(np.asarray(a), axis, to)[:count])

        parts.append(images_first(steps, seen, first))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def diagonals(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> list[Kernels]:
    """Return both kernels of every image with itself, `(n,)` each, for every tap and then for the end."""
    parts = []
    for count, batch in _own_batches(steps, x, on_cpu):
        results, _ = own_program(steps, True, on_cpu)(np.int32(1), batch)
        parts.append([Kernels(*(np.asarray(kernel)[:count] for kernel in result)) for result in results])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def set_diagonals(made: Sequence[Kernels], diagonals: Sequence[Kernels]) -> None:
    """Write the kernels of images with themselves, `(n,)` each, to the diagonals of NumPy arrays `(n, n)`."""
    for kernels, values in zip(made, diagonals, strict=True):
        for kernel, diagonal in zip(kernels, values, strict=True):
            np.fill_diagonal(np.asarray(kernel), diagonal)
