"""Finds exactly equal images, which make a kernel matrix singular."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def find_duplicates(x: np.ndarray | Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Find rows that equal an earlier row, value for value.

    Args:
        x: `(n, ...)` prepared images, or an iterable of images.

    Returns:
        Pairs `(i, j)`, `i < j`, one for every row `j` that equals an earlier row. `i` is the first such row. The pairs
        are sorted by `j`.
    """
    first: dict[bytes, int] = {}
    pairs = []
    for j, row in enumerate(x):
        # Adding 0 turns -0 into +0: they are equal values with different bytes.
        digest = hashlib.blake2b(np.ascontiguousarray(row + 0).data, digest_size=20).digest()
        i = first.setdefault(digest, j)
        if i != j:
            pairs.append((i, j))
    return pairs
