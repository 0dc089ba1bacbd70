"""Layers of finite networks with weights. A source (see `maps`) computes every product with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntkpipe.finite.windows import convolve, pad, patches, window_outputs, with_gaps
from ntkpipe.kernels.layers.mask import factors
from ntkpipe.kernels.parameters import acting_filter
from ntkpipe.kernels.registry import positional_embedding


def dense(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    """Return the output of a dense layer for flat activations, `(n, features)`."""
    source.begin()
    shape = (x.shape[-1], layer["features"])
    return source.linear(_product, x, layer=name, shape=shape, fan_in=shape[0], **_scales(layer))


def _product(x: Any, w: Any) -> Any:
    return x @ w


def _scales(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: layer[name] for name in ("w_std", "b_std", "parameterization")}


def conv(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    """Return the output of a convolution of images or volumes."""
    size, strides, padding = acting_filter(layer), tuple(layer["strides"]), layer["padding"]
    window_outputs(x.shape[1:-1], size, strides, padding)
    shape = (*size, x.shape[-1], layer["features"])
    source.begin()

    def product(x: Any, w: Any) -> Any:
        return convolve(pad(x, size, strides, padding), w, strides)

    window = {"filter": size, "strides": strides, "padding": padding}
    return source.linear(product, x, layer=name, shape=shape, fan_in=math.prod(shape[:-1]), **window, **_scales(layer))


def conv_transpose(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    """Return the output of a transposed convolution, which is a convolution of images with gaps between pixels."""
    height, width = layer["filter"]
    x = with_gaps(x, (height, width), layer["strides"], layer["padding"])
    shape = (height, width, x.shape[-1], layer["features"])
    source.begin()

    def product(x: Any, w: Any) -> Any:
        return convolve(x, w, (1, 1))

    window = {"filter": (height, width), "strides": (1, 1), "padding": "VALID"}
    return source.linear(product, x, layer=name, shape=shape, fan_in=math.prod(shape[:3]), **window, **_scales(layer))


def conv_local(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    """Return the output of a convolution that has its own weights for every output pixel."""
    size, strides, padding = tuple(layer["filter"]), tuple(layer["strides"]), layer["padding"]
    pixels = window_outputs(x.shape[1:3], size, strides, padding)
    under = jnp.concatenate(patches(pad(x, size, strides, padding), size, strides, pixels), axis=-1)
    fan_in = under.shape[-1]
    source.begin()

    def product(x: Any, w: Any) -> Any:
        return jnp.einsum("nhwk,hwkf->nhwf", x, w)

    shape = (*pixels, fan_in, layer["features"])
    return source.linear(product, under, layer=name, shape=shape, fan_in=fan_in, pixels=pixels, **_scales(layer))


def attention(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    """Return the output of an attention layer whose queries and keys share their weights.

    The scores are divided by the number of key channels, which is the linear scaling of Hron et al. 2020
    (arXiv:2006.10540).
    """
    n, *spatial, channels = x.shape
    count, h = math.prod(spatial), spatial[0]
    pixels = x.reshape(n, count, channels)
    heads, keys, values = layer["n_heads"], layer["n_chan_key"], layer["n_chan_val"]
    features = layer["n_chan_out"]
    source.begin()

    def to_heads(x: Any, w: Any) -> Any:
        """Return the product of `(n, p, channels)` and `(heads, channels, k)` as `(n, p, heads k)`."""
        return jnp.einsum("npc,hck->nphk", x, w).reshape(*x.shape[:2], -1)

    def from_heads(x: Any, w: Any) -> Any:
        return x @ w.reshape(-1, features)

    def linear(product: Any, x: Any, shape: tuple[int, ...], fan_in: int, w_std: float, b_std: float | None) -> Any:
        return source.linear(product, x, layer=name, shape=shape, fan_in=fan_in, w_std=w_std, b_std=b_std)

    placed, of_values = _placed(layer, pixels, tuple(spatial), linear)
    shared = linear(to_heads, placed, (heads, placed.shape[-1], keys), placed.shape[-1], 1.0, None)
    shared = shared.reshape(n, count, heads, keys)
    scores = jnp.einsum("nphk,nqhk->nhpq", shared, shared) * (layer["w_query_std"] * layer["w_key_std"] / keys)
    if layer["op"] == "masked_attention" and layer["mechanism"] == "SOFTMAX":
        inside = jnp.repeat(factors(layer["windows"], 0.0, source.lengths, h, x.dtype), count // h, axis=1)
        scores = jnp.where(inside[:, None, None, :] > 0, scores, -jnp.inf)
    mechanism = {"SOFTMAX": jax.nn.softmax, "IDENTITY": lambda s: s, "RELU": jax.nn.relu, "ABS": jnp.abs}[
        layer["mechanism"]
    ]
    width = of_values.shape[-1]
    value = linear(to_heads, of_values, (heads, width, values), width, layer["w_value_std"], None)
    mixed = jnp.einsum("nhpq,nqhv->nphv", mechanism(scores), value.reshape(n, count, heads, values))
    mixed = mixed.reshape(n, count, heads * values)
    made = linear(from_heads, mixed, (heads, values, features), heads * values, layer["w_out_std"], layer["b_std"])
    return made.reshape(n, *spatial, features)


def _placed(
    layer: Mapping[str, Any], pixels: Any, spatial: tuple[int, ...], linear: Callable[..., Any]
) -> tuple[Any, Any]:
    """Return the inputs of keys and queries, and the inputs of values, `(n, p, channels)` each.

    Both are pixels, with positional embeddings where the layer asks for them.
    """
    positions = positional_embedding(layer)
    if positions is None:
        return pixels, pixels
    channels = pixels.shape[-1] if positions.channels is None else positions.channels
    count = math.prod(spatial)
    root = jnp.broadcast_to(jnp.asarray(positions.root(spatial), pixels.dtype), (len(pixels), count, count))

    def embed(x: Any, w: Any) -> Any:
        return jnp.einsum("npq,qc->npc", x, w)

    embeddings = linear(embed, root, (count, channels), 1, positions.std, None)
    placed = jnp.concatenate([pixels, embeddings], axis=-1) if positions.concat else pixels + embeddings
    return placed, placed if positions.in_values else pixels
