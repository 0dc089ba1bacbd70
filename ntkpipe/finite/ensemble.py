"""Ensembles of finite networks that are trained together, in one program for all members of a chunk.

A member's function is `f = alpha h`, or `alpha (h - h_0)` if it is centred, with h the network of the spec and alpha
the output scale
(arXiv:1812.07956). Each step moves the weights by `rate / alpha^2` times the negative gradient of `|f - y|^2 / (2 n
c)`. The linearisation of f then trains with the kernel of h, at every alpha.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.finite.initialisers import init
from ntkpipe.finite.network import Network, network
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.spec import Spec, canonical_json

LOSSES = ("squared", "cross_entropy")
# Steps of power iteration for the largest eigenvalue of a member's kernel. They give 3 digits for kernels of images,
# whose first eigenvalue is well separated.
_POWER_STEPS = 24


@dataclass(frozen=True)
class Training:
    """How every member is trained.

    Args:
        rate: learning rate of a step on `|f - y|^2 / (2 n c)`.
        steps: steps at which the members are evaluated, ascending and beginning with 0.
        momentum: heavy-ball momentum; 0 is plain gradient descent.
        readout: train the last dense layer only.
        output_scale: alpha.
        centred: subtract the outputs at initialisation.
        batch_size: images per step, drawn again for each step; None takes all images.
        loss: `squared`, or `cross_entropy` (mean over images, for the class with the largest target).
        seed: seed of the batches.
    """

    rate: float
    steps: tuple[int, ...]
    momentum: float = 0.0
    readout: bool = False
    output_scale: float = 1.0
    centred: bool = False
    batch_size: int | None = None
    loss: str = "squared"
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            not self.steps
            or self.steps[0] != 0
            or any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False))
        ):
            raise ConfigError(f"steps={list(self.steps)} must begin with 0 and ascend")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}")


class Trained(NamedTuple):
    """The members at the evaluated steps.

    Args:
        train: (members, steps, n, c) outputs on the training points.
        points: (members, steps, q, c) outputs on further points.
        loss: (members, steps) training loss, squared or cross-entropy.
        peak: (members,) largest loss at any step.
        curvature: (members, steps) largest eigenvalue of the member's NTK divided by n c; NaN if not requested.
        sparsity: (members, steps) fraction of hidden activations that are 0.
        weights: weights of the members after the last step, stacked.
    """

    train: np.ndarray
    points: np.ndarray
    loss: np.ndarray
    peak: np.ndarray
    curvature: np.ndarray
    sparsity: np.ndarray
    weights: Any


def member_seed(seed: int, width: int, member: int) -> int:
    """Return the seed of one member's weights, which does not depend on the chunk that the member is trained in."""
    return int(np.random.SeedSequence([seed, width, member]).generate_state(1, np.uint64)[0] >> 1)


def draw_members(
    spec: Spec, shape: Sequence[int], seeds: Sequence[int], *, initialiser: str = "gaussian", dtype: Any = np.float32
) -> Any:
    """Draw the weights of several networks, stacked along a first axis; see `init`."""
    drawn = [init(spec, shape, seed, initialiser=initialiser, dtype=dtype) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)


def train_members(
    spec: Spec,
    weights: Any,
    x: np.ndarray,
    y: np.ndarray,
    points: np.ndarray,
    training: Training,
    *,
    rates: np.ndarray | None = None,
    curvature: bool = False,
    look: Callable[[int, Any], None] | None = None,
    first: int = 0,
) -> Trained:
    """Train all members of a chunk.

    Args:
        spec: list of layers.
        weights: stacked weights, see `draw_members`.
        x: (n, ...) training points, float32 or float64. Their dtype is the dtype of the computation.
        y: (n, c) targets.
        points: (q, ...) further points at which outputs are returned.
        training: settings of the training.
        rates: (members,) learning rates that replace the common rate.
        curvature: measure the curvature at every evaluated step.
        look: called with an evaluated step and the members' weights at that step.
        first: number of the first member, from which the members' batches are seeded.
    """
    members = len(jax.tree.leaves(weights)[0])
    compiled = _compiled(canonical_json(spec), tuple(x.shape[1:]), replace(training, rate=1.0, steps=(0,)), curvature)
    with precision_context(x.dtype):
        state = jax.tree.map(lambda w: jnp.asarray(w, x.dtype), weights)
        at, targets, others = jnp.asarray(x), jnp.asarray(y, x.dtype), jnp.asarray(points)
        own = np.full(members, training.rate) if rates is None else np.asarray(rates)
        scaled = jnp.asarray(own / training.output_scale**2, x.dtype)
        starts = compiled.starts(state, at, others) if training.centred else None
        velocity = jax.tree.map(jnp.zeros_like, _moving(state, training.readout))
        peak = jnp.zeros(members, x.dtype)
        keys = jnp.arange(first, first + members, dtype=jnp.uint32)
        seen: list[Any] = []
        before = 0
        for step in training.steps:
            if step > before:
                state, velocity, peak = compiled.advance(
                    state, velocity, peak, starts, at, targets, scaled, keys, before, step
                )
            before = step
            seen.append(jax.tree.map(np.asarray, compiled.evaluate(state, starts, at, targets, others)))
            if look is not None:
                look(step, state)
        train, far, loss, curved, sparse = (np.stack(column, axis=1) for column in zip(*seen, strict=True))
        highest = np.fmax(np.asarray(peak), np.nan_to_num(loss, nan=np.inf).max(axis=1))
    return Trained(train, far, loss, highest, curved, sparse, state)


class _Compiled(NamedTuple):
    starts: Callable[..., Any]
    advance: Callable[..., Any]
    evaluate: Callable[..., Any]


@lru_cache(maxsize=32)
def _compiled(text: str, shape: tuple[int, ...], training: Training, curvature: bool) -> _Compiled:
    made = network(json.loads(text), shape)
    alpha = training.output_scale

    def outputs(weights: Any, x: Any, start: Any) -> Any:
        h = made.forward(weights, x)[0]
        return alpha * (h if start is None else h - start)

    def loss_of(weights: Any, x: Any, y: Any, start: Any) -> Any:
        return _loss(outputs(weights, x, start), y, training.loss)

    def starts(weights: Any, x: Any, points: Any) -> Any:
        return jax.vmap(lambda w: (made.forward(w, x)[0], made.forward(w, points)[0]))(weights)

    def step_of(weights: Any, velocity: Any, start: Any, x: Any, y: Any, rate: Any, key: Any, step: Any) -> Any:
        if training.batch_size is not None:
            drawn = jax.random.fold_in(jax.random.fold_in(jax.random.key(training.seed), key), step)
            rows = jax.random.choice(drawn, len(x), (training.batch_size,), replace=False)
            x, y, start = x[rows], y[rows], None if start is None else start[rows]
        fixed, moving = _split(weights, training.readout)
        loss, slope = jax.value_and_grad(lambda w: loss_of(_joined(fixed, w), x, y, start))(moving)
        velocity = jax.tree.map(lambda v, g: training.momentum * v - rate * g, velocity, slope)
        return _joined(fixed, jax.tree.map(jnp.add, moving, velocity)), velocity, loss

    def advance(
        weights: Any, velocity: Any, peak: Any, start: Any, x: Any, y: Any, rates: Any, keys: Any, a: Any, b: Any
    ) -> Any:
        own = None if start is None else start[0]

        def body(step: Any, state: Any) -> Any:
            weights, velocity, peak = state
            each = jax.vmap(step_of, in_axes=(0, 0, None if own is None else 0, None, None, 0, 0, None))
            weights, velocity, loss = each(weights, velocity, own, x, y, rates, keys, step)
            return weights, velocity, jnp.fmax(peak, jnp.nan_to_num(loss, nan=jnp.inf))

        with jax.default_matmul_precision("highest"):
            return jax.lax.fori_loop(a, b, body, (weights, velocity, peak))

    def evaluate(weights: Any, start: Any, x: Any, y: Any, points: Any) -> Any:
        def one(weights: Any, start: Any) -> Any:
            own, far = (None, None) if start is None else start
            h, inputs = made.forward(weights, x)
            train = alpha * (h if own is None else h - own)
            hidden = inputs[1:]
            zero = sum((jnp.sum(one == 0) for one in hidden), start=jnp.zeros((), jnp.int32))
            share = zero / max(1, sum(one.size for one in hidden))
            curved = _curvature(made, weights, x) if curvature else jnp.full((), jnp.nan, x.dtype)
            return train, outputs(weights, points, far), _loss(train, y, training.loss), curved, share

        with jax.default_matmul_precision("highest"):
            return jax.vmap(one, in_axes=(0, None if start is None else 0))(weights, start)

    return _Compiled(jax.jit(starts), jax.jit(advance), jax.jit(evaluate))


def _loss(f: Any, y: Any, kind: str) -> Any:
    if kind == "squared":
        return jnp.sum(jnp.square(f - y)) / (2 * f.size)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(f), jnp.argmax(y, axis=1)[:, None], axis=1))


def _moving(weights: Any, readout: bool) -> Any:
    return weights[-1:] if readout else weights


def _split(weights: Any, readout: bool) -> tuple[Any, Any]:
    return (weights[:-1], weights[-1:]) if readout else ([], weights)


def _joined(fixed: Any, moving: Any) -> Any:
    return [*fixed, *moving]


def _curvature(made: Network, weights: Any, x: Any) -> Any:
    """Return the largest eigenvalue of the NTK divided by n c, by power iteration with NTK-vector products."""

    def f(weights: Any) -> Any:
        return made.forward(weights, x)[0]

    h, back = jax.vjp(f, weights)

    def body(_: Any, state: Any) -> Any:
        v, _ = state
        (slope,) = back(v)
        product = jax.jvp(f, (weights,), (slope,))[1]
        size = jnp.sqrt(jnp.sum(jnp.square(product)))
        return product / jnp.where(size > 0, size, 1.0), size

    first = jax.random.normal(jax.random.key(0), h.shape, h.dtype)
    first = first / jnp.sqrt(jnp.sum(jnp.square(first)))
    return jax.lax.fori_loop(0, _POWER_STEPS, body, (first, jnp.zeros((), h.dtype)))[1] / h.size


def largest_curvature(spec: Spec, weights: Any, x: np.ndarray) -> np.ndarray:
    """Return the largest eigenvalues of the members' NTKs divided by n c, (members,)."""
    made = network(spec, x.shape[1:])
    with precision_context(x.dtype), jax.default_matmul_precision("highest"):
        each = jax.jit(jax.vmap(lambda w: _curvature(made, w, jnp.asarray(x))))
        return np.asarray(each(jax.tree.map(lambda w: jnp.asarray(w, x.dtype), weights)))
