"""Random networks of finite width for any architecture, whose kernels approach the infinitely wide one's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from brute_force import output_extent

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "abs": jnp.abs,
    "identity": lambda x: x,
}


def empirical_kernels(spec, x, count, seed=0):
    """Both kernels of random networks, `(count, n, n)` each; the last layer must be dense with one feature.

    The NNGP is the covariance of the outputs given all layers but the last, whose weights are integrated over exactly. Numbers are
    drawn by NumPy: JAX takes longer to compile its generator than the network.
    """
    *layers, readout = spec
    normals, rates = Network.recorded(spec, x)

    def output(parameters, masks, image):
        network = Network(parameters, [mask[None] for mask in masks])
        hidden = network.run(layers, image[None])
        return network.run([readout], hidden)[0, 0], hidden[0]

    @jax.jit
    def kernels(parameters, masks):
        gradients, hidden = jax.vmap(jax.grad(output, has_aux=True), (None, 0, 0))(parameters, masks, x)
        flat = [leaf.reshape(len(x), -1) for leaf in gradients]
        bias = 0.0 if readout["b_std"] is None else readout["b_std"] ** 2
        nngp = readout["w_std"] ** 2 * hidden @ hidden.T / hidden.shape[1] + bias
        return nngp, sum(leaf @ leaf.T for leaf in flat)

    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        parameters = [scale * rng.standard_normal(shape, np.float32) for shape, scale in normals]
        masks = [(rng.random((len(x), *shape), np.float32) < rate).astype(np.float32) for shape, rate in rates]
        made.append(kernels(parameters, masks))
    return tuple(np.array(kernel, np.float64) for kernel in zip(*made, strict=True))


class Network:
    """Takes its weights and masks in the order in which layers ask for them."""

    def __init__(self, parameters, masks):
        self._parameters, self._masks = iter(parameters), iter(masks)

    @classmethod
    def recorded(cls, spec, x):
        """Shapes of all weights with their standard deviations, and of one image's masks with their rates."""
        network, normals, rates = cls([], []), [], []

        def parameter(shape, scale):
            normals.append((shape, scale))
            return jnp.zeros(shape)

        def mask(shape, rate):
            rates.append((shape, rate))
            return jnp.zeros(shape)

        network.parameter, network.mask = parameter, mask
        jax.eval_shape(lambda image: network.run(spec, image[None]), x[0])
        return normals, rates

    def parameter(self, shape, scale):
        """Normal weights with a standard deviation of their own."""
        del scale
        made = next(self._parameters)
        assert made.shape == tuple(shape)
        return made

    def mask(self, shape, rate):
        """Ones with the probability `rate`, independent for every image, pixel and channel."""
        del shape, rate
        return next(self._masks)

    def run(self, layers, x):
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def _layer(self, layer, x):
        op = layer["op"]
        if op in ACTIVATIONS:
            return ACTIVATIONS[op](x)
        if op == "flatten":
            return x.reshape(len(x), -1)
        if op == "residual_sum":
            return sum(self.run(branch, x) for branch in layer["branches"])
        if op in ("global_avg_pool", "global_sum_pool"):
            return x.mean(axis=(1, 2)) if "avg" in op else x.sum(axis=(1, 2))
        if op == "layer_norm":
            axes = tuple(layer["axis"])
            mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
            return (x - mean) / jnp.sqrt(variance + layer["eps"])
        if op == "dropout":
            return x * self.mask(x.shape[1:], layer["rate"]) / layer["rate"]
        if op == "dense":
            return self._linear(layer, x, lambda x, w: x @ w, (x.shape[-1], layer["features"]), x.shape[-1])
        if op == "conv":
            shape = (*layer["filter"], x.shape[-1], layer["features"])
            padded = pad(x, layer["filter"], layer["strides"], layer["padding"])
            return self._linear(layer, padded, convolve(layer["strides"]), shape, math.prod(shape[:3]))
        if op in ("avg_pool", "sum_pool"):
            return pooled(layer, x)
        assert op == "global_self_attention"
        return self._attention(layer, x)

    def _linear(self, layer, x, apply, shape, fan_in):
        w_std, b_std = layer["w_std"], layer["b_std"]
        ntk = layer["parameterization"] == "ntk"
        scale = w_std / math.sqrt(fan_in)
        made = apply(x, self.parameter(shape, 1.0 if ntk else scale)) * (scale if ntk else 1.0)
        if b_std is None:
            return made
        bias = self.parameter((shape[-1],), 1.0 if ntk else b_std)
        return made + (b_std if ntk else 1.0) * bias

    def _attention(self, layer, x):
        """Queries and keys share weights, scores are divided by their number (the linear scaling of arXiv:2006.10540)."""
        n, h, w, channels = x.shape
        pixels = x.reshape(n, h * w, channels)
        heads, keys, values = layer["n_heads"], layer["n_chan_key"], layer["n_chan_val"]
        shared = self.parameter((heads, channels, keys), 1.0) / math.sqrt(channels)
        projected = jnp.einsum("npc,hck->nhpk", pixels, shared)
        scores = jnp.einsum("nhpk,nhqk->nhpq", projected, projected) / keys
        scores = scores * (layer["w_query_std"] * layer["w_key_std"])
        mechanism = {"SOFTMAX": jax.nn.softmax, "IDENTITY": lambda s: s, "RELU": jax.nn.relu}[layer["mechanism"]]
        value = self.parameter((heads, channels, values), 1.0) * (layer["w_value_std"] / math.sqrt(channels))
        mixed = jnp.einsum("nhpq,nqc,hcv->nphv", mechanism(scores), pixels, value)
        out = self.parameter((heads, values, layer["n_chan_out"]), 1.0) * (
            layer["w_out_std"] / math.sqrt(heads * values)
        )
        made = jnp.einsum("nphv,hvo->npo", mixed, out).reshape(n, h, w, -1)
        if layer["b_std"] is None:
            return made
        return made + layer["b_std"] * self.parameter((layer["n_chan_out"],), 1.0)


def pad(x, size, strides, padding):
    """Zeros, or the other end of the image, where windows reach beyond it."""
    widths = [(0, 0)]
    if padding == "VALID":
        return x
    for extent, f, s in zip(x.shape[1:3], size, strides, strict=True):
        total = max((output_extent(extent, f, s, padding) - 1) * s + f - extent, 0)
        widths.append((total // 2, total - total // 2))
    return jnp.pad(x, [*widths, (0, 0)], mode="wrap" if padding == "CIRCULAR" else "constant")


def convolve(strides):
    def apply(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return apply


def pooled(layer, x):
    """Sums over windows of the padded image, divided as the layer says."""
    size, strides, padding = layer["window"], layer["strides"], layer["padding"]

    def total(x):
        padded = pad(x, size, strides, padding)
        return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, *size, 1), (1, *strides, 1), "VALID")

    if layer["op"] == "sum_pool":
        return total(x)
    return total(x) / (total(jnp.ones_like(x)) if layer["normalize_edges"] else math.prod(size))
