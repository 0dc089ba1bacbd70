"""The order in which images are stored. Every subset is a prefix of it, so subsets are nested."""

from __future__ import annotations

import numpy as np

from ntkpipe.errors import ConfigError

# Train, test and the choice of test rows draw from separate streams, so that one size never changes another order.
_STREAMS = {"train": 0, "test": 1, "split": 2}


def _keys(n: int, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    # The keys are raw bits of PCG64 instead of Generator.permutation. NumPy guarantees the streams of bit generators
    # (NEP 19) but not a Generator's methods, and the order is part of a Gram store's identity.
    bits = np.random.PCG64(np.random.SeedSequence([seed, _STREAMS[part]]))
    return bits.random_raw(n), bits.random_raw(n)


def stored_order(n: int, *, seed: int, part: str, labels: np.ndarray | None = None) -> np.ndarray:
    """Return a seeded permutation of `n` rows, which is the same on every machine.

    Args:
        n: number of rows.
        seed: non-negative seed.
        part: `train`, `test` or `split`; each has an independent order.
        labels: `(n,)` integers. If given, classes take turns, so that the class counts of every prefix differ by at
            most one until a class is used up.

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
    # Within a turn the classes are in random order, so that a prefix that ends inside a turn favours no class. The
    # order has its own keys: the first keys grow with the turn in every class, so a leading class would stay first for
    # long.
    return np.lexsort((turn_keys, turn)).astype(np.int64)
