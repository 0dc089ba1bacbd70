"""Tiles of networks that flatten their images: inner products by BLAS, then one covariance per pair in all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntkpipe.kernels.accelerator import to_host
from ntkpipe.kernels.evaluation import host, near
from ntkpipe.kernels.evaluation.fold import PerImageFeatures, fold, fold_own, images_first, no_features, views
from ntkpipe.kernels.evaluation.inner_product import Input, device_products, squared_norms
from ntkpipe.kernels.evaluation.resolve import Step, resolve
from ntkpipe.kernels.evaluation.self_pairs import set_diagonals
from ntkpipe.kernels.state import Array, Kernels, KernelState, Layer, Signature

# Images per evaluation of images with themselves. A fixed number needs one compilation and gives reproducible bits.
_CHUNK = 1024


def segments(layers: Sequence[Layer], features: int) -> list[tuple[Step, ...]]:
    """Split a network into runs of steps that each end with a layer with per-image features.

    XLA computes each result in its own loop that recomputes all steps before it (see `fusion`), so a network that is
    compiled as a whole costs the square of its depth (depth 10, float32: 574 ms instead of 42 ms for a tile of 2048 x
    2048). With runs, a network of 100 equal layers compiles three functions.
    """
    runs: list[list[Step]] = [[]]
    for step in resolve([Input(features), *layers], Signature((), features)):
        if any(previous.has_features for previous in runs[-1]):
            runs.append([])
        runs[-1].append(step)
    if len(runs) > 1 and not any(step.has_features for step in runs[-1]):
        runs[-2:] = [runs[-2] + runs[-1]]
    return [tuple(run) for run in runs]


Result = tuple[Array, Array | None]


def _at(a: Array, k: Array) -> Array:
    """Return the features of images `(n, ...)` for the k-th of many repetitions."""
    return a[:, k]


@lru_cache(maxsize=256)
def compiled_pairs(steps: tuple[Step, ...]) -> Callable[..., list[Result]]:
    """Compile a segment to one function of `(nngp, ntk, rows, columns)`, which all networks with this segment share.

    The function returns the results of the networks that end in the segment, and the state of the deepest network.
    """

    def segment(nngp: Array, ntk: Array | None, rows: PerImageFeatures, columns: PerImageFeatures) -> list[Result]:
        of_rows = views(steps, rows, lambda step, arrays: lambda: tuple(a[:, None] for a in arrays), _at)
        of_columns = views(steps, columns, lambda step, arrays: lambda: tuple(a[None, :] for a in arrays), _at)
        results: list[Result] = []

        def leave(branch: Sequence[Step], state: KernelState) -> None:
            end = fold(branch, state, no_features(branch), no_features(branch))
            results.append((end.nngp, end.ntk))

        state = fold(steps, KernelState(nngp, ntk, steps[0].incoming), of_rows, of_columns, leave)
        return [*results, (state.nngp, state.ntk)]

    return jax.jit(segment)


@lru_cache(maxsize=256)
def compiled_own(steps: tuple[Step, ...], sees: bool = True) -> Callable[..., tuple[list[Result], PerImageFeatures]]:
    """Compile a segment to one function of `(nngp, ntk)` of images with themselves.

    If `sees`, the function also returns the per-image features.
    """

    def segment(nngp: Array, ntk: Array | None) -> tuple[list[Result], PerImageFeatures]:
        results: list[Result] = []

        def leave(branch: Sequence[Step], state: KernelState) -> None:
            end, _ = fold_own(branch, state)
            results.append((end.nngp, end.ntk))

        state, seen = fold_own(steps, KernelState(nngp, ntk, steps[0].incoming, is_own=True), leave)
        return [*results, (state.nngp, state.ntk)], images_first(steps, seen, jnp.moveaxis) if sees else ()

    return jax.jit(segment)


def fold_pairs(
    runs: Sequence[tuple[Step, ...]],
    products: Array,
    rows: Sequence[PerImageFeatures],
    columns: Sequence[PerImageFeatures],
) -> list[Kernels]:
    """Return both kernels, for every tap and the end, from inner products `(n1, n2)` and the per-image features."""
    nngp, ntk = products, None
    results: list[Result] = []
    for steps, of_rows, of_columns in zip(runs, rows, columns, strict=True):
        *left, (nngp, ntk) = compiled_pairs(steps)(nngp, ntk, of_rows, of_columns)
        results += left
    return [_kernels(*result) for result in [*results, (nngp, ntk)]]


def fold_norms(
    runs: Sequence[tuple[Step, ...]], norms: Array, *, sees: bool = True
) -> tuple[list[Kernels], list[PerImageFeatures]]:
    """Return both kernels of images with themselves from their squared norms `(n,)`, and the per-image features."""
    nngp, ntk, every = norms, None, []
    results: list[Result] = []
    for steps in runs:
        (*left, (nngp, ntk)), seen = compiled_own(steps, sees)(nngp, ntk)
        results += left
        every.append(seen)
    return [_kernels(*result) for result in [*results, (nngp, ntk)]], every


def _kernels(nngp: Array, ntk: Array | None) -> Kernels:
    return Kernels(nngp, jnp.zeros_like(nngp) if ntk is None else ntk)


def own(
    runs: Sequence[tuple[Step, ...]], norms: np.ndarray, *, sees: bool = True
) -> tuple[list[Kernels], list[PerImageFeatures]]:
    """Return the result of `fold_norms` as NumPy arrays `(n,)`, computed on the host."""
    padded = np.zeros(-(-len(norms) // _CHUNK) * _CHUNK, norms.dtype)
    padded[: len(norms)] = norms
    parts = [fold_norms(runs, padded[i : i + _CHUNK], sees=sees) for i in range(0, len(padded), _CHUNK)]
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(a) for a in leaves])[: len(norms)], *parts)


def diagonals(runs: Sequence[tuple[Step, ...]], x: np.ndarray) -> list[Kernels]:
    """Return both kernels of flattened images with themselves, `(n,)` each, for every tap and the end."""
    return own(runs, squared_norms(x), sees=not any(step.more for run in runs for step in run))[0]


def on_host(
    runs: Sequence[tuple[Step, ...]], x1: np.ndarray, x2: np.ndarray | None, *, out_dtype: Any, pad_to: int | None
) -> list[Kernels]:
    """Return both kernels of flattened images `(n1, d)`, `(n2, d)`, computed on the CPU; see `host.evaluate`."""
    norms1, norms2 = squared_norms(x1), None if x2 is None else squared_norms(x2)
    of_rows, seen1 = own(runs, norms1)
    seen2 = seen1 if norms2 is None else own(runs, norms2)[1]
    looking = near.Search(norms1, norms2)

    def pair_map(products: np.ndarray, rows: Any, columns: Any) -> list[Array]:
        return [kernel for result in fold_pairs(runs, products, rows, columns) for kernel in result]

    arrays = host.evaluate(
        pair_map,
        x1,
        x2,
        seen1,
        seen2,
        results=2 * len(of_rows),
        out_dtype=out_dtype,
        pad_to=pad_to,
        watch=looking.strip,
    )
    made = [Kernels(*arrays[k : k + 2]) for k in range(0, len(arrays), 2)]
    if x2 is None:
        set_diagonals(made, of_rows)
    found = looking.found()
    if found.rows.size:
        near.put(made, near_pairs(runs, x1, x2, found), found, mirrored=x2 is None)
    return made


def near_pairs(
    runs: Sequence[tuple[Step, ...]], x1: np.ndarray, x2: np.ndarray | None, found: near.Found
) -> list[Kernels]:
    """Return both kernels of nearly equal pairs of flattened images; see `near.evaluate`."""
    steps = [step for run in runs for step in run]
    return near.evaluate(steps, x1, x2, found, lambda images: diagonals(runs, images))


def in_distance_form(runs: Sequence[tuple[Step, ...]], x1: np.ndarray, x2: np.ndarray | None) -> list[Kernels]:
    """Return both kernels `(n1, n2)` of flattened images, with all pairs evaluated like nearly equal ones."""
    others = x1 if x2 is None else x2
    every = np.indices((len(x1), len(others))) if x2 is not None else np.stack(np.tril_indices(len(x1)))
    found = near.Found(*every.reshape(2, -1))
    values = near_pairs(runs, x1, others, found)
    made = [Kernels(*np.empty((2, len(x1), len(others)))) for _ in values]
    near.put(made, values, found, mirrored=x2 is None)
    return made


def on_device(runs: Sequence[tuple[Step, ...]], x1: Array, x2: Array | None) -> list[Kernels]:
    """Return both kernels on JAX's default device. Inside JAX transformations, nearly equal pairs get no special
    treatment.
    """
    x1 = jnp.asarray(x1)
    made, found = _on_device(runs, x1, x2)
    if found is None or not found.rows.size:
        return made
    others = None if x2 is None else to_host(jnp.asarray(x2))
    values = near_pairs(runs, to_host(x1), others, found)
    dtype = x1.dtype
    places = [(found.rows, found.columns), *([(found.columns, found.rows)] if x2 is None else [])]
    for at in places:
        made = [
            Kernels(*(jnp.asarray(k).at[at].set(v.astype(dtype)) for k, v in zip(kernels, new, strict=True)))
            for kernels, new in zip(made, values, strict=True)
        ]
    return made


def _on_device(
    runs: Sequence[tuple[Step, ...]], x1: jax.Array, x2: Array | None
) -> tuple[list[Kernels], near.Found | None]:
    """Return the kernels and the nearly equal pairs, which are None inside JAX transformations."""
    products, p, q = device_products(x1, x1 if x2 is None else jnp.asarray(x2))
    of_rows, seen1 = fold_norms(runs, p)
    made = fold_pairs(runs, products, seen1, seen1 if x2 is None else fold_norms(runs, q)[1])
    if x2 is None:
        made = [
            Kernels(*(symmetric(*pair) for pair in zip(kernels, diagonal, strict=True)))
            for kernels, diagonal in zip(made, of_rows, strict=True)
        ]
    return made, None if isinstance(products, Tracer) else near.search_products(products, p, None if x2 is None else q)


def padded_on_device(
    runs: Sequence[tuple[Step, ...]], x1: jax.Array, x2: jax.Array | None, *, out_dtype: Any, pad_to: int | None
) -> list[Kernels]:
    """Return the result of `on_device` as NumPy arrays. Smaller blocks are padded to `pad_to` rows to share
    programs.
    """

    def padded(x: jax.Array) -> jax.Array:
        missing = max(pad_to or 0, len(x)) - len(x)
        return x if missing == 0 else jnp.pad(x, ((0, missing), (0, 0)))

    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    made, found = _on_device(runs, padded(x1), None if x2 is None else padded(x2))
    if found is not None:  # not the padding
        inside = (found.rows < n1) & (found.columns < n2)
        found = near.Found(found.rows[inside], found.columns[inside])

    def cut(kernel: Array) -> np.ndarray:
        kernel = jnp.asarray(kernel) if kernel.shape == (n1, n2) else kernel[:n1, :n2]
        if np.dtype(out_dtype).itemsize < kernel.dtype.itemsize:  # half the bytes are copied in half the time
            kernel = kernel.astype(out_dtype)
        return to_host(jnp.asarray(kernel)).astype(out_dtype, copy=False)

    made = [Kernels(cut(kernels.nngp), cut(kernels.ntk)) for kernels in made]
    if found is not None and found.rows.size:
        others = None if x2 is None else to_host(x2)
        near.put(made, near_pairs(runs, to_host(x1), others, found), found, mirrored=x2 is None)
    return made


@jax.jit
def symmetric(block: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Return a symmetric block from the lower triangle and the exact diagonal."""
    row, col = jnp.arange(len(block))[:, None], jnp.arange(len(block))[None, :]
    return jnp.where(row == col, diagonal[:, None], jnp.where(row > col, block, block.T))
