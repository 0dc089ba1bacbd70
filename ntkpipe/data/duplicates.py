"""Exactly equal images: they make a kernel matrix singular."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def find_duplicates(x: np.ndarray | Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Rows that equal an earlier row, value for value.

    Args:
        x: `(n, ...)` prepared images, or one after the other.

    Returns:
        Pairs `(i, j)`, `i < j`, for every row `j` that equals some earlier row;
        `i` is the first of its kind. Sorted by `j`.
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
