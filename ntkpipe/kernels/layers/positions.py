"""Positional embeddings of attention: random vectors of every pixel, the same for all images (arXiv:2006.10540, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.nonlinear.formula import evaluate_number, parse

# Of eigenvalues of a covariance, relative to the largest: rounding of some thousand pixels.
_ROUNDING = 1e-10


@lru_cache(maxsize=16)
def position_covariance(spatial: tuple[int, ...], p_norm: float, decay: str | None) -> Float[np.ndarray, "p p"]:
    """Covariance of the embeddings of all pixels of an image.

    Args:
        spatial: height and width.
        p_norm: p of the distance `sum over axes of |i - j|^p`.
        decay: formula in the distance d; None embeds every pixel by itself.

    Raises:
        ConfigError: if the formula is no finite number at some distance, or makes no covariance.
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
            f"pos_emb_decay_fn={decay!r} is no covariance of {list(spatial)} pixels: an eigenvalue is {smallest:.3g}. Take one "
            "that is, such as exp(-d) with pos_emb_p_norm 1 or 2"
        )
    return made


@dataclass(frozen=True)
class PositionalEmbedding:
    """What an attention adds to the pixels, or puts beside their channels.

    Args:
        concat: beside the channels; else added to them.
        p_norm: see `position_covariance`.
        decay: likewise.
        channels: of the embeddings; None are as many as the pixels have.
        std: of the embeddings.
        in_values: values are made with them too, not keys and queries alone.
    """

    concat: bool
    p_norm: float
    decay: str | None
    channels: int | None
    std: float
    in_values: bool

    def weights(self, features: int) -> tuple[float, float]:
        """Of the covariance of the pixels, and of that of the embeddings, in that of both together.

        Args:
            features: channels of the pixels.
        """
        if not self.concat:
            return 1.0, self.std**2
        channels = features if self.channels is None else self.channels
        return features / (features + channels), self.std**2 * channels / (features + channels)

    def covariance(self, spatial: tuple[int, ...]) -> Float[np.ndarray, "p p"]:
        """See `position_covariance`."""
        return position_covariance(spatial, self.p_norm, self.decay)

    def root(self, spatial: tuple[int, ...]) -> Float[np.ndarray, "p p"]:
        """The symmetric root of the covariance: it makes embeddings of independent vectors."""
        if self.decay is None:
            return self.covariance(spatial)
        values, vectors = np.linalg.eigh(self.covariance(spatial))
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
