"""Handwritten digits of 8 x 8 pixels, the data set that the package includes.

The images are the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, under CC BY 4.0. scikit-learn's `load_digits` has the same
images in the same order.
"""

from __future__ import annotations

import io
from importlib import resources

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import RawImages

# The last images come mostly from other writers than the first, which makes the test set fair.
_TEST_IMAGES = 297


def load(config: DataConfig) -> RawImages:
    """Load all 1,797 digits `(n, 8, 8, 1)` float64, scaled to 0..1: 1,500 for training and the last 297 for testing."""
    stored = resources.files("ntkpipe.data").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(stored)) as digits:
        x, y = digits["images"][..., None] / 16.0, digits["labels"].astype(np.int64)
    split = x.shape[0] - _TEST_IMAGES
    return RawImages(x[:split], y[:split], x[split:], y[split:], tuple(str(k) for k in range(10)))
