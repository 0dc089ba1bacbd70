"""Kernels of pairs of images in distance form: layer by layer, together with the covariances of both images with
themselves and the distances of their covariance from its bounds (see `apart`), in float64.

These distances determine the angle of two images accurately even if they are nearly equal or nearly opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart, between
from ntkpipe.kernels.evaluation.fold import repetitions
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.images import as_planes
from ntkpipe.kernels.layers.baseline import Stationary
from ntkpipe.kernels.layers.mask import Mask
from ntkpipe.kernels.layers.nonlinear.base import Nonlinearity
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.layers.residual import Branching
from ntkpipe.kernels.sequences import filled, lengths_of
from ntkpipe.kernels.state import Array, Kernels, KernelState, Signature, View

# Number of image values that are subtracted at once.
_VALUES = 1 << 20


class _Walk(NamedTuple):
    """The state between layers: `first`, `second` and `k` have the layout of `KernelState`, `(n,)` once flat.

    Args:
        first: covariances of the first images with themselves.
        second: covariances of the second images with themselves.
        k: covariances of the pairs.
        t: NTK of the pairs, or None.
        upper: see `Apart`.
        lower: see `Apart`.
        lengths: lengths of the first and the second sequences, `(n,)` each, if they differ.
    """

    first: Array
    second: Array
    k: Array
    t: Array | None
    upper: Array
    lower: Array
    lengths: tuple[Array, Array] | None = None

    def apart(self, signature: Signature) -> Apart:
        """Return the bounds together with the variances."""
        return Apart(
            _equal_pixels(self.first, signature), _equal_pixels(self.second, signature), self.upper, self.lower
        )


def evaluate(steps: Sequence[Step], images: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[Kernels]:
    """Return both kernels of pairs of images, `(n,)` each in float64, for every tap and the end of the network.

    Args:
        steps: steps of the network for images with themselves.
        images: the images, `(m, ...)`, flattened if the network is flat.
        first: index of the first image of each pair, `(n,)`.
        second: index of the second image of each pair, `(n,)`.
    """
    with _in_float64():
        results: list[Kernels] = []
        begin = _begin_image if steps[0].incoming.spatial else _begin_flat
        walk = begin(steps[0].incoming, images, first, second)
        if any(step.is_masked for step in steps):
            lengths = lengths_of(images)
            lengths = np.full(len(images), images.shape[1]) if lengths is None else lengths
            walk = walk._replace(lengths=(jnp.asarray(lengths[first]), jnp.asarray(lengths[second])))
        end = _walk(steps, walk, results)
        return [Kernels(*map(np.asarray, kernels)) for kernels in [*results, _kernels_of(end)]]


def _in_float64() -> AbstractContextManager[object]:
    """Return a JAX context with float64, on the CPU if the default device does not support it."""
    stack = ExitStack()
    stack.enter_context(jax.enable_x64(True))
    if jax.default_backend() not in ("cpu", "gpu", "cuda", "rocm"):
        stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
    return stack


def _kernels_of(end: _Walk) -> Kernels:
    return Kernels(end.k, jnp.zeros_like(end.k) if end.t is None else end.t)


def _begin_flat(signature: Signature, images: np.ndarray, first: np.ndarray, second: np.ndarray) -> _Walk:
    """Return the inner products of flattened images, and their distances from the bounds."""
    del signature
    made, left = _from_the_middle(images, first, second)
    step = max(1, _VALUES // images.shape[1])
    for start in range(0, len(left), step):
        at = left[start : start + step]
        made[:, at] = _from_differences(images[first[at]], images[second[at]])
    p, q, upper, lower = made
    return _Walk(p, q, 0.5 * (lower - upper), None, upper, lower)


def _from_the_middle(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `p`, `q`, `upper` and `lower` of many pairs of few images, `(4, n)`, and the pairs for which they are
    inaccurate.

    If all images of a data set are nearly equal, they are close to their mean. Products of their differences from the
    mean are small, and so is the rounding, which may be as large as `upper` times the rounding divided by the angle.
    """
    made = np.zeros((4, len(first)))
    (rows, at), (columns, where) = (np.unique(index, return_inverse=True) for index in (first, second))
    if len(first) < 8 * (len(rows) + len(columns)):
        return made, np.arange(len(first))
    x, y = (images[index].astype(np.float64) for index in (rows, columns))
    p, q = (np.einsum("nj,nj->n", z, z) for z in (x, y))
    middle = 0.5 * (x.mean(axis=0) + y.mean(axis=0))
    x -= middle
    y -= middle
    small_p, small_q = (np.einsum("nj,nj->n", z, z) for z in (x, y))
    excess_p, excess_q = (2.0 * (z @ middle) + small for z, small in ((x, small_p), (y, small_q)))
    together = small_p[at] + small_q[where]
    square = np.maximum(together - 2.0 * (x @ y.T)[at, where], 0.0)
    f, g = np.sqrt(p)[at], np.sqrt(q)[where]
    difference = (excess_p[at] - excess_q[where]) / np.where(f + g > 0, f + g, 1.0)
    upper = np.maximum(0.5 * (square - difference**2), 0.0)
    made[:] = p[at], q[where], upper, 2.0 * f * g - upper
    error = together + np.abs(difference) * np.sqrt(together)
    is_accurate = (error <= 2.0 * np.sqrt(upper * f * g)) & (upper <= 0.1 * f * g)
    return made, np.flatnonzero(~is_accurate)


def _from_differences(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    x, y = x1.astype(np.float64), x2.astype(np.float64)
    p, q, k = (np.einsum("nj,nj->n", a, b) for a, b in ((x, x), (y, y), (x, y)))
    # As in `between`, for the closer of the equal and the opposite direction.
    present = (p > 0) & (q > 0)
    f, g = (np.where(present, np.sqrt(norm), 1.0) for norm in (p, q))
    y *= np.where(k < 0, -1.0, 1.0)[:, None]
    y -= x
    excess = (2.0 * np.einsum("nj,nj->n", x, y) + np.einsum("nj,nj->n", y, y)) / (f * (f + g))
    x *= excess[:, None]
    y -= x
    close = np.where(present, 0.5 * np.einsum("nj,nj->n", y, y) * (f / g), 0.0)
    far = 2.0 * np.sqrt(p) * np.sqrt(q) - close
    return np.stack([p, q, np.where(k < 0, far, close), np.where(k < 0, close, far)])


def _begin_image(signature: Signature, images: np.ndarray, first: np.ndarray, second: np.ndarray) -> _Walk:
    """Return the covariances of all pairs of pixels, and the distances from the bounds of those of equal pixels."""
    images = as_planes(filled(images))
    return _image_products(signature, images[first], images[second])


@partial(jax.jit, static_argnums=0)
def _image_products(signature: Signature, x1: Array, x2: Array) -> _Walk:
    first, second = (jnp.moveaxis(jnp.asarray(x, jnp.float64), 0, -1) for x in (x1, x2))  # (h, w, channels, n)
    scale = 1.0 / signature.features
    of_first, of_second, k = (
        layout.products(a, b, signature) * scale for a, b in ((first, first), (second, second), (first, second))
    )
    f, g = (jnp.moveaxis(x, 2, 0) for x in (first, second))
    return _Walk(of_first, of_second, k, None, between(f, g) * scale, between(f, g, -1.0) * scale)


def _walk(steps: Sequence[Step], walk: _Walk, results: list[Kernels]) -> _Walk:
    """Apply all steps and append the kernels of the taps to `results`. See `fold`."""
    for step in steps:
        if isinstance(step.layer, Tap):
            results += [_kernels_of(_walk(branch, _entering(branch, step, walk), [])) for branch in step.branches]
            walk = _restricted(walk, step.incoming, step.outgoing)
        elif isinstance(step.layer, Repeat):
            walk = _repeated(step, walk)
        elif step.branches:
            walk = _joined([_walk(branch, _entering(branch, step, walk), []) for branch in step.branches], step)
        else:
            walk = _advance(step, walk)
    return walk


def _repeated(step: Step, walk: _Walk) -> _Walk:
    first, body, more = repetitions(step)
    has = step.incoming
    for branch in first:
        walk, has = _walk(branch, _restricted(walk, has, branch[0].incoming), []), branch[-1].outgoing
    if more:
        walk, has = _scanned(body, more, walk), body[-1].outgoing
    return _restricted(walk, has, step.outgoing)


@partial(jax.jit, static_argnums=(0, 1))
def _scanned(body: Sequence[Step], times: int, walk: _Walk) -> _Walk:
    def once(walk: _Walk, _: None) -> tuple[_Walk, None]:
        return _walk(body, _restricted(walk, body[-1].outgoing, body[0].incoming), []), None

    return lax.scan(once, walk, None, length=times)[0]


@partial(jax.jit, static_argnums=0)
def _advance(step: Step, walk: _Walk) -> _Walk:
    """Apply one layer, in a program of its own: equal layers share it, and XLA cannot recompute a layer in the next
    one.
    """
    incoming, outgoing, layer = step.incoming, step.outgoing, step.layer
    ends = walk.lengths or (None, None)
    first, second = (
        KernelState(x, None, incoming, is_own=True, lengths=lengths) for x, lengths in zip(walk[:2], ends, strict=True)
    )
    after = _Walk(layer(first, outgoing).nngp, layer(second, outgoing).nngp, *walk[2:])
    row, column = (
        _view(step, own, spread) for own, spread in ((first, layout.spread_row), (second, _spread(incoming)))
    )
    before, signature = walk.apart(incoming), outgoing
    if isinstance(layer, Nonlinearity) and layer.feature_scope != "nothing":
        p, q = after.apart(outgoing)[:2]
        upper, lower, dot = layer.near(before, p, q)
        k, signature = walk.k, incoming
        if incoming.spatial and incoming.support != ((0,), (0,)):
            others = layer.derivative(k, row(), column())
            k = layer.value(k, row(), column(), others)
            dot = layout.with_variances(others, dot)
        elif incoming.spatial:
            dot = layout.with_variances(k, dot)
        t = None if walk.t is None else walk.t * dot
    else:
        state = layer(KernelState(walk.k, walk.t, incoming, row=row, column=column), outgoing)
        k, t = state.nngp, state.ntk
        made = layer.apart(before, incoming)
        if isinstance(layer, Mask):
            f, g = (layer.image_features(own)[0] for own in (first, second))
            made = Apart(before.p * f * f, before.q * g * g, before.upper * f * g, before.lower * f * g)
        if made is None:
            norm, value = after.apart(outgoing).norm, _equal_pixels(k, outgoing)
            upper, lower = jnp.maximum(norm - value, 0.0), jnp.maximum(norm + value, 0.0)
        else:
            upper, lower = made.upper, made.lower
    k = _with_equal_pixels(k, 0.5 * (lower - upper), signature)
    if isinstance(layer, Stationary):
        t = k
    return after._replace(k=k, t=t, upper=upper, lower=lower)


def _view(step: Step, own: KernelState, spread: Callable[[Array], Array]) -> View:
    """Return the features of one image of each pair for the layer."""
    seen = step.layer.image_features(own) if step.layer.feature_scope != "nothing" else None
    if seen is None or not own.signature.spatial or step.layer.feature_scope == "matrices":
        return lambda: () if seen is None else seen
    return lambda: tuple(spread(field) for field in seen)


def _spread(signature: Signature) -> Callable[[Array], Array]:
    return lambda field: layout.spread_column(field, signature)


@partial(jax.jit, static_argnums=1)
def _joined(ends: Sequence[_Walk], step: Step) -> _Walk:
    layer, signature = step.layer, step.outgoing
    assert isinstance(layer, Branching)
    leaving = [step.leaving(branch) for branch in step.branches]
    total = layer.join_apart([end.apart(signature) for end in ends], [end.features for end in leaving])
    each = list(zip(ends, leaving, strict=True))
    first, second = (
        layer.join(
            [KernelState(x, None, leaves, is_own=True) for x, leaves in zip(of, leaving, strict=True)], signature
        ).nngp
        for of in ([end.first for end in ends], [end.second for end in ends])
    )
    pairs = layer.join([KernelState(end.k, end.t, leaves) for end, leaves in each], signature)
    k = _with_equal_pixels(pairs.nngp, total.k, signature)
    return _Walk(first, second, k, pairs.ntk, total.upper, total.lower, ends[0].lengths)


def _entering(branch: Sequence[Step], step: Step, walk: _Walk) -> _Walk:
    return _restricted(walk, step.incoming, step.entering(branch))


def _restricted(walk: _Walk, has: Signature, wanted: Signature) -> _Walk:
    if has.support == wanted.support:
        return walk
    cut = [None if x is None else layout.restrict(x, has.support, wanted.support) for x in walk[:4]]
    return _Walk(*cut, *walk[4:])  # type: ignore[arg-type]


def _equal_pixels(x: Array, signature: Signature) -> Array:
    return layout.variances(x) if signature.spatial else x


def _with_equal_pixels(x: Array, values: Array, signature: Signature) -> Array:
    return layout.with_variances(x, values) if signature.spatial else values
