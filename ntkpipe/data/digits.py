"""Handwritten digits, 8 x 8, bundled with scikit-learn: the embedded data set."""

from __future__ import annotations

from typing import Any

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import RawImages

# The last images come from other writers than most of the first: an honest test set.
_TEST_IMAGES = 297


def load(config: DataConfig) -> RawImages:
    """All 1,797 digits, gray levels 0..16 scaled to 0..1 float64: the first 1,500 to train, the last 297 to test."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = digits.images[..., None] / 16.0, digits.target
    split = x.shape[0] - _TEST_IMAGES
    return RawImages(x[:split], y[:split], x[split:], y[split:], tuple(str(k) for k in range(10)))
