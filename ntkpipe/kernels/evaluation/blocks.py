"""The number of covariances that are processed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ntkpipe.kernels.evaluation.resolve import Step

# XLA's default is vectors of 256 bits: 15% slower where there are 512, and no different where there are not.
COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}

# Bytes of one kernel's block of covariances. Measured on cores with 2 MiB of L2 cache, and on an H200, where smaller
# ones wait for
# the host between loops: see docs/performance.md.
BLOCK_BYTES = {"cpu": 128 << 10, "gpu": 256 << 20}


_LANES = 64


@dataclass(frozen=True)
class Batch:
    """The sizes of batches and blocks.

    Args:
        pairs: number of columns of a tile that are evaluated together.
        limit: largest number of covariances in a block. If there are more, the classes of rows are processed one by
            one.
        on_cpu: force intermediate results into memory (see `fusion`).
    """

    pairs: int
    limit: int
    on_cpu: bool


def choose_batch(
    steps: Sequence[Step], itemsize: int, pairs: int | None = None, *, on_cpu: bool = True, columns: int | None = None
) -> Batch:
    """Choose as many pairs as fill a block with all their covariances, or with one class of rows.

    Args:
        steps: steps of the network.
        itemsize: bytes per covariance.
        pairs: number of columns that are evaluated together; None chooses it.
        on_cpu: see `Batch`.
        columns: number of columns of the tile, which limits batches on accelerators only.
    """
    limit = BLOCK_BYTES["cpu" if on_cpu else "gpu"] // itemsize
    entries = steps[0].incoming.entries
    together = entries if entries <= limit else entries // len(steps[0].incoming.support[0])
    if pairs is None:
        pairs = 1 << (max(1, limit // together).bit_length() - 1)
        # Loops run along classes of columns and pairs: 10% faster for equal pixels alone if they are not so short.
        if together == entries and len(steps[0].incoming.support[1]) * pairs < _LANES:
            pairs *= 2
        if columns is not None and not on_cpu:
            pairs = min(pairs, 1 << (columns - 1).bit_length())
    return Batch(pairs, max(limit, pairs * together), on_cpu)
