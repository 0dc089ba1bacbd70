"""Linearisations of finite networks, trained in function space with each network's own kernel (arXiv:1902.06720).

`f_s = f_0 - (rate / (n c)) T a_s` with `a_{s+1} = a_s + momentum (a_s - a_{s-1}) + f_s - y` on the training points.
This is exactly gradient descent with heavy-ball momentum on the network that is linear in its weights, without the
weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.finite.empirical import prepare, tile
from ntkpipe.finite.ensemble import Training
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.spec import Spec


class Linearised(NamedTuple):
    """One member's linearisation at the evaluated steps.

    Args:
        train: (steps, n, c) outputs on the training points.
        points: (steps, q, c) outputs on further points.
    """

    train: np.ndarray
    points: np.ndarray


class MemberKernel(NamedTuple):
    """The kernel of one member at initialisation.

    Args:
        train: (n c, n c) kernel of the training points; (n, n) for a readout alone.
        points: (q c, n c) kernel of further points with the training points; (q, n) for a readout alone.
        trace: (n, n) mean over outputs of the kernel of the training points.
        own: (n, c) outputs on the training points.
        others: (q, c) outputs on the further points.
    """

    train: np.ndarray
    points: np.ndarray
    trace: np.ndarray
    own: np.ndarray
    others: np.ndarray

    @property
    def largest(self) -> float:
        """Return the largest eigenvalue divided by n c."""
        n, c = self.own.shape
        v = np.random.default_rng(0).standard_normal(len(self.train))
        matrix, size = self.train.astype(np.float64), 0.0
        for _ in range(60):
            v = matrix @ v
            before, size = size, float(np.linalg.norm(v))
            if not size or abs(size - before) < 1e-5 * size:
                break
            v /= size
        return size / (n * c)


def member_kernel(
    spec: Spec, weights: Any, x: np.ndarray, points: np.ndarray, *, readout: bool = False
) -> MemberKernel:
    """Return the kernel of one network for all pairs of outputs.

    Args:
        spec: list of layers.
        weights: weights of one network.
        x: (n, ...) training points.
        points: (q, ...) further points.
        readout: return the kernel of the last layer's weights only.
    """
    kind = "trace" if readout else "full"
    rows = prepare(spec, weights, x, outputs=kind, layout="NHWC")
    others = prepare(spec, weights, points, outputs=kind, layout="NHWC")
    found = [tile(rows, rows), tile(others, rows)]
    own, far = np.asarray(rows.functions), np.asarray(others.functions)
    if readout:
        train, cross = (np.asarray(one.nngp) for one in found)
        return MemberKernel(_symmetric(train), cross, _symmetric(train), own, far)
    train, cross = (np.asarray(one.ntk) for one in found)
    n, c = own.shape
    trace = np.einsum("ijaa->ij", train) / c
    flat = train.transpose(0, 2, 1, 3).reshape(n * c, n * c)
    return MemberKernel(_symmetric(flat), cross.transpose(0, 2, 1, 3).reshape(-1, n * c), _symmetric(trace), own, far)


def trace_kernel(spec: Spec, weights: Any, x: np.ndarray, *, readout: bool = False) -> np.ndarray:
    """Return the (n, n) kernel of one network, mean over outputs; with `readout`, that of the last layer's weights
    only.
    """
    rows = prepare(spec, weights, x, outputs="trace", layout="NHWC")
    made = tile(rows, rows)
    return np.asarray(made.nngp if readout else made.ntk)


def train_linearised(kernel: MemberKernel, y: np.ndarray, training: Training) -> Linearised:
    """Train one member's linearisation by gradient descent.

    Args:
        kernel: kernel of the member at initialisation.
        y: (n, c) targets.
        training: settings of the member's training, with squared loss and full batches.
    """
    scale = 0.0 if training.centred else training.output_scale
    dtype = kernel.train.dtype
    own, far = scale * kernel.own, scale * kernel.others
    n, c = own.shape
    whole = len(kernel.train) == n * c and c > 1
    with precision_context(dtype):
        matrix, cross = jnp.asarray(kernel.train), jnp.asarray(kernel.points)
        shape = (n * c, 1) if whole else (n, c)
        first = jnp.asarray(own.reshape(shape), dtype)
        difference = first - jnp.asarray(y.reshape(shape), dtype)
        unit = jnp.asarray(training.rate / (n * c), dtype)
        a = before = jnp.zeros_like(first)
        at, train, points = 0, [], []
        for step in training.steps:
            a, before = _advance()(
                matrix, difference, a, before, unit, jnp.asarray(training.momentum, dtype), step - at
            )
            at = step
            train.append(np.asarray(first - unit * (matrix @ a)).reshape(n, c))
            points.append(far - np.asarray(unit * (cross @ a)).reshape(far.shape))
    return Linearised(np.stack(train), np.stack(points))


@lru_cache(maxsize=1)
def _advance() -> Any:
    @jax.jit
    def run(matrix: Any, difference: Any, a: Any, before: Any, unit: Any, momentum: Any, steps: Any) -> Any:
        def body(_: Any, state: Any) -> Any:
            a, before = state
            return a + momentum * (a - before) + difference - unit * (matrix @ a), a

        with jax.default_matmul_precision("highest"):
            return jax.lax.fori_loop(0, steps, body, (a, before))

    return run


def _symmetric(k: np.ndarray) -> np.ndarray:
    return 0.5 * (k + k.T)
