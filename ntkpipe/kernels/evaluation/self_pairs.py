"""Images paired with themselves: what layers see of each, and the diagonals of the kernels."""

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
    """Compiled: from images `(h, w, channels, n)` to the kernels of each with itself, if asked for, and what was seen of it."""

    def program(alive: Array, x: Array) -> tuple[list[tuple[Array, Array]], PerImageFeatures]:
        results, seen = _folded(steps, x, Materialised(alive) if on_cpu else Fused())
        return results if with_kernels else [], seen

    return jax.jit(program, compiler_options=COMPILER_OPTIONS if on_cpu else None)


def _folded(
    steps: Sequence[Step], x: Array, fusion: FusionPolicy
) -> tuple[list[tuple[Array, Array]], PerImageFeatures]:
    """From images `(h, w, channels, n)`: the kernels of each with itself, of every tap, then of the end, and what was seen."""
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
    """Of sequences `(h, w, channels, n)` with NaN after their ends, zeros there and their lengths `(n,)`, if the network masks them."""
    if not any(step.is_masked for step in steps):
        return x, None
    present = ~jnp.isnan(x)
    return jnp.where(present, x, 0.0), present[:, 0, 0, :].sum(axis=0)


def traced(steps: Sequence[Step], x: Array) -> tuple[list[Kernels], PerImageFeatures]:
    """The same under tracing, of images `(n, h, w, channels)`, with what was seen as `(n, ...)`; see `spatial.traced`."""
    results, seen = _folded(steps, jnp.moveaxis(x, 0, -1), FusionPolicy())
    return [Kernels(*kernels) for kernels in results], images_first(steps, seen, jnp.moveaxis)


def _own_batches(steps: Sequence[Step], x: np.ndarray, on_cpu: bool) -> Iterable[tuple[int, np.ndarray]]:
    """Batches `(h, w, channels, b)` of one size, the last padded, and how many images of each count."""
    limit = (8 * BLOCK_BYTES["cpu"] if on_cpu else BLOCK_BYTES["gpu"]) // x.itemsize
    size = int(np.clip(limit // max(step.incoming.entries for step in steps), 1, 256))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        padded = np.zeros((size, *x.shape[1:]), x.dtype)
        padded[: len(part)] = part
        yield len(part), np.ascontiguousarray(np.moveaxis(padded, 0, -1))


def image_features(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> PerImageFeatures:
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

        def first(a: Array, axis: int, to: int, count: int = count) -> np.ndarray:
            return np.ascontiguousarray(np.moveaxis(np.asarray(a), axis, to)[:count])

        parts.append(images_first(steps, seen, first))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def diagonals(steps: tuple[Step, ...], x: np.ndarray, *, on_cpu: bool = True) -> list[Kernels]:
    """Both kernels of every image with itself, `(n,)` each: of every tap, then of the end."""
    parts = []
    for count, batch in _own_batches(steps, x, on_cpu):
        results, _ = own_program(steps, True, on_cpu)(np.int32(1), batch)
        parts.append([Kernels(*(np.asarray(kernel)[:count] for kernel in result)) for result in results])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
