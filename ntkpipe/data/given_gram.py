"""Kernel matrices that a user computed, in the place of a Gram store: read as tiles where they lie, never copied.

The lower triangle of the train-train matrix is the matrix: what lies above the diagonal is compared with it on a sample, or is
NaN (as in the arrays of a Gram store, which may be given here too).
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

# Rows and columns that are hashed together: of the identity, hence fixed.
_HASH_EDGE = 1024
_LARGEST_EDGE = 2048
# Of the symmetry and of |k(x, y)| <= sqrt(k(x, x) k(y, y)): so many pairs of blocks are looked at, or all of a small matrix.
_SAMPLED_BLOCKS, _BLOCK_ROWS, _SMALL = 24, 128, 1024
# In units of sqrt(k(x, x) k(y, y)): what float32 arithmetic in two orders may make of one entry.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class GivenTiles:
    """`TileMatrix` over an array that somebody else made.

    Args:
        array: `(rows, cols)` or larger.
        grid: tiles that are read of it.
    """

    array: GivenArray
    grid: TileGrid

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Of the array."""
        return np.dtype(self.array.dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)`, see `TileMatrix.read`."""
        t = self.grid.tile(i, j)
        return self.array.read(slice(t.row_start, t.row_stop), slice(t.col_start, t.col_stop))

    def leading(self, rows: int, cols: int | None = None) -> GivenTiles:
        """The leading block `[:rows, :cols]`."""
        return replace(self, grid=self.grid.leading(rows, cols))


@dataclass(frozen=True)
class GivenGram:
    """Both blocks of a given kernel and its diagonals, seen as a run sees a Gram store. Made by `open_gram`, `check_gram`.

    Args:
        train: `(n, n)`.
        test: `(p, n)`, test points as rows.
        test_diagonal: `(p,)`; None if it is not known.
        edge: rows of a tile.
        content: SHA-256 of all values that are used; empty until they were checked.
        diagonals: `train` `(n,)` and `test` `(p,)`, float64; empty until they were checked.
    """

    train: GivenArray
    test: GivenArray
    test_diagonal: GivenArray | None
    edge: int
    content: str = ""
    diagonals: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def where(self) -> str:
        """For messages."""
        return self.train.path

    @property
    def dtype(self) -> str:
        """Of the tiles: the larger of both matrices'."""
        return max(self.train.dtype, self.test.dtype)

    @property
    def identity(self) -> GramIdentity:
        """As that of a Gram store: names what was solved by content, wherever the file lies."""
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
        """Tiles of a whole block."""
        array = self.train if block == "train" else self.test
        rows, cols = array.shape
        return TileGrid(rows, cols, self.edge, symmetric=block == "train")

    def matrix(self, kernel: Kernel, block: Block, rows: int | None = None, cols: int | None = None) -> GivenTiles:
        """One block, cut to its leading `rows` and `cols`."""
        if kernel != "gram":
            raise ConfigError(f"the matrix {self.where} was given: it is called gram, and there is no {kernel}")
        whole = self.grid(block)
        grid = whole if rows is None else whole.leading(rows, cols)
        return GivenTiles(self.train if block == "train" else self.test, grid)

    def read_diagonal(
        self, block: Block, kernel: Kernel, rows: int | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """`k(x, x)` of the first `rows` points, float64; of test points without a diagonal, `estimated_diagonal`."""
        del kernel, plain
        return self.diagonals[block][:rows]


def open_gram(train: str, test: str, test_diagonal: str | None, edge: int | None = None) -> GivenGram:
    """Look at the files; reads their headers alone.

    Raises:
        DataError: if they are no arrays of floats, or their shapes do not fit.
    """
    first, second = open_given(train, "kernel.train", 2), open_given(test, "kernel.test", 2)
    diagonal = None if test_diagonal is None else open_given(test_diagonal, "kernel.test_diagonal", 1)
    return given_gram(first, second, diagonal, edge)


def given_gram(first: GivenArray, second: GivenArray, diagonal: GivenArray | None, edge: int | None) -> GivenGram:
    """Both blocks and the diagonal of the test points, if their shapes fit.

    Raises:
        DataError: if not.
    """
    n = first.shape[0]
    if first.shape != (n, n):
        raise DataError(
            f"kernel.train={first.path} has shape {first.shape}: the kernel among training points is square"
        )
    if second.shape[1] != n:
        turned = ": its rows must be test points: transpose it" if second.shape[0] == n else ""
        raise DataError(f"kernel.test={second.path} has shape {second.shape}, wanted (test points, {n}){turned}")
    if diagonal is not None and diagonal.shape != second.shape[:1]:
        raise DataError(
            f"kernel.test_diagonal={diagonal.path} has {diagonal.shape[0]} values for {second.shape[0]} test points"
        )
    return GivenGram(first, second, diagonal, edge or _edge(first))


def check_gram(gram: GivenGram) -> GivenGram:
    """Read everything that will be used once: refuse what is no kernel, hash the rest.

    Every value must be finite and the diagonal positive; symmetry and `|k(x, y)| <= sqrt(k(x, x) k(y, y))` are checked on a
    sample of blocks, the latter on the whole of the test-train matrix where its own diagonal is given.

    Raises:
        DataError: naming the entry.
    """
    diagonal = gram.train.diagonal()
    bad = np.flatnonzero(~(np.isfinite(diagonal) & (diagonal > 0)))
    if len(bad):
        raise DataError(
            f"entry ({bad[0]}, {bad[0]}) of {gram.train.path} is {diagonal[bad[0]]:g}: the diagonal of a kernel is positive"
        )
    _check_sample(gram.train, diagonal)
    seen = hashlib.sha256(f"{gram.train.dtype} {gram.train.shape} {gram.test.dtype} {gram.test.shape}".encode())
    for part, *_ in _parts(gram.train, symmetric=True):
        seen.update(part.data)
    test = _checked_test(gram, diagonal, seen)
    return replace(gram, content=seen.hexdigest(), diagonals={"train": diagonal, "test": test})


def with_test(gram: GivenGram, test: GivenArray, test_diagonal: GivenArray | None) -> GivenGram:
    """A checked kernel with other test points, which are checked as `check_gram` does.

    Args:
        gram: checked.
        test: `(p, n)`, the new points as rows.
        test_diagonal: `(p,)`; None if it is not known.

    Raises:
        DataError: if their shapes do not fit, or naming the entry that is no kernel's.
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
    """`k(x, x)` of the test points, given or estimated, once all their values are read, checked and hashed into `seen`."""
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
            f"{gram.test_diagonal.path} holds {test[i]:g} at {i}, and row {i} of {gram.test.path} asks for at least "
            f"{least[i]:g} (k(x, y)^2 / k(y, y)): it is not the diagonal of the same kernel"
        )
    return test


def changed_content(gram: GivenGram) -> list[str]:
    """Read all values again; a line if they are not those of before."""
    try:
        same = check_gram(replace(gram, content="", diagonals={})).content == gram.content
    except DataError as error:
        return [str(error)]
    return [] if same else [f"{gram.where} or {gram.test.path} holds other values than when this run looked at them"]


def estimated_diagonal(train: np.ndarray, least: np.ndarray) -> np.ndarray:
    """What stands for `k(x, x)` of test points where it is not given: for error bounds alone, which are called estimates.

    The largest of the training points, or what `k(x, y)^2 <= k(x, x) k(y, y)` asks for, if that is more. If test and training
    points come from one distribution, one of p test points exceeds the largest of n training points with a probability of at
    most p / (n + p).

    Args:
        train: (n,) diagonal of the training points.
        least: (p,) largest `k(x, y)^2 / k(y, y)` of every test point.
    """
    return np.maximum(train.max(), least)


def _edge(array: GivenArray) -> int:
    """Rows of a tile: whole chunks, up to `_LARGEST_EDGE` rows, and three rows of tiles where there are so many points."""
    n = array.shape[0]
    unit = min(max(array.chunks, default=1), n) if array.chunks else 1
    edge = max(1, _LARGEST_EDGE // unit) * unit if unit <= _LARGEST_EDGE else _LARGEST_EDGE
    while edge >= 128 and edge // 2 % unit == 0 and -(-n // edge) < 3:
        edge //= 2
    return edge


def _parts(array: GivenArray, *, symmetric: bool) -> Iterator[tuple[np.ndarray, slice, slice]]:
    """Blocks of fixed size, of a symmetric matrix of the lower triangle; what is above its diagonal is zero."""
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
        with np.errstate(invalid="ignore"):  # NaN above the diagonal compares false: not given
            far = np.abs(lower - upper) > _ROUNDING * scale
        if far.any():
            i, j = np.argwhere(far)[0]
            raise DataError(
                f"{array.path} is not symmetric: entry ({i + rows.start}, {j + cols.start}) is {lower[i, j]:g}, entry "
                f"({j + cols.start}, {i + rows.start}) is {upper[i, j]:g}. Store the lower triangle alone (NaN above it) if it "
                "is the right one"
            )
        above = np.abs(lower) > (1 + _ROUNDING) * scale
        if above.any():
            i, j = np.argwhere(above)[0]
            raise DataError(
                f"entry ({i + rows.start}, {j + cols.start}) of {array.path} is {lower[i, j]:g}, above "
                f"{math.sqrt(diagonal[i + rows.start] * diagonal[j + cols.start]):g}, the root of both diagonal entries: no "
                "kernel is like that"
            )
