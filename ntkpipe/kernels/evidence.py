"""The evidence of the NNGP of a fully connected network, with its gradient by w_std, b_std and the ridge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture


class Evidence:
    """The negative log evidence per target number (see `dynamics.criteria`), as a function of three logarithms.

    Args:
        x: points, `(m, d)`.
        y: targets, `(m, c)`.
        activation: spec of the nonlinearity.
        depth: number of hidden layers.
        biased: whether layers have biases; if not, b_std is ignored.
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray, activation: Mapping[str, Any], depth: int, *, biased: bool
    ) -> None:
        self._products = x.astype(np.float64) @ x.T.astype(np.float64) / x.shape[1]
        self._y, self._depth, self._biased = y.astype(np.float64), depth, biased
        unit = {"op": "dense", "features": 1, "w_std": 1.0, "b_std": None}
        self._map = Architecture.from_spec([unit, activation])
        self._slope = jax.jit(jax.value_and_grad(self._cost))

    def __call__(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the value and its gradient `(3,)`, or infinity and zeros if the Cholesky factorisation fails.

        Args:
            logs: `(3,)`, the logarithms of w_std, b_std and the relative ridge.
        """
        with precision_context("float64"):
            value, slope = self._slope(jnp.asarray(logs, jnp.float64))
        found = float(value), np.asarray(slope, np.float64)
        if not math.isfinite(found[0]) or not np.isfinite(found[1]).all():
            return math.inf, np.zeros(len(logs))
        return found

    def _cost(self, logs: jax.Array) -> jax.Array:
        w_std, b_std, ridge = jnp.exp(logs)
        bias = b_std**2 if self._biased else 0.0
        k = w_std**2 * jnp.asarray(self._products) + bias
        for _ in range(self._depth):
            p = jnp.diagonal(k)
            k = w_std**2 * self._map.map(k, p[:, None], p[None, :]).nngp + bias
        y = jnp.asarray(self._y)
        a = k + ridge * jnp.diagonal(k).mean() * jnp.eye(len(y))
        factor = jnp.linalg.cholesky(a)
        half = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        energy = (half**2).sum() / y.size
        return 0.5 * (jnp.log(2 * jnp.pi * energy) + 1.0) + jnp.log(jnp.diagonal(factor)).mean()
