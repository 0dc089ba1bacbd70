"""The contribution of one linear map to an empirical neural tangent kernel, computed in one of four ways.

Let h be the inputs under a map's window at output pixel p (depth k), and d = df/dz its signals there (width m). The
gradient of output a of image i is `G = s sum_p h[i, p] d[i, a, p]^T` by the weights, and `b sum_p d[i, a, p]` by the
bias. Hence the map adds

    K[i, a; j, b] = sum over p, q of (s^2 h[i, p].h[j, q] + b^2) (d[i, a, p].d[j, b, q])

- `structured`, for maps with one output pixel (dense layers): two matrix products, multiplied elementwise.
- `gradients`: G of every image, and one matrix product of depth k m.
- `pixel pairs`: both inner products of all pairs of pixels. Those of h are sums over the filter's taps of inner
  products of single pixels.
- `local`, for maps with their own weights at every pixel: as `structured` for each pixel, then summed.

`gradients` and `pixel pairs` give the same result. The one with fewer operations per pair of images is used.

A trace is the mean over equal outputs. Its products of signals are as deep as all outputs together, except in two dense
layers. The signals of the readout are the same for every image. Those of the layer before it differ between outputs
only by the readout's weights, `d[i, a] = v[:, a] g[i]`. So one product serves all outputs, that of `g[i] |v|`, where
|v| are the norms over outputs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ntkpipe.finite.maps import LinearMap
from ntkpipe.finite.network import Network
from ntkpipe.finite.windows import pad, patches, window_outputs

OUTPUTS = ("full", "trace", "pseudo")
# Bytes of the pixel pairs that are in memory at once.
_PAIR_BYTES = 32 << 20


@dataclass(frozen=True)
class MapPlan:
    """The plan for one map's contribution to the kernel.

    Args:
        map: the linear map.
        way: `structured`, `gradients`, `pixel pairs` or `local`.
        padded: `(height, width, channels)` of the input with its padding.
        pixels: `(height, width)` of the output.
        features: number m of output features.
        rows: number of outputs with their own signals: c, or 1 for `pseudo`.
        full: whether every pair of outputs is computed, and not only equal ones.
        operations: multiplications per pair of images.
        floats: numbers that are kept for each image.
        collapsed: whether the signals of all outputs are multiples of one signal, which is then kept with their norm;
            only for a trace.
    """

    map: LinearMap
    way: str
    padded: tuple[int, ...]
    pixels: tuple[int, ...]
    features: int
    rows: int
    full: bool
    operations: int
    floats: int
    collapsed: bool = False

    @property
    def rank(self) -> int:
        """The largest possible rank of the map's contribution to the kernel."""
        return (1 if self.full else self.rows) * self.map.parameters


def plan_maps(network: Network, outputs: str) -> tuple[MapPlan, ...]:
    """Return the plan with the fewest operations for each of a network's linear maps.

    Args:
        network: a network for images of a fixed shape.
        outputs: one of `OUTPUTS`.
    """
    rows = 1 if outputs == "pseudo" else network.outputs
    each = zip(network.maps, network.inputs, network.signals, strict=True)
    made = [_plan(one, inputs, signals, rows, outputs == "full") for one, inputs, signals in each]
    if outputs == "trace" and network.outputs > 1 and (k := network.last_hidden) is not None:
        made[k] = replace(_plan(network.maps[k], network.inputs[k], network.signals[k], 1, False), collapsed=True)
    return tuple(made)


def _plan(one: LinearMap, inputs: tuple[int, ...], signals: tuple[int, ...], rows: int, full: bool) -> MapPlan:
    channels, features = inputs[-1], signals[-1]
    if one.filter is None:
        pixels = (math.prod(signals[:-1]), 1)
        padded, taps = (*pixels, channels), 1
    else:
        size = one.filter
        pixels = window_outputs(inputs[:-1], size, one.strides, one.padding)
        image = jax.eval_shape(lambda: pad(jnp.zeros((1, *inputs)), size, one.strides, one.padding))
        padded, taps = (*map(int, image.shape[1:-1]), channels), math.prod(size)
    count, depth, area = math.prod(pixels), taps * channels, math.prod(padded[:-1])
    pairs_of_rows = rows**2 if full else rows
    ways = {
        "structured": (depth + pairs_of_rows * features, depth + rows * features),
        "gradients": (pairs_of_rows * (depth + 1) * features, rows * (depth + 1) * features),
        "pixel pairs": (
            area**2 * channels
            + count**2 * (taps + 1)
            + count**2 * rows * features
            + (rows**2 * count * features if full else 0),
            area * channels + rows * count * features,
        ),
    }
    times = math.prod(one.repeats)
    ways["local"] = (count * ways["structured"][0], count * ways["structured"][1])
    way = (
        "local"
        if one.pixels is not None
        else "structured"
        if count == 1
        else min(("gradients", "pixel pairs"), key=lambda name: ways[name][0])
    )
    operations, floats = (times * number for number in ways[way])
    return MapPlan(one, way, padded, pixels, features, rows, full, operations, floats)


def keep(plan: MapPlan, inputs: Any, signals: Any) -> tuple[Any, ...]:
    """Return the arrays that a map's contribution needs from a block of images, each with the images first.

    Args:
        plan: plan of the map.
        inputs: inputs of the map, `(n, ...)`.
        signals: derivatives of the outputs by the map's output, `(n, rows, ...)`; for `trace` divided by sqrt(c).
    """
    n, one = len(inputs), plan.map
    if one.repeats:
        # All repetitions become one axis after the images.
        single, times = replace(plan, map=replace(one, repeats=())), math.prod(one.repeats)
        inputs = inputs.reshape(n, times, *inputs.shape[1 + len(one.repeats) :])
        signals = signals.reshape(n, plan.rows, times, *signals.shape[2 + len(one.repeats) :])
        return jax.vmap(lambda h, d: keep(single, h, d), in_axes=(1, 2), out_axes=1)(inputs, signals)
    d = signals.reshape(n, plan.rows, math.prod(plan.pixels), plan.features)
    if one.filter is None:
        h = inputs.reshape(n, *plan.padded)
        under = [h]
    else:
        h = pad(inputs, one.filter, one.strides, one.padding)
        under = patches(h, one.filter, one.strides, plan.pixels)
    if plan.way == "pixel pairs":
        by_pixel = d if plan.full else d.transpose(0, 2, 1, 3).reshape(n, d.shape[2], -1)
        return one.scale * h, by_pixel
    depth = jnp.concatenate(under, axis=-1).reshape(n, d.shape[2], -1)
    if plan.way == "local":
        by_pixel = d.transpose(0, 2, 1, 3)
        return one.scale * depth, by_pixel if plan.full else by_pixel.reshape(n, d.shape[2], -1)
    if plan.way == "structured":
        return one.scale * depth[:, 0], d[:, :, 0] if plan.full else d[:, :, 0].reshape(n, -1)
    made = one.scale * jnp.einsum("npk,napm->nakm", depth, d).reshape(n, plan.rows, -1)
    if one.bias_scale:
        made = jnp.concatenate([made, one.bias_scale * d.sum(axis=2)], axis=-1)
    return (made if plan.full else made.reshape(n, -1),)


def collapse(signals: Any, readout: Any) -> Any:
    """Return one row of signals, `(n, 1, m)`, whose products equal the sum of the products over all outputs.

    Args:
        signals: signals of every output, `(n, c, m)`, which are one signal times the readout's weights.
        readout: weights of the readout, `(m, c)`.
    """
    size = jnp.sqrt(jnp.sum(readout**2, axis=1, keepdims=True))
    return jnp.einsum("ncm,mc->nm", signals, readout / jnp.where(size > 0, size, 1.0))[:, None]


def contribution(plan: MapPlan, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> Any:
    """Return the map's contribution to the kernel of two blocks of images, `(n1, n2)`, or `(n1, n2, c, c)` if full."""
    if plan.map.repeats:
        return _over_repeats(plan, rows, columns)
    if plan.way == "gradients":
        return _inner(plan, rows[0], columns[0])
    if plan.way == "structured":
        inputs = rows[0] @ columns[0].T + plan.map.bias_scale**2
        return (inputs[:, :, None, None] if plan.full else inputs) * _inner(plan, rows[1], columns[1])
    if plan.way == "local":
        return _over_pixels(plan, rows, columns)
    return _over_pairs(plan, rows, columns)


def _over_repeats(plan: MapPlan, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> Any:
    single = replace(plan, map=replace(plan.map, repeats=()))
    of_rows, of_columns = (tuple(jnp.moveaxis(x, 1, 0) for x in part) for part in (rows, columns))

    def once(total: Any, both: Any) -> tuple[Any, None]:
        return total + contribution(single, *both), None

    full = (plan.rows, plan.rows) if plan.full else ()
    none = jnp.zeros((len(rows[0]), len(columns[0]), *full), rows[0].dtype)
    return jax.lax.scan(once, none, (of_rows, of_columns))[0]


def _over_pixels(plan: MapPlan, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> Any:
    """Return the sum of the contributions of each pixel's weights."""
    (h, d), (others, signals) = (tuple(jnp.moveaxis(x, 1, 0) for x in part) for part in (rows, columns))

    def add(total: Any, pixel: tuple[Any, ...]) -> tuple[Any, None]:
        h, d, other, signal = pixel
        inputs = h @ other.T + plan.map.bias_scale**2
        return total + (inputs[:, :, None, None] if plan.full else inputs) * _inner(plan, d, signal), None

    full = (plan.rows, plan.rows) if plan.full else ()
    nothing = jnp.zeros((h.shape[1], others.shape[1], *full), h.dtype)
    return jax.lax.scan(add, nothing, (h, d, others, signals))[0]


def _inner(plan: MapPlan, rows: Any, columns: Any) -> Any:
    return jnp.einsum("iak,jbk->ijab", rows, columns) if plan.full else rows @ columns.T


def _over_pairs(plan: MapPlan, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> Any:
    """Return the contribution by pixel pairs, for one row image and a group of columns at a time.

    The intermediates take about `_PAIR_BYTES`.
    """
    area, count = math.prod(plan.padded[:-1]), math.prod(plan.pixels)
    held = area**2 + count**2 * 2 + (count * plan.rows * plan.features if plan.full else 0)
    n = len(columns[0])
    size = max(1, min(n, _PAIR_BYTES // (held * columns[0].dtype.itemsize)))
    groups = -(-n // size)

    def grouped(x: Any) -> Any:
        padded = jnp.pad(x, [(0, groups * size - n)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(groups, size, *x.shape[1:])

    together = tuple(grouped(x) for x in columns)

    def row(image: tuple[Any, ...]) -> Any:
        made = jax.lax.map(lambda group: _pairs_of_one(plan, image, group), together)
        return made.reshape(-1, *made.shape[2:])[:n]

    return jax.lax.map(row, rows)


def _pairs_of_one(plan: MapPlan, image: tuple[Any, ...], group: tuple[Any, ...]) -> Any:
    size, strides = plan.map.filter or (1, 1), plan.map.strides
    axes = len(size)
    (h, d), (others, signals) = image, group
    n, count = len(others), math.prod(plan.pixels)
    own = jnp.tensordot(h, others, axes=(-1, -1))  # axes: pixels of the row image, column images, their pixels
    # Both images are shifted equally, so the same tap applies along both pairs of axes.
    total = jnp.zeros((), h.dtype)
    for tap in itertools.product(*map(range, size)):
        each = zip(tap, plan.pixels, strides[:axes], strict=True)
        under = tuple(slice(a, a + (out - 1) * stride + 1, stride) for a, out, stride in each)
        total = total + own[(*under, slice(None), *under)]
    inputs = total.reshape(count, n, count) + plan.map.bias_scale**2
    if not plan.full:
        return jnp.sum(inputs * jnp.einsum("pm,jqm->pjq", d, signals), axis=(0, 2))
    mixed = jnp.einsum("pjq,jbqm->jbpm", inputs, signals)
    return jnp.einsum("apm,jbpm->jab", d, mixed)
