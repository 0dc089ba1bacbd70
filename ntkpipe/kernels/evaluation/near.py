"""Pairs of images that nearly coincide, or nearly are each other's negatives: found in a tile, evaluated anew, and put in.

The covariance of two such images cancels in every angle (see `apart`). They are few in most tiles, so that their way
through the layers may cost more: in float64, layer by layer, with both images' own covariances beside. Equal images
are the easiest: they have the kernels of one image with itself, unless dropout tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart, between
from ntkpipe.kernels.evaluation.fold import repetitions
from ntkpipe.kernels.evaluation.inner_product import squared_norms
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.images import as_planes
from ntkpipe.kernels.layers.baseline import Stationary
from ntkpipe.kernels.layers.dropout import Dropout
from ntkpipe.kernels.layers.mask import Mask
from ntkpipe.kernels.layers.nonlinear.base import Nonlinearity
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.layers.residual import Branching
from ntkpipe.kernels.sequences import filled, lengths_of
from ntkpipe.kernels.state import Array, Kernels, KernelState, Signature, View

# Of cosines beyond which pairs are evaluated anew: angles below 0.045. There an angle from a cosine is off by 22 times the
# cosine's error, and its share in a kernel by 7 times.
COSINE = 1.0 - 1e-3

# Covariances of a block of pairs, and how many pairs of flat networks go through the layers together.
_ENTRIES = 1 << 20
_SIZES = (64, 4096, 65536)
# Values of images that are subtracted at once.
_VALUES = 1 << 20


class Found(NamedTuple):
    """Places in a tile, `(n,)` each."""

    rows: np.ndarray
    columns: np.ndarray


class Search:
    """Looks for pairs that nearly coincide where their inner products come by, strip by strip.

    Args:
        rows: squared norms of the row images, `(n1,)`.
        columns: of the column images, `(n2,)`; None pairs the rows with themselves: only pairs below the diagonal count.
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray | None) -> None:
        self._is_square = columns is None
        others = rows if columns is None else columns
        self._least = COSINE * np.sqrt(rows)
        with np.errstate(divide="ignore"):
            self._inverse = np.where(others > 0, 1.0 / np.sqrt(others), 0.0).astype(others.dtype)
        # Images of zeros have no direction, and equal each other.
        self._parts = [Found(*np.nonzero((rows == 0)[:, None] & (others == 0)))] if not rows.all() else []

    def strip(self, products: np.ndarray, start: int) -> None:
        """Look at the inner products of rows from `start` on with columns from the first on."""
        scaled = products * self._inverse[: products.shape[1]]
        if self._is_square:
            own = np.arange(start, min(start + len(scaled), scaled.shape[1]))
            scaled[own - start, own] = 0
        least = self._least[start : start + len(scaled)]
        some = np.flatnonzero(np.maximum(scaled.max(axis=1), -scaled.min(axis=1)) > least)
        if some.size:
            at, columns = np.nonzero(np.abs(scaled[some]) > least[some, None])
            self._parts.append(Found(some[at] + start, columns))

    def found(self) -> Found:
        """All of them so far."""
        rows, columns = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in self._columns_of_parts())
        below = rows > columns if self._is_square else slice(None)
        return Found(rows[below], columns[below])

    def _columns_of_parts(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [part.rows for part in self._parts], [part.columns for part in self._parts]


def search(x1: np.ndarray, x2: np.ndarray | None) -> Found:
    """As `Search`, of images `(n1, ...)` and `(n2, ...)` whose inner products nobody else needs."""
    looking = Search(squared_norms(x1), None if x2 is None else squared_norms(x2))
    first = x1.reshape(len(x1), -1)
    second = first if x2 is None else x2.reshape(len(x2), -1)
    step = max(1, _ENTRIES // len(second))
    for start in range(0, len(first), step):
        looking.strip(first[start : start + step] @ second.T, start)
    return looking.found()


def search_products(products: jax.Array, rows: jax.Array, columns: jax.Array | None) -> Found:
    """As `Search`, of inner products `(n1, n2)` on a device, where they stay."""
    near = _nearly_parallel(products, rows, rows if columns is None else columns, columns is None)
    if not near.any():
        return Found(*np.empty((2, 0), np.int64))
    return Found(*np.nonzero(np.asarray(near)))


@partial(jax.jit, static_argnums=3)
def _nearly_parallel(products: jax.Array, rows: jax.Array, columns: jax.Array, is_square: bool) -> jax.Array:
    least = COSINE * (jnp.sqrt(rows)[:, None] * jnp.sqrt(columns)[None, :])
    near = (jnp.abs(products) > least) | ((rows == 0)[:, None] & (columns == 0)[None, :])
    return jnp.tril(near, -1) if is_square else near


def put(made: Sequence[Kernels], values: Sequence[Kernels], found: Found, *, mirrored: bool) -> None:
    """Write values to their places in NumPy arrays; if `mirrored`, to those of the transposes too."""
    for kernels, new in zip(made, values, strict=True):
        for kernel, value in zip(kernels, new, strict=True):
            whole = np.asarray(kernel)
            whole[found.rows, found.columns] = value
            if mirrored:
                whole[found.columns, found.rows] = value


def evaluate(
    steps: Sequence[Step],
    x1: np.ndarray,
    x2: np.ndarray | None,
    found: Found,
    diagonals: Callable[[np.ndarray], Sequence[Kernels]],
) -> list[Kernels]:
    """Both kernels of the pairs that were found, `(n,)` each, of every tap and the end.

    Args:
        steps: of the network, as for images with themselves.
        x1: row images, `(n1, ...)`, flattened if the network is flat.
        x2: column images; None pairs the rows with themselves.
        found: the pairs.
        diagonals: gives both kernels of images with themselves, of every tap and the end: those of equal images.
    """
    images, first, second = _distinct(x1, x1 if x2 is None else x2, found)
    pairs, places = np.unique(first * len(images) + second, return_inverse=True)
    first, second = np.divmod(pairs, len(images))
    equal = (first == second) & (not _tells_equal_images_apart(steps))
    parts = []
    if equal.any():
        parts.append((np.flatnonzero(equal), diagonals(images[first[equal]])))
    others = np.flatnonzero(~equal)
    for chosen, padded in _chunks(others, steps):
        made = _through_layers(steps, images, first[padded], second[padded])
        parts.append((chosen, [Kernels(*(kernel[: len(chosen)] for kernel in kernels)) for kernels in made]))
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))[places]
    together: list[Kernels] = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(a, np.float64) for a in leaves])[order],
        *(list(made) for _, made in parts),
    )
    return together


def _distinct(x1: np.ndarray, x2: np.ndarray, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct images of all pairs, and the numbers of each pair's among them."""
    numbers: dict[bytes, int] = {}
    images: list[np.ndarray] = []

    def number(image: np.ndarray) -> int:
        key = blake2b((image + 0.0).tobytes(), digest_size=16).digest()  # -0.0 equals 0.0
        if key not in numbers:
            numbers[key] = len(images)
            images.append(image)
        return numbers[key]

    made = []
    for x, at in ((x1, found.rows), (x2, found.columns)):
        every, places = np.unique(at, return_inverse=True)
        made.append(np.array([number(x[k]) for k in every])[places])
    return np.stack(images), made[0], made[1]


def _tells_equal_images_apart(steps: Sequence[Step]) -> bool:
    return any(
        (isinstance(step.layer, Dropout) and step.layer.rate < 1.0)
        or any(_tells_equal_images_apart(branch) for branch in step.branches)
        for step in steps
    )


def _chunks(pairs: np.ndarray, steps: Sequence[Step]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs by pieces of one of some sizes, so that there are few to compile for; and padded to that size with the first."""
    # What thousands of repetitions carry should stay in a core's cache.
    sizes = _SIZES[:2] if any(step.more for step in steps) else _SIZES
    size = next((size for size in sizes if len(pairs) <= size), sizes[-1])
    if steps[0].incoming.spatial:
        size = int(np.clip(_ENTRIES // max(step.incoming.entries for step in steps), 1, _SIZES[0]))
    for start in range(0, len(pairs), size):
        chosen = pairs[start : start + size]
        yield chosen, np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen))])


class _Walk(NamedTuple):
    """What is carried from layer to layer: `first`, `second` and `k` in the layout of `KernelState`, `(n,)` once flat.

    Args:
        first: covariances of the first images with themselves.
        second: likewise of the second images.
        k: covariances of the pairs.
        t: their NTK, or None.
        upper: see `Apart`.
        lower: likewise.
        lengths: of sequences that end at different places, those of the first and the second, `(n,)`.
    """

    first: Array
    second: Array
    k: Array
    t: Array | None
    upper: Array
    lower: Array
    lengths: tuple[Array, Array] | None = None

    def apart(self, signature: Signature) -> Apart:
        """With the variances."""
        return Apart(
            _equal_pixels(self.first, signature), _equal_pixels(self.second, signature), self.upper, self.lower
        )


def _through_layers(steps: Sequence[Step], images: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[Kernels]:
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
    """The JAX context of float64, on a host's CPU where the default device has none."""
    stack = ExitStack()
    stack.enter_context(jax.enable_x64(True))
    if jax.default_backend() not in ("cpu", "gpu", "cuda", "rocm"):
        stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
    return stack


def _kernels_of(end: _Walk) -> Kernels:
    return Kernels(end.k, jnp.zeros_like(end.k) if end.t is None else end.t)


def _begin_flat(signature: Signature, images: np.ndarray, first: np.ndarray, second: np.ndarray) -> _Walk:
    """Inner products of flattened images, and what they leave of their bounds."""
    del signature
    made, left = _from_the_middle(images, first, second)
    step = max(1, _VALUES // images.shape[1])
    for start in range(0, len(left), step):
        at = left[start : start + step]
        made[:, at] = _from_differences(images[first[at]], images[second[at]])
    p, q, upper, lower = made
    return _Walk(p, q, 0.5 * (lower - upper), None, upper, lower)


def _from_the_middle(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`p`, `q`, `upper` and `lower` of many pairs of few images, `(4, n)`, and the pairs for which this is not accurate.

    Where all images of a data set nearly coincide, they do so near their mean: products of what they differ by from it are
    small, and so is their rounding, which may be as large as `upper` times the rounding over the angle.
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
    # As `between`, of the nearer of both directions.
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
    """Covariances of all pairs of pixels, and what those of equal pixels leave of their bounds."""
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
    """Through all steps; what leaves at taps goes to `results`. See `fold`."""
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
    """Through one layer: one program each, so that deep networks of equal layers have few, and XLA recomputes none in another."""
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
    """What the layer sees of one image of each pair."""
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
