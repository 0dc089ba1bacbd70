"""Initial outputs of training: zero (the mean over networks), the outputs of the run's finite network, or given ones.

Training from outputs `f_0` equals training from zero with the targets minus `f_0`:
`f_t(x) = f_0(x) + T(x, X) F_t (y - f_0(X))` (Lee et al. 2019, arXiv:1902.06720).
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntkpipe.data.stored_labels import StoredData
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.sources.opened import OpenGram
from ntkpipe.tiles.layout import Block


@dataclass(frozen=True)
class InitialOutputs:
    """Initial outputs at the points in use.

    Args:
        train: outputs at the training points, `(n, c)` float64.
        test: outputs at the test points in the order of the tiles, `(p, c)` float64.
        key: digest of the training part, which identifies stored solves.
    """

    train: np.ndarray
    test: np.ndarray
    key: str


def initial_outputs(wanted: str, data: StoredData, opened: OpenGram) -> InitialOutputs | None:
    """Return the initial outputs, or None if they are zero.

    Args:
        wanted: value of `predict.initial`.
        data: data of the run.
        opened: kernels of the run.

    Raises:
        ConfigError: for `network` if the kernel is not that of one finite network, or if targets are standardised.
        DataError: if the file cannot be read, or its outputs do not fit these points.
    """
    if wanted == "zero":
        return None
    labels = data.labels()
    if labels.scale is not None:
        raise ConfigError(
            "predict.initial adds outputs in the units of the targets, but these are standardised: set "
            "data.targets=none"
        )
    kernels, c = opened.blocks, labels.y_train.shape[1]
    sizes: dict[Block, int] = {"train": kernels.training_points, "test": kernels.test_points}
    index = {"train": labels.train_index, "test": labels.test_index}
    found: dict[Block, np.ndarray] = {}
    for block, rows in sizes.items():
        own = wanted == "network"
        part = opened.source.network_outputs(block, rows) if own else _read(Path(wanted), block, index[block][:rows])
        if part.shape != (rows, c) or not np.isfinite(part).all():
            raise DataError(
                f"predict.initial={wanted}: outputs of {block} points have shape {part.shape}, or are not finite. The "
                f"targets have shape {(rows, c)}: give the network as many outputs"
            )
        found[block] = part.astype(np.float64)
    key = hashlib.sha256(np.ascontiguousarray(found["train"]).tobytes()).hexdigest()[:16]
    return InitialOutputs(found["train"], found["test"], key)


def _read(path: Path, block: Block, index: np.ndarray) -> np.ndarray:
    """Return the rows at `index` of an array in the file, which is in the order of the raw data."""
    try:
        with np.load(path.expanduser(), allow_pickle=False) as archive:
            outputs = archive[block]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"predict.initial={path} must be an .npz with the arrays train (n, c) and test (p, c), in the order of the data ({error})"
        ) from error
    if outputs.ndim != 2 or outputs.shape[0] <= index.max(initial=-1):
        raise DataError(
            f"predict.initial={path}: {block} has shape {outputs.shape}, but the data has at least "
            f"{index.max(initial=-1) + 1} rows"
        )
    return outputs[index]
