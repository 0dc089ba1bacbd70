"""Nearly equal or nearly opposite pairs of images: they are found in a tile and evaluated again, accurately.

The covariance of two such images does not determine their angle accurately (see `apart`). Most tiles have few such
pairs, so a more expensive evaluation is affordable: in float64, in distance form (see `distance_form`). Equal images
get the kernels of one image with itself, unless the network has dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.evaluation import distance_form
from ntkpipe.kernels.evaluation.inner_product import squared_norms
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.layers.dropout import Dropout
from ntkpipe.kernels.state import Kernels

# Pairs with larger cosines are evaluated again: angles below 0.045. There, the error of an angle computed from a cosine
# is 22 times that of the cosine, and its effect on a kernel 7 times.
COSINE = 1.0 - 1e-3

# Largest number of covariances of a block of pairs, and the numbers of pairs of flat networks evaluated together.
_ENTRIES = 1 << 20
_SIZES = (64, 4096, 65536)


class Found(NamedTuple):
    """Places in a tile, `(n,)` each."""

    rows: np.ndarray
    columns: np.ndarray


class Search:
    """Searches inner products for nearly equal or opposite pairs, strip by strip.

    Args:
        rows: squared norms of the row images, `(n1,)`.
        columns: squared norms of the column images, `(n2,)`. None pairs the rows with themselves; only pairs below the
            diagonal are then returned.
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray | None) -> None:
        self._is_square = columns is None
        others = rows if columns is None else columns
        self._least = COSINE * np.sqrt(rows)
        with np.errstate(divide="ignore"):
            self._inverse = np.where(others > 0, 1.0 / np.sqrt(others), 0.0).astype(others.dtype)
        # Zero images have no direction; they are equal to each other.
        self._parts = [Found(*np.nonzero((rows == 0)[:, None] & (others == 0)))] if not rows.all() else []

    def strip(self, products: np.ndarray, start: int) -> None:
        """Search the inner products of the rows from `start` on with the columns from the first on."""
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
        """Return all pairs found so far."""
        rows, columns = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in self._columns_of_parts())
        below = rows > columns if self._is_square else slice(None)
        return Found(rows[below], columns[below])

    def _columns_of_parts(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [part.rows for part in self._parts], [part.columns for part in self._parts]


def search(x1: np.ndarray, x2: np.ndarray | None) -> Found:
    """Search images `(n1, ...)` and `(n2, ...)` by computing their inner products; see `Search`."""
    looking = Search(squared_norms(x1), None if x2 is None else squared_norms(x2))
    first = x1.reshape(len(x1), -1)
    second = first if x2 is None else x2.reshape(len(x2), -1)
    step = max(1, _ENTRIES // len(second))
    for start in range(0, len(first), step):
        looking.strip(first[start : start + step] @ second.T, start)
    return looking.found()


def search_products(products: jax.Array, rows: jax.Array, columns: jax.Array | None) -> Found:
    """Search inner products `(n1, n2)` on a device without copying them to the host; see `Search`."""
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
    """Write values to their places in NumPy arrays; if `mirrored`, also to the transposed places."""
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
    """Return both kernels of the pairs that were found, `(n,)` each, for every tap and the end of the network.

    Args:
        steps: steps of the network for images with themselves.
        x1: row images, `(n1, ...)`, flattened if the network is flat.
        x2: column images; None pairs the rows with themselves.
        found: the pairs.
        diagonals: returns both kernels of images with themselves, which equal pairs get.
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
        made = distance_form.evaluate(steps, images, first[padded], second[padded])
        parts.append((chosen, [Kernels(*(kernel[: len(chosen)] for kernel in kernels)) for kernels in made]))
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))[places]
    together: list[Kernels] = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(a, np.float64) for a in leaves])[order],
        *(list(made) for _, made in parts),
    )
    return together


def _distinct(x1: np.ndarray, x2: np.ndarray, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct images of all pairs, and the two indices of each pair among them."""
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
    """Split pairs into pieces of a few fixed sizes, so few programs are compiled, and pad each piece to its size."""
    # The state of thousands of repetitions should stay in the cache of a core.
    sizes = _SIZES[:2] if any(step.more for step in steps) else _SIZES
    size = next((size for size in sizes if len(pairs) <= size), sizes[-1])
    if steps[0].incoming.spatial:
        size = int(np.clip(_ENTRIES // max(step.incoming.entries for step in steps), 1, _SIZES[0]))
    for start in range(0, len(pairs), size):
        chosen = pairs[start : start + size]
        yield chosen, np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen))])
