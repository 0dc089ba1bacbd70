"""Factors of small arrays, cut into tiles in memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ntkpipe.linalg.factor.factorise import FactorRun, factorise
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
_names = itertools.count()


def tiled(a: np.ndarray, edge: int = 16) -> InMemoryTiles:
    """The lower triangle of a square array."""
    return InMemoryTiles(a, TileGrid(len(a), len(a), edge, symmetric=True))


def where(*, memory: int = 1 << 30, workers: int = 1, **settings: Any) -> dict[str, Any]:
    """What `factorise` and `solve_direct` are told besides: a store of its own in memory, and this process."""
    found = {
        "name": "matrix",
        "store": MemoryStore(f"factor-{next(_names)}"),
        "prefix": "cholesky/k",
        "executor": SerialExecutor(workers),
        "memory_bytes": memory,
    }
    return found | settings


def factored(a: np.ndarray, *, stored: int = 16, **settings: Any) -> FactorRun:
    """`factorise` of an array in tiles of the edge `stored`; settings as for `where`."""
    return factorise(tiled(a, stored), **where(**settings))
