"""Evaluates tiles in smaller pieces if they do not fit into a device's memory; the result is the same.

The process remembers the size that fits, so that only its first tile has to find it.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
from jax.errors import JaxRuntimeError

from ntkpipe.errors import ResourceError
from ntkpipe.kernels.accelerator import is_out_of_memory
from ntkpipe.kernels.architecture import Prepared
from ntkpipe.kernels.state import Kernels

_log = logging.getLogger(__name__)

# Number of columns of the second attempt for a spatial network, if the kernel chose the number of the first.
_FIRST_PAIRS = 32
# Flat networks need only a few arrays of a piece's size, so a device that cannot hold this edge has no free memory.
_LEAST_EDGE = 64

_limits: dict[Hashable, int] = {}


class Evaluate(Protocol):
    """`Architecture.tiles`."""

    def __call__(
        self,
        rows: Prepared,
        columns: Prepared | None,
        *,
        out_dtype: Any = None,
        pad_to: int | None = None,
        pairs: int | None = None,
    ) -> list[Kernels]:
        """Both kernels of every pair, for every network."""
        ...


def retry_smaller_on_oom(
    evaluate: Evaluate, of: Hashable, rows: Prepared, columns: Prepared | None, **options: Any
) -> list[Kernels]:
    """`evaluate(rows, columns, **options)`, in pieces that fit into the device's memory.

    If memory is short, spatial networks take fewer columns through their layers at once, and flat networks evaluate the
    tile in quarters.

    Args:
        evaluate: the method `tiles` of an architecture.
        of: identifies the architecture; the size that fits is remembered for it.
        rows: row images.
        columns: column images; None pairs the rows with themselves.
        options: keyword arguments of `evaluate`.

    Raises:
        ResourceError: if not even small pieces fit.
    """
    flat = rows.images.ndim == 2
    key = (of, rows.images.shape[1:], str(rows.images.dtype))
    if flat:
        return _quartered(evaluate, key, rows, columns, options)
    while True:
        pairs = min(filter(None, (options["pairs"], _limits.get(key))), default=None)
        try:
            return evaluate(rows, columns, **{**options, "pairs": pairs})
        except JaxRuntimeError as error:
            _limits[key] = _smaller(error, _FIRST_PAIRS if pairs is None else pairs // 2, 1, "columns at a time")


def _quartered(
    evaluate: Evaluate, key: Hashable, rows: Prepared, columns: Prepared | None, options: dict[str, Any]
) -> list[Kernels]:
    """The tile of a flat network, split into quarters until they fit."""
    size = max(len(rows.images), 0 if columns is None else len(columns.images))
    limit = _limits.get(key)
    if limit is None or size <= limit:
        try:
            pad = options["pad_to"]
            return evaluate(
                rows, columns, **{**options, "pad_to": pad if limit is None or pad is None else min(pad, limit)}
            )
        except JaxRuntimeError as error:
            _limits[key] = _smaller(error, -(-size // 2), _LEAST_EDGE, "rows and columns at a time")
            return _quartered(evaluate, key, rows, columns, options)

    def again(a: Prepared, b: Prepared | None) -> list[Kernels]:
        return _quartered(evaluate, key, a, b, options)

    tops = _pieces(rows, limit)
    if columns is None:
        # A block paired with itself is not split: it has exact diagonals and equals its transpose.
        grid: list[list[list[Kernels]]] = [
            [again(a, None if i == j else b) if j <= i else [] for j, b in enumerate(tops)] for i, a in enumerate(tops)
        ]
        for i in range(len(tops)):
            for j in range(i + 1, len(tops)):
                grid[i][j] = [Kernels(*(np.asarray(kernel).T for kernel in made)) for made in grid[j][i]]
    else:
        grid = [[again(a, b) for b in _pieces(columns, limit)] for a in tops]
    return [
        Kernels(*(np.block([[np.asarray(part[k][name]) for part in line] for line in grid]) for name in range(2)))
        for k in range(len(grid[0][0]))
    ]


def _pieces(block: Prepared, limit: int) -> list[Prepared]:
    """Pieces of at most `limit` images, which a flat network uses without preparation."""
    return [Prepared(block.images[start : start + limit], ()) for start in range(0, len(block.images), limit)]


def _smaller(error: Exception, size: int, least: int, what: str) -> int:
    """The next size to try.

    Raises:
        JaxRuntimeError: the given error, if it is not about memory.
        ResourceError: if the size is below the smallest one.
    """
    if not is_out_of_memory(error):
        raise error
    if size < least:
        raise ResourceError(
            f"a tile does not fit into the device's memory, even in the smallest pieces ({str(error).splitlines()[0]}): "
            "raise cluster.gpus_per_task, or set a smaller grid.edge"
        ) from error
    _log.warning("out of memory on the device: continuing with %d %s", size, what)
    return size
