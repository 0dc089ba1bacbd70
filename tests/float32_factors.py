"""A float32 factor of an operator that is small enough to be cut into tiles in memory."""

from __future__ import annotations

import itertools

import numpy as np

from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.preconditioner import Float32Factor, float32_factor
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

_names = itertools.count()


def make(operator: Operator, ridge: float, *, edge: int = 48, memory_bytes: int = 1 << 30) -> Float32Factor:
    array = operator.rows(np.arange(operator.n))
    return float32_factor(
        InMemoryTiles(array, TileGrid(operator.n, operator.n, edge, symmetric=True)),
        name="matrix",
        ridge=ridge,
        store=MemoryStore(f"float32-factor-{next(_names)}"),
        prefix="cholesky/k",
        executor=SerialExecutor(),
        memory_bytes=memory_bytes,
    )
