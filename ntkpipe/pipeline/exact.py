"""A few rows of the kernel recomputed in float64 from the images: what stored tiles and products are measured against."""

from __future__ import annotations

import numpy as np

from ntkpipe.gram.worker import compute_diagonal, compute_tile
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.tiles.store import GramStore

_COLUMNS = 2048  # images per evaluation: 64 x 2048 float64 pairs and their images stay below 100 MB


def exact_rows(inputs: Inputs, kernel: str, block: str, indices: np.ndarray) -> np.ndarray:
    """Rows of a kernel block in float64.

    Args:
        inputs: of the run.
        kernel: `nngp` or `ntk`.
        block: `train` or `test`, of the rows; the columns are the training images in use.
        indices: (k,) stored row numbers.

    Returns:
        (k, n_train) float64; on the train block the diagonal is exact.
    """
    images, symmetry = inputs.images, inputs.gram.identity.symmetry
    rows = np.concatenate([images.read(block, int(i), int(i) + 1) for i in indices]).astype(np.float64)
    out = np.empty((len(indices), inputs.n_train))
    for start in range(0, inputs.n_train, _COLUMNS):
        stop = min(start + _COLUMNS, inputs.n_train)
        cols = images.read("train", start, stop)
        out[:, start:stop] = compute_tile(
            inputs.spec, rows, cols, diagonal=False, dtype="float64", out_dtype="float64", symmetry=symmetry
        )[kernel]
    if block == "train":
        own = compute_diagonal(inputs.spec, rows, dtype="float64", symmetry=symmetry)
        out[np.arange(len(indices)), indices] = own[kernel]
    return out


def test_test(inputs: Inputs, gram: GramStore, kernel: str) -> np.ndarray:
    """The kernel among the test images in use, (p, p) float64, which no tile of `gram` stores: only covariances need it."""
    p = inputs.n_test
    out = np.empty((p, p))
    for i in range(0, p, _COLUMNS):
        rows = inputs.images.read("test", i, min(i + _COLUMNS, p))
        for j in range(0, i + 1, _COLUMNS):
            cols = inputs.images.read("test", j, min(j + _COLUMNS, p))
            tile = compute_tile(
                inputs.spec,
                rows,
                None if i == j else cols,
                diagonal=i == j,
                dtype=inputs.config.kernel.dtype,
                out_dtype="float64",
                symmetry=gram.identity.symmetry,
            )[kernel]
            out[i : i + len(rows), j : j + len(cols)] = tile
            out[j : j + len(cols), i : i + len(rows)] = tile.T
    return out
