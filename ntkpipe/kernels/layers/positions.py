"""Positional embeddings for attention: one random vector per pixel, shared by all images (arXiv:2006.10540, section
4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.nonlinear.formula import evaluate_number, parse

# Tolerated negative eigenvalues of a covariance, relative to the largest: the rounding for a few thousand pixels.
_ROUNDING = 1e-10


@lru_cache(maxsize=16)
def position_covariance(spatial: tuple[int, ...], p_norm: float, decay: str | None) -> Float[np.ndarray, "p p"]:
    """Return the covariance of the embeddings of all pixels of an image.

    Args:
        spatial: height and width.
        p_norm: exponent p in the distance `sum over axes of |i - j|^p`.
        decay: formula of the covariance in the distance d; None makes the embeddings of different pixels independent.

    Raises:
        ConfigError: if the formula is not finite at some distance, or does not give a covariance matrix.
    """
    if decay is None:
        return np.eye(math.prod(spatial))
    at = np.stack(np.meshgrid(*(np.arange(n) for n in spatial), indexing="ij"), axis=-1).reshape(-1, len(spatial))
    distances = (np.abs(at[:, None] - at[None]).astype(np.float64) ** p_norm).sum(axis=-1)
    found, places = np.unique(distances, return_inverse=True)
    tree = parse(decay, ("d",))
    values = np.array([evaluate_number(tree, {"d": float(d)}) for d in found])
    if not np.isfinite(values).all():
        d = found[~np.isfinite(values)][0]
        raise ConfigError(f"pos_emb_decay_fn={decay!r} is not a finite real number at d = {d:g}")
    made = values[places].reshape(distances.shape)
    smallest, largest = np.linalg.eigvalsh(made)[[0, -1]]
    if largest <= 0.0 or smallest < -_ROUNDING * largest * len(made):
        raise ConfigError(
            f"pos_emb_decay_fn={decay!r} is not a covariance of {list(spatial)} pixels: an eigenvalue is "
            f"{smallest:.3g}. Use a covariance, such as exp(-d) with pos_emb_p_norm 1 or 2"
        )
    return made


@dataclass(frozen=True)
class PositionalEmbedding:
    """Positional embeddings that attention adds to the pixels, or concatenates with their channels.

    Args:
        concat: concatenate the embeddings with the channels instead of adding them.
        p_norm: see `position_covariance`.
        decay: see `position_covariance`.
        channels: number of channels of the embeddings; None means as many as the pixels have.
        std: standard deviation of the embeddings.
        in_values: include the embeddings in the values as well as in the keys and queries.
    """

    concat: bool
    p_norm: float
    decay: str | None
    channels: int | None
    std: float
    in_values: bool

    def weights(self, features: int) -> tuple[float, float]:
        """Return the weights of the pixels' covariance and of the embeddings' covariance in their joint covariance.

        Args:
            features: number of channels of the pixels.
        """
        if not self.concat:
            return 1.0, self.std**2
        channels = features if self.channels is None else self.channels
        return features / (features + channels), self.std**2 * channels / (features + channels)

    def covariance(self, spatial: tuple[int, ...]) -> Float[np.ndarray, "p p"]:
        """Return the covariance of the embeddings, see `position_covariance`."""
        return position_covariance(spatial, self.p_norm, self.decay)

    def root(self, spatial: tuple[int, ...]) -> Float[np.ndarray, "p p"]:
        """Return the symmetric square root of the covariance, which maps independent vectors to embeddings."""
        if self.decay is None:
            return self.covariance(spatial)
        values, vectors = np.linalg.eigh(self.covariance(spatial))
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
