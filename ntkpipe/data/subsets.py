"""The order in which images are stored. Every subset is a prefix of it, hence subsets are nested."""

from __future__ import annotations

import numpy as np

from ntkpipe.errors import ConfigError

# Train and test draw from separate streams, so that one's size never changes the other's order; so does the choice of test rows.
_STREAMS = {"train": 0, "test": 1, "split": 2}


def _keys(n: int, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    # Raw bits of PCG64 rather than Generator.permutation: NumPy promises that bit generators never change their
    # streams (NEP 19), while a Generator's methods may, and the order is part of a Gram store's identity.
    bits = np.random.PCG64(np.random.SeedSequence([seed, _STREAMS[part]]))
    return bits.random_raw(n), bits.random_raw(n)


def stored_order(n: int, *, seed: int, part: str, labels: np.ndarray | None = None) -> np.ndarray:
    """A seeded permutation of `n` rows, the same on every machine.

    Args:
        n: number of rows.
        seed: non-negative.
        part: `train`, `test` or `split`; each has an independent order.
        labels: `(n,)` integers. When given, classes take turns, so that the class counts of every prefix differ by at
            most one as long as no class is used up.

    Returns:
        `(n,)` int64, a permutation of `0..n-1`.

    Raises:
        ConfigError: if `seed` is negative.
    """
    if seed < 0:
        raise ConfigError(f"data.subset_seed={seed} must be at least 0")
    keys, turn_keys = _keys(n, seed, part)
    if labels is None:
        return np.argsort(keys, kind="stable").astype(np.int64)
    by_class = np.lexsort((keys, labels))
    _, counts = np.unique(labels, return_counts=True)
    turn = np.empty(n, dtype=np.int64)
    turn[by_class] = np.concatenate([np.arange(count) for count in counts])
    # Within a turn the classes come in random order: a prefix that ends inside a turn favours none. By keys of their
    # own: the first keys grow with the turn in every class, so a class that is ahead would stay first for long.
    return np.lexsort((turn_keys, turn)).astype(np.int64)
