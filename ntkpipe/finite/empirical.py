"""Empirical kernels: the exact neural tangent kernel and NNGP of one finite network, in tiles (arXiv:2206.08720).

The NTK of outputs a and b of images x and x' is the inner product of their gradients by all parameters. `prepare`
computes what depends on one image, once; `tile` multiplies two blocks of prepared images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.network import Network, Weights, as_inputs, network
from ntkpipe.finite.products import OUTPUTS, MapPlan, collapse, contribution, keep, plan_maps
from ntkpipe.kernels.accelerator import default_platform, precision_context
from ntkpipe.kernels.images import check_agreement
from ntkpipe.kernels.spec import Spec, canonical_json
from ntkpipe.kernels.state import Array, Kernels

# Memory of the activations and gradients of the images that are prepared together.
_PREPARED_BYTES = 256 << 20


@dataclass(frozen=True)
class Prepared:
    """A block of images prepared for an empirical kernel.

    Args:
        key: canonical spec, shape of an image and kind of outputs. Two blocks must have equal keys.
        dtype: dtype of the computation.
        functions: outputs of the network, `(n, c)`.
        parts: for every linear map, arrays whose first axis is the image.
    """

    key: tuple[str, tuple[int, ...], str]
    dtype: np.dtype
    functions: jax.Array
    parts: tuple[tuple[jax.Array, ...], ...]

    def __len__(self) -> int:
        return len(self.functions)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return self.functions.nbytes + sum(x.nbytes for part in self.parts for x in part)


def prepare(
    spec: Spec,
    weights: Weights,
    x: Array,
    *,
    outputs: str = "trace",
    masks: Sequence[Any] | None = None,
    layout: str | None = None,
) -> Prepared:
    """Compute the activations and gradients of a block of images, which `tile` multiplies with those of another block.

    Args:
        spec: list of layers.
        weights: see `network.Weights`.
        x: images, float32 or float64. Their dtype is the dtype of the computation.
        outputs: `full`, `trace` or `pseudo`; see `empirical_kernel`.
        masks: dropout masks, see `draw_masks`.
        layout: order of four axes, `NHWC` or `NCHW`.

    Raises:
        ConfigError: if a layer has no finite form (the message names it), or the kind of outputs is unknown.
        DataError: if the images or the weights have the wrong shape or type.
    """
    if outputs not in OUTPUTS:
        raise ConfigError(f"outputs={outputs!r} is not one of {', '.join(OUTPUTS)}")
    x = as_inputs("x", x, layout)
    made = network(spec, x.shape[1:])
    key = canonical_json(spec), tuple(x.shape[1:]), outputs
    with precision_context(x.dtype):
        given = made.check_weights(weights, x.dtype)
        dropped = made.check_masks(masks, len(x), x.dtype)
        size = block_images(made, outputs, np.dtype(x.dtype).itemsize)
        run = _compiled(*key).prepare
        x, lengths = made.split_ends(x)
        starts = [slice(start, start + size) for start in range(0, max(len(x), 1), size)]
        blocks = [
            run(given, jnp.asarray(x[part]), [m[part] for m in dropped], None if lengths is None else lengths[part])
            for part in starts
        ]
        functions, parts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *blocks) if blocks[1:] else blocks[0]
    return Prepared(key, np.dtype(x.dtype), functions, parts)


def block_images(made: Network, outputs: str, itemsize: int) -> int:
    """Return how many images to pass to `prepare` at once, so that it holds about 256 MiB."""
    rows = 1 if outputs == "pseudo" else made.outputs
    passed = sum(
        3 * int(np.prod(one.repeats)) * (int(np.prod(h)) + rows * int(np.prod(z)))
        for one, h, z in zip(made.maps, made.inputs, made.signals, strict=True)
    )
    floats = passed + sum(2 * plan.floats for plan in plan_maps(made, outputs))
    return max(1, _PREPARED_BYTES // (itemsize * max(floats, 1)))


def tile(rows: Prepared, columns: Prepared) -> Kernels:
    """Return both kernels of every pair of images of two blocks.

    Args:
        rows: n1 prepared images.
        columns: n2 images, prepared with the same network and weights.

    Returns:
        `nngp`, `(n1, n2)`, and `ntk`, `(n1, n2)` or `(n1, n2, c, c)` with `outputs="full"`.

    Raises:
        DataError: if the blocks disagree in spec, shape, kind of outputs or dtype.
    """
    if rows.key != columns.key or rows.dtype != columns.dtype:
        raise DataError(
            "both blocks must be prepared with one spec, points of one shape, and the same outputs and dtype"
        )
    made = _compiled(*rows.key)
    with precision_context(rows.dtype):
        if made.of_products and default_platform() == "cpu":
            return Kernels(*map(jnp.asarray, _of_products(made, rows, columns)))
        return Kernels(*made.tile((rows.functions, rows.parts), (columns.functions, columns.parts)))


def empirical_kernel(
    spec: Spec,
    weights: Weights,
    x1: Array,
    x2: Array | None = None,
    outputs: str = "full",
    *,
    layout: str | None = None,
) -> Kernels:
    """Return the neural tangent kernel and the NNGP of one finite network with given weights.

    Args:
        spec: list of layers, as in `Architecture.from_spec`.
        weights: list of `(W, b)`, see `network.Weights`.
        x1: `(n1, height, width, channels)`, `(n1, height, width)` or `(n1, features)`, float32 or float64. Its dtype is
            the dtype of the computation.
        x2: `(n2, ...)` of the same shape and dtype. None pairs `x1` with itself; both kernels are then exactly
            symmetric.
        outputs: which outputs the NTK is computed for. `full`: all pairs of the c outputs, which the linearisation of
            the network needs. `trace`: the mean over pairs of equal outputs. `pseudo`: the sum of the outputs divided
            by sqrt(c) (arXiv:2206.12543), which costs c times less.
        layout: order of four axes, `NHWC` or `NCHW`.

    Returns:
        `ntk`, `(n1, n2, c, c)` for `full`, else `(n1, n2)`; and `nngp`, `(n1, n2)`. The NNGP is the covariance of an
        output over the weights of a dense readout, with all earlier layers fixed; without a dense readout it is the
        mean product of the outputs. NumPy arrays for NumPy arrays, else JAX arrays.

    Raises:
        ConfigError: if a layer has no finite form or does not accept images of this shape; the message names it.
        DataError: if the images or the weights have the wrong shape or type, or a weight is not finite.
    """
    x1 = as_inputs("x1", x1, layout)
    rows = prepare(spec, weights, x1, outputs=outputs, layout="NHWC")
    if x2 is None:
        made = tile(rows, rows)
        with precision_context(rows.dtype):
            made = Kernels(*(0.5 * (k + k.transpose(1, 0, *((3, 2) if k.ndim == 4 else ()))) for k in made))
    else:
        other = as_inputs("x2", x2, layout)
        check_agreement(x1, other)
        made = tile(rows, prepare(spec, weights, other, outputs=outputs, layout="NHWC"))
    return made if isinstance(x1, jax.Array) else Kernels(*(np.asarray(k) for k in made))


@dataclass(frozen=True)
class _Compiled:
    prepare: Callable[..., Any]
    tile: Callable[..., Any]
    network: Network
    plans: tuple[MapPlan, ...]

    @property
    def of_products(self) -> bool:
        """Whether a tile consists of matrix products only, which NumPy computes faster than XLA on CPUs."""
        return all(
            plan.way not in ("pixel pairs", "local") and not plan.full and not plan.map.repeats for plan in self.plans
        )


@lru_cache(maxsize=64)
def _compiled(text: str, shape: tuple[int, ...], outputs: str) -> _Compiled:
    made = network(json.loads(text), shape)
    plans = plan_maps(made, outputs)

    def prepare(weights: Any, x: Any, masks: Any, lengths: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return _prepared(made, plans, outputs, weights, x, masks, lengths)

    def tile(rows: Any, columns: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return _tile(made, plans, outputs, rows, columns)

    return _Compiled(jax.jit(prepare), jax.jit(tile), made, plans)


def _of_products(made: _Compiled, rows: Prepared, columns: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Return NNGP and NTK as `_tile` does, with one temporary array at a time."""
    ntk = np.zeros((len(rows), len(columns)), rows.dtype)
    inputs = None
    for plan, own, others in zip(made.plans, rows.parts, columns.parts, strict=True):
        left, right = [np.asarray(part) for part in own], [np.asarray(part) for part in others]
        if plan.way == "gradients":
            ntk += left[0] @ right[0].T
            continue
        inputs = left[0] @ right[0].T
        signals = left[1] @ right[1].T
        signals *= inputs if plan.map.bias_scale == 0 else inputs + signals.dtype.type(plan.map.bias_scale**2)
        ntk += signals
    if not made.network.has_readout or inputs is None:
        return np.asarray(rows.functions) @ np.asarray(columns.functions).T / made.network.outputs, ntk
    factor, offset = _of_readout(made.plans[-1])
    inputs *= rows.dtype.type(factor)
    inputs += rows.dtype.type(offset)
    return inputs, ntk


def _of_readout(plan: MapPlan) -> tuple[float, float]:
    """Return the factor of the product of a readout's inputs in the NNGP, and the constant that is added."""
    readout = plan.map
    # In the standard parameterisation neither the weights nor the inputs are scaled in the pass.
    return readout.w_std**2 / (readout.fan_in * readout.scale**2), (readout.b_std or 0.0) ** 2


def _prepared(
    made: Network, plans: Sequence[MapPlan], outputs: str, weights: Any, x: Any, masks: Any, lengths: Any
) -> tuple[Any, tuple[tuple[Any, ...], ...]]:
    c = made.outputs
    each_map = zip(made.maps, made.signals, strict=True)
    shifts = [jnp.zeros((len(x), *one.repeats, *shape), x.dtype) for one, shape in each_map]
    functions, backward, inputs = jax.vjp(lambda s: made.forward(weights, x, masks, s, lengths), shifts, has_aux=True)
    # One direction in output space per row. Images do not interact, so all are differentiated together.
    directions = jnp.full((1, c), c**-0.5) if outputs == "pseudo" else jnp.eye(c)
    scale = c**-0.5 if outputs == "trace" else 1.0
    directions = jnp.broadcast_to((scale * directions)[:, None], (len(directions), len(x), c)).astype(x.dtype)
    (signals,) = jax.vmap(backward)(directions)
    if any(plan.collapsed for plan in plans):
        k = len(plans) - 2
        signals = [*signals]
        signals[k] = jnp.moveaxis(collapse(jnp.moveaxis(signals[k], 0, 1), weights[-1][0]), 1, 0)
    each = zip(plans, inputs, signals, strict=True)
    return functions, tuple(keep(plan, h, jnp.moveaxis(d, 0, 1)) for plan, h, d in each)


def _tile(made: Network, plans: Sequence[MapPlan], outputs: str, rows: Any, columns: Any) -> tuple[Any, Any]:
    (of_rows, own), (of_columns, others) = rows, columns
    each = zip(plans, own, others, strict=True)
    full = (made.outputs, made.outputs) if outputs == "full" else ()
    none = jnp.zeros((len(of_rows), len(of_columns), *full), of_rows.dtype)
    ntk = sum((contribution(plan, a, b) for plan, a, b in each), start=none)
    if not made.has_readout:
        return of_rows @ of_columns.T / made.outputs, ntk
    factor, offset = _of_readout(plans[-1])
    return factor * (own[-1][0] @ others[-1][0].T) + offset, ntk
