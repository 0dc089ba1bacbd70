"""A user's kernel matrices in place of a Gram store. Tiles are read from the user's files, which are never copied.

Only the lower triangle of the train-train matrix is used. The upper triangle may be NaN, as in the arrays of a Gram
store, which a user may also give. Otherwise a sample of it is compared with the lower triangle.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ntkpipe.data.given_array import GivenArray, open_given
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Block, Kernel

# Rows and columns that are hashed together. The hash depends on them, so they must not change.
_HASH_EDGE = 1024
_LARGEST_EDGE = 2048
# Symmetry and |k(x, y)| <= sqrt(k(x, x) k(y, y)) are checked in this many pairs of blocks, each block of `_BLOCK_ROWS`
# rows. A matrix of at most `_SMALL` rows is checked entirely.
_SAMPLED_BLOCKS, _BLOCK_ROWS, _SMALL = 24, 128, 1024
# Tolerance in units of sqrt(k(x, x) k(y, y)). Two orders of float32 arithmetic may change an entry by as much.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class GivenTiles:
    """`TileMatrix` over a user's array.

    Args:
        array: the user's array, at least as large as the grid.
        grid: the tiles of the array.
    """

    array: GivenArray
    grid: TileGrid

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The dtype of the array."""
        return np.dtype(self.array.dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Read tile `(i, j)`, as `TileMatrix.read` does."""
        t = self.grid.tile(i, j)
        return self.array.read(slice(t.row_start, t.row_stop), slice(t.col_start, t.col_stop))

    def leading(self, rows: int, cols: int | None = None) -> GivenTiles:
        """Return the matrix cut to its leading block `[:rows, :cols]`."""
        return replace(self, grid=self.grid.leading(rows, cols))


@dataclass(frozen=True)
class GivenGram:
    """Both blocks of a given kernel and its diagonals, with the interface of a Gram store.

    `open_gram` makes it, and `check_gram` fills in `content` and `diagonals`.

    Args:
        train: `(n, n)` kernel of the training points.
        test: `(p, n)` kernel of test and training points, with test points as rows.
        test_diagonal: `(p,)` diagonal of the test points; None if it is not known.
        edge: rows of a tile.
        content: SHA-256 of all used values; empty before they are checked.
        diagonals: `train` `(n,)` and `test` `(p,)`, float64; empty before they are checked.
    """

    train: GivenArray
    test: GivenArray
    test_diagonal: GivenArray | None
    edge: int
    content: str = ""
    diagonals: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def where(self) -> str:
        """The path of the train-train matrix, for messages."""
        return self.train.path

    @property
    def dtype(self) -> str:
        """The dtype of the tiles: the wider dtype of both matrices."""
        return max(self.train.dtype, self.test.dtype)

    @property
    def identity(self) -> GramIdentity:
        """The identity, as of a Gram store. It depends on the content, not on the path of the file."""
        return GramIdentity(
            data=self.content,
            architecture="given",
            formula_version="given",
            dtype=self.dtype,
            stored_dtype=self.dtype,
            edge=self.edge,
            n_train=self.train.shape[0],
            n_test=self.test.shape[0],
        )

    def grid(self, block: Block) -> TileGrid:
        """Return the tile grid of a whole block."""
        array = self.train if block == "train" else self.test
        rows, cols = array.shape
        return TileGrid(rows, cols, self.edge, symmetric=block == "train")

    def matrix(self, kernel: Kernel, block: Block, rows: int | None = None, cols: int | None = None) -> GivenTiles:
        """Return one block, cut to its leading `rows` and `cols`."""
        if kernel != "gram":
            raise ConfigError(
                f"the given matrix {self.where} is called gram, and there is no {kernel}: set predict.kernels=[gram]"
            )
        whole = self.grid(block)
        grid = whole if rows is None else whole.leading(rows, cols)
        return GivenTiles(self.train if block == "train" else self.test, grid)

    def read_diagonal(
        self, block: Block, kernel: Kernel, rows: int | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """Return `k(x, x)` of the first `rows` points, float64; estimated for test points without a given diagonal."""
        del kernel, plain
        return self.diagonals[block][:rows]


def open_gram(train: str, test: str, test_diagonal: str | None, edge: int | None = None) -> GivenGram:
    """Open the files of a kernel and read only their headers.

    Raises:
        DataError: if the files are not arrays of floats, or their shapes do not fit.
    """
    first, second = open_given(train, "kernel.train", 2), open_given(test, "kernel.test", 2)
    diagonal = None if test_diagonal is None else open_given(test_diagonal, "kernel.test_diagonal", 1)
    return given_gram(first, second, diagonal, edge)


def given_gram(first: GivenArray, second: GivenArray, diagonal: GivenArray | None, edge: int | None) -> GivenGram:
    """Combine both blocks and the diagonal of the test points.

    Raises:
        DataError: if their shapes do not fit.
    """
    n = first.shape[0]
    if first.shape != (n, n):
        raise DataError(
            f"kernel.train={first.path} has shape {first.shape}: the kernel among training points must be square"
        )
    if second.shape[1] != n:
        turned = ": its rows must be test points: transpose it" if second.shape[0] == n else ""
        raise DataError(f"kernel.test={second.path} has shape {second.shape}, but must have (test points, {n}){turned}")
    if diagonal is not None and diagonal.shape != second.shape[:1]:
        raise DataError(
            f"kernel.test_diagonal={diagonal.path} has {diagonal.shape[0]} values for {second.shape[0]} test points"
        )
    return GivenGram(first, second, diagonal, edge or _edge(first))


def check_gram(gram: GivenGram) -> GivenGram:
    """Read all used values once, check that they form a kernel, and hash them.

    Every value must be finite and the diagonal positive. Symmetry and `|k(x, y)| <= sqrt(k(x, x) k(y, y))` are checked
    on a sample of blocks. The inequality is checked on the whole test-train matrix if the test points' diagonal is
    given.

    Raises:
        DataError: if an entry is invalid. The text names the entry.
    """
    diagonal = gram.train.diagonal()
    bad = np.flatnonzero(~(np.isfinite(diagonal) & (diagonal > 0)))
    if len(bad):
        raise DataError(
            f"entry ({bad[0]}, {bad[0]}) of {gram.train.path} is {diagonal[bad[0]]:g}, but the diagonal of a kernel "
            "must be positive"
        )
    _check_sample(gram.train, diagonal)
    seen = hashlib.sha256(f"{gram.train.dtype} {gram.train.shape} {gram.test.dtype} {gram.test.shape}".encode())
    for part, *_ in _parts(gram.train, symmetric=True):
        seen.update(part.data)
    test = _checked_test(gram, diagonal, seen)
    return replace(gram, content=seen.hexdigest(), diagonals={"train": diagonal, "test": test})


def with_test(gram: GivenGram, test: GivenArray, test_diagonal: GivenArray | None) -> GivenGram:
    """Replace the test points of a checked kernel. The new points are checked as in `check_gram`.

    Args:
        gram: a checked kernel.
        test: `(p, n)` kernel of new and training points, with the new points as rows.
        test_diagonal: `(p,)` diagonal of the new points; None if it is not known.

    Raises:
        DataError: if the shapes do not fit, or an entry is invalid. The text names the entry.
    """
    n = gram.train.shape[0]
    if test.shape[1] != n:
        turned = ": new points are its rows: transpose it" if test.shape[0] == n else ""
        raise DataError(
            f"{test.path} has shape {test.shape}: give the kernel between new points and all {n} training points, (new points, {n}){turned}"
        )
    if test_diagonal is not None and test_diagonal.shape != test.shape[:1]:
        raise DataError(f"{test_diagonal.path} has {test_diagonal.shape[0]} values for {test.shape[0]} new points")
    seen = hashlib.sha256(f"{gram.content} {test.dtype} {test.shape}".encode())
    made = replace(gram, test=test, test_diagonal=test_diagonal)
    found = _checked_test(made, gram.diagonals["train"], seen)
    return replace(made, content=seen.hexdigest(), diagonals={"train": gram.diagonals["train"], "test": found})


def _checked_test(gram: GivenGram, diagonal: np.ndarray, seen: Any) -> np.ndarray:
    """Check all values of the test points and add them to the hash `seen`; returns `k(x, x)`, given or estimated."""
    least = np.zeros(gram.test.shape[0])
    for part, rows, cols in _parts(gram.test, symmetric=False):
        seen.update(part.data)
        least[rows] = np.maximum(least[rows], (part.astype(np.float64) ** 2 / diagonal[cols]).max(axis=1))
    if gram.test_diagonal is None:
        return estimated_diagonal(diagonal, least)
    test = gram.test_diagonal.read(slice(None)).astype(np.float64)
    seen.update(test.data)
    wrong = np.flatnonzero(~(np.isfinite(test) & (test >= least * (1 - _ROUNDING))))
    if len(wrong):
        i = wrong[0]
        raise DataError(
            f"{gram.test_diagonal.path} holds {test[i]:g} at {i}, but row {i} of {gram.test.path} requires at least "
            f"{least[i]:g} (k(x, y)^2 / k(y, y)): give the diagonal of the same kernel"
        )
    return test


def changed_content(gram: GivenGram) -> list[str]:
    """Read all values again, and return a list with one message if they have changed."""
    try:
        same = check_gram(replace(gram, content="", diagonals={})).content == gram.content
    except DataError as error:
        return [str(error)]
    return [] if same else [f"{gram.where} or {gram.test.path} has changed since this run checked it"]


def estimated_diagonal(train: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Estimate `k(x, x)` of test points whose diagonal is not given.

    The estimate is used only in error bounds, which are then called estimates. It is the largest value of the training
    points, or the least value that satisfies `k(x, y)^2 <= k(x, x) k(y, y)`, if that is larger. If test and training
    points come from one distribution, the probability that one of p test points exceeds the largest of n training
    points is at most p / (n + p).

    Args:
        train: (n,) diagonal of the training points.
        least: (p,) largest `k(x, y)^2 / k(y, y)` of every test point.

    Returns:
        (p,) float64.
    """
    return np.maximum(train.max(), least)


def _edge(array: GivenArray) -> int:
    """Return the rows of a tile: whole chunks, at most `_LARGEST_EDGE`, and three rows of tiles if possible."""
    n = array.shape[0]
    unit = min(max(array.chunks, default=1), n) if array.chunks else 1
    edge = max(1, _LARGEST_EDGE // unit) * unit if unit <= _LARGEST_EDGE else _LARGEST_EDGE
    while edge >= 128 and edge // 2 % unit == 0 and -(-n // edge) < 3:
        edge //= 2
    return edge


def _parts(array: GivenArray, *, symmetric: bool) -> Iterator[tuple[np.ndarray, slice, slice]]:
    """Yield finite blocks of fixed size; for a symmetric matrix the lower triangle, with zeros above its diagonal."""
    height, width = array.shape
    for t in TileGrid(height, width, _HASH_EDGE, symmetric):
        rows, cols = slice(t.row_start, t.row_stop), slice(t.col_start, t.col_stop)
        part = array.read(rows, cols)
        if symmetric and t.is_diagonal:
            part = np.tril(part)
        finite = np.isfinite(part)
        if not finite.all():
            i, j = np.argwhere(~finite)[0]
            raise DataError(f"entry ({i + rows.start}, {j + cols.start}) of {array.path} is {part[i, j]}: clean it")
        yield part, rows, cols


def _check_sample(array: GivenArray, diagonal: np.ndarray) -> None:
    """Refuse a matrix that is not symmetric, or not positive semi-definite for two of its points."""
    n = array.shape[0]
    blocks = -(-n // _BLOCK_ROWS)
    if n <= _SMALL:
        pairs = [(a, b) for a in range(blocks) for b in range(a + 1)]
    else:
        pairs = np.random.default_rng(0).integers(blocks, size=(_SAMPLED_BLOCKS, 2)).tolist()
    for a, b in pairs:
        rows, cols = (slice(k * _BLOCK_ROWS, min((k + 1) * _BLOCK_ROWS, n)) for k in (max(a, b), min(a, b)))
        lower, upper = array.read(rows, cols).astype(np.float64), array.read(cols, rows).astype(np.float64).T
        if a == b:
            lower, upper = np.tril(lower), np.tril(upper)
        scale = np.sqrt(np.outer(diagonal[rows], diagonal[cols]))
        # NaN above the diagonal means that an entry is not given. It compares false.
        with np.errstate(invalid="ignore"):
            far = np.abs(lower - upper) > _ROUNDING * scale
        if far.any():
            i, j = np.argwhere(far)[0]
            raise DataError(
                f"{array.path} is not symmetric: entry ({i + rows.start}, {j + cols.start}) is {lower[i, j]:g}, entry "
                f"({j + cols.start}, {i + rows.start}) is {upper[i, j]:g}. If the lower triangle is right, store NaN "
                "above it"
            )
        above = np.abs(lower) > (1 + _ROUNDING) * scale
        if above.any():
            i, j = np.argwhere(above)[0]
            raise DataError(
                f"entry ({i + rows.start}, {j + cols.start}) of {array.path} is {lower[i, j]:g}, above "
                f"{math.sqrt(diagonal[i + rows.start] * diagonal[j + cols.start]):g}, the square root of the product "
                "of its diagonal entries, so this is not a positive semi-definite kernel"
            )
