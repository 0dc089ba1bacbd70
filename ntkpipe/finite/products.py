"""What one linear map adds to an empirical neural tangent kernel, three ways.

With h the inputs under a map's window at output pixel p (depth k) and d = df/dz its signals there (width m), the gradient of output a
of image i by the weights is `G = s sum_p h[i, p] d[i, a, p]^T`, by the bias `b sum_p d[i, a, p]`. Hence the map adds

    K[i, a; j, b] = sum over p, q of (s^2 h[i, p].h[j, q] + b^2) (d[i, a, p].d[j, b, q])

- `structured`, one output pixel (dense layers): two matrix products, multiplied elementwise.
- `gradients`: G of every image, and one matrix product of depth k m.
- `pixel pairs`: both inner products of all pairs of pixels; those of h from the pixels' own, summed over the filter's taps.
- `local`, weights of their own for every pixel: as `structured`, pixel by pixel, and summed.

Of `gradients` and `pixel pairs`, which give the same, that with fewer operations per pair of images is taken.

Of a trace, the mean over equal outputs, products of signals are as deep as all outputs together, but for two dense layers. The signals of
the readout are the same for every image, and those of the layer before it differ between outputs by the readout's weights alone,
`d[i, a] = v[:, a] g[i]`, so that one product serves all outputs: of `g[i] |v|`, |v| the norms over outputs.
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
# Of pixel pairs held at once.
_PAIR_BYTES = 32 << 20


@dataclass(frozen=True)
class MapPlan:
    """How one map's part of the kernel is computed.

    Args:
        map: the linear map.
        way: `structured`, `gradients`, `pixel pairs` or `local`.
        padded: `(height, width, channels)` of the input with its padding.
        pixels: `(height, width)` of the output.
        features: of the output, m.
        rows: outputs that have signals of their own: c, of `pseudo` 1.
        full: every pair of outputs, not equal ones alone.
        collapsed: of a trace: signals of all outputs are multiples of one, which is kept with the norm of them all.
        operations: multiplications per pair of images.
        floats: kept of each image.
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
        """Rows of the map's part of the kernel that can be independent at most."""
        return (1 if self.full else self.rows) * self.map.parameters


def plan_maps(network: Network, outputs: str) -> tuple[MapPlan, ...]:
    """The cheaper way for each of a network's linear maps.

    Args:
        network: at an image's shape.
        outputs: of `OUTPUTS`.
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
    """What the map's part takes of a block of images.

    Args:
        plan: of the map.
        inputs: `(n, ...)` of the map.
        signals: `(n, rows, ...)`, derivatives of the outputs by what the map gives; of `trace` divided by sqrt(c).
    """
    n, one = len(inputs), plan.map
    if one.repeats:
        # All repetitions in one axis after the images.
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
    """One row of signals for all outputs, which products are the same of.

    Args:
        signals: `(n, c, m)`, of every output: multiples of one by the readout's weights.
        readout: `(m, c)` of the weights.
    """
    size = jnp.sqrt(jnp.sum(readout**2, axis=1, keepdims=True))
    return jnp.einsum("ncm,mc->nm", signals, readout / jnp.where(size > 0, size, 1.0))[:, None]


def contribution(plan: MapPlan, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> Any:
    """The map's part of the kernel of two blocks of images, `(n1, n2)`, or `(n1, n2, c, c)` if full."""
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
    """The sum over pixels of what each one's weights add."""
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
    """One row image with a group of columns at a time: intermediates of about `_PAIR_BYTES`."""
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
    own = jnp.tensordot(h, others, axes=(-1, -1))  # pixels of the one image, others, pixels of the others
    # Both images are shifted equally: the same tap along both pairs of axes.
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
