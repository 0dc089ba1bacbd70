"""Draws seeded random classes of any size and shape, for trials."""

from __future__ import annotations

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import RawImages

_SEED = 0


def load(config: DataConfig) -> RawImages:
    """Draw images: a standard normal prototype per class plus `noise` times standard normal noise.

    Images are `(n, *config.shape)` float32. The configuration gives `n_train`, `n_test`, `classes` and `noise`. Class
    counts differ by at most one. The same settings give the same images. Training and test noise are independent.
    """
    prototypes, train, test = (np.random.default_rng(s) for s in np.random.SeedSequence(_SEED).spawn(3))
    centres = prototypes.standard_normal((config.classes, *config.shape), dtype=np.float32)

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n, dtype=np.int64) % config.classes
        x = rng.standard_normal((n, *config.shape), dtype=np.float32)
        x *= np.float32(config.noise)
        for k in range(config.classes):
            x[k :: config.classes] += centres[k]
        return x, y

    x_train, y_train = draw(config.n_train, train)
    x_test, y_test = draw(config.n_test, test)
    return RawImages(x_train, y_train, x_test, y_test, tuple(f"class_{k}" for k in range(config.classes)))
