"""A finite network from the spec of an infinite one: the shapes of its weights, and its forward pass.

In the parameterisation `ntk`, weights and biases have unit variance and are multiplied by w_std / sqrt(fan_in) and
b_std in the pass. In `standard`, these factors are part of the weights. All weights belong to linear maps `z = scale *
(h lin W) + bias_scale * b`: dense layers, convolutions, and the three weight products of an attention. The pass can
return the input `h` of every map and add a perturbation to `z`; the gradient by W follows from both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.activations import activation
from ntkpipe.finite.maps import Given, Recorder, arrays_of
from ntkpipe.finite.weighted import attention, conv, conv_local, conv_transpose, dense
from ntkpipe.finite.windows import (
    global_pool,
    normalised,
    pool,
    resized,
)
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.images import as_images
from ntkpipe.kernels.layers.mask import factors
from ntkpipe.kernels.parameters import ACTIVATIONS
from ntkpipe.kernels.sequences import masked_spec, split_ends
from ntkpipe.kernels.spec import HasSpec, Spec, canonical_json, canonical_spec, inner_lists, name_layer
from ntkpipe.kernels.state import Array

Weights = Sequence[tuple[Any, Any]]
"""One `(W, b)` for every layer that has weights, in the order of the layers; b is None without a bias.

- Dense layer: W is (in, out).
- Convolution, also transposed: W is (height, width, in, out).
- Locally connected layer: W is (output height, output width, height x width x in, out), b is (output height, output
  width, out).
- Attention: W is a list of three arrays: queries and keys (heads, channels, keys), values (heads, channels, values),
  readout (heads, values, channels out). Positional embeddings (pixels, channels) come before them.

Branches follow one another. Layers within `repeat` have the repetitions as additional first axes of W and b.
"""

_WEIGHTED = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "conv_local": conv_local,
    "global_self_attention": attention,
    "masked_attention": attention,
}

# Layers that map each number to one number.
_ELEMENTWISE = (*ACTIVATIONS, "dropout")

# Batch statistics couple the images of a batch, so a single image has no Jacobian of its own.
_BATCHED = ("batch_norm", "batchnorm", "batch_normalization")


class Network:
    """A finite network for images of one shape. Create it with `network`.

    Args:
        spec: canonical list of layers.
        shape: shape of one image, `(height, width, channels)` or `(features,)`.

    Raises:
        ConfigError: if a layer has no finite form or does not accept images of this shape; the message names it.
    """

    def __init__(self, spec: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
        self.spec, self.shape = spec, shape
        recorder = Recorder()
        made = jax.eval_shape(
            lambda x: _run(spec, x, recorder, ""), jax.ShapeDtypeStruct((1, *shape), np.dtype("float32"))
        )
        if len(made.shape) != 2:
            raise ConfigError(
                f"the network ends with an image of shape {list(made.shape[1:])}, not with one row of outputs: end it with "
                '{"op": "flatten"} or {"op": "global_avg_pool"}, and {"op": "dense"}'
            )
        self.outputs = int(made.shape[1])
        self.maps, self.masks = tuple(recorder.maps), tuple(recorder.masks)
        self.inputs, self.signals = tuple(recorder.inputs), tuple(recorder.signals)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(m.parameters for m in self.maps)

    @property
    def has_readout(self) -> bool:
        """Whether the last layer is dense. Given all other layers, the outputs are then Gaussian."""
        return self.spec[-1]["op"] == "dense"

    @property
    def last_hidden(self) -> int | None:
        """Index of the dense layer that only nonlinearities separate from a dense readout; None if there is none."""
        before = len(self.spec) - 2
        while before >= 0 and self.spec[before]["op"] in _ELEMENTWISE:
            before -= 1
        dense = self.has_readout and before >= 0 and self.spec[before]["op"] == "dense"
        return len(self.maps) - 2 if dense else None

    def forward(
        self, weights: Any, x: Any, masks: Any = (), shifts: Any = None, lengths: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the outputs `(n, c)` and the input of every linear map. It is traceable by JAX and checks nothing.

        Args:
            weights: weights of the network.
            x: images. Sequences of different lengths have zeros after their ends.
            masks: dropout masks.
            shifts: perturbations that are added to the outputs of the linear maps.
            lengths: `(n,)` lengths of sequences; None if all are complete.
        """
        given = Given(self.maps, weights, masks, shifts, lengths)
        spec = self.spec if lengths is None else masked_spec(self.spec, self.shape[0])
        return _run(spec, x, given, ""), given.inputs

    def split_ends(self, x: Any) -> tuple[Any, Any]:
        """Return the result of `sequences.split_ends`; inside JAX transformations all sequences count as complete."""
        return (x, None) if isinstance(x, Tracer) else split_ends(x, self.spec)

    def shapes(self) -> list[tuple[str, tuple[tuple[int, ...], ...], tuple[int, ...] | None]]:
        """Return for every entry of the weights its layer, the shapes of W (three for attention), and the shape of b or
        None.
        """
        made: list[tuple[str, tuple[tuple[int, ...], ...], tuple[int, ...] | None]] = []
        for entry in range(1 + max((m.entry for m in self.maps), default=-1)):
            maps = [m for m in self.maps if m.entry == entry]
            made.append((maps[0].layer, tuple(m.shapes[0] for m in maps), maps[-1].shapes[1]))
        return made

    def describe_weights(self) -> str:
        """Return the shapes of all weights as text, one line per layer."""
        rows = [
            f"  {n}: {layer}: W {' and '.join(map(str, shapes))}, b {bias}"
            for n, (layer, shapes, bias) in enumerate(self.shapes())
        ]
        return "\n".join(rows)

    def check_weights(self, weights: Any, dtype: Any) -> list[tuple[Any, Any]]:
        """Check the weights and return them in `dtype`.

        Raises:
            DataError: if their number or a shape is wrong (the message lists the right ones), or one is not finite.
        """
        shapes = self.shapes()
        try:
            pairs = [tuple(entry) for entry in weights]
        except TypeError:
            pairs = []
        if len(pairs) != len(shapes) or any(len(pair) != 2 for pair in pairs):
            raise DataError(
                f"weights must be a list of {len(shapes)} pairs (W, b), got {_kind(weights)}:\n{self.describe_weights()}"
            )
        made = []
        for n, ((w, b), (layer, right, bias)) in enumerate(zip(pairs, shapes, strict=True)):
            found = [_checked(a, f"weights[{n}] of {layer}", dtype) for a in (arrays_of(w) if len(right) > 1 else (w,))]
            offset = None if b is None else _checked(b, f"the bias of weights[{n}] of {layer}", dtype)
            got = [tuple(a.shape) for a in found], None if offset is None else tuple(offset.shape)
            if got != (list(right), bias):
                text = f"W {' and '.join(map(str, got[0]))} and b {got[1]}"
                raise DataError(f"weights[{n}] of {layer} has {text}; required are\n{self.describe_weights()}")
            made.append((found[0] if len(right) == 1 else tuple(found), offset))
        return made

    def check_masks(self, masks: Sequence[Any] | None, n: int, dtype: Any) -> list[Any]:
        """Check the dropout masks of `n` images and return them in `dtype`.

        Raises:
            ConfigError: if there are none but the network has dropout.
            DataError: if their number or a shape is wrong.
        """
        right = [(n, *shape) for shape, _ in self.masks]
        if masks is None and right:
            raise ConfigError(
                "dropout with a rate below 1 multiplies activations by random masks: give masks=finite.draw_masks(...), take "
                "finite.monte_carlo_kernel, or set rate to 1"
            )
        made = [jnp.asarray(m, dtype) for m in masks or ()]
        if [tuple(m.shape) for m in made] != right:
            raise DataError(f"masks must have the shapes {right}, got {[tuple(m.shape) for m in made]}")
        return made


def _kind(weights: Any) -> str:
    return f"{len(weights)} entries" if isinstance(weights, (list, tuple)) else type(weights).__name__


def _checked(array: Any, name: str, dtype: Any) -> jax.Array:
    if isinstance(array, Tracer):  # within jax.grad, jax.jit or jax.vmap its values are not known yet
        return array.astype(dtype)
    try:
        host = np.asarray(array)
    except ValueError:
        raise DataError(f"{name} must be one array, got {type(array).__name__}") from None
    if host.dtype.kind not in "fiu":
        raise DataError(f"{name} must be an array of real numbers, got {host.dtype}")
    if not np.isfinite(host).all():
        raise DataError(f"{name} holds {int((~np.isfinite(host)).sum())} non-finite values")
    return jnp.asarray(host, dtype)


def network(spec: Spec, shape: Sequence[int]) -> Network:
    """Return the network of a spec or an `Architecture` for images of one shape; equal arguments give the same object.

    Raises:
        ConfigError: if a layer is unknown, has no finite form, or does not accept images of this shape.
    """
    shape = tuple(int(size) for size in shape)
    if len(shape) not in (1, 3, 4) or min(shape) < 1:
        raise ConfigError(
            f"images of shape {list(shape)} must be [height, width, channels], [depth, height, width, channels] or [features]"
        )
    _refuse_batches(spec.to_spec() if isinstance(spec, HasSpec) else spec)
    return _network(canonical_json(spec), shape)


def _refuse_batches(layers: Any) -> None:
    for index, layer in enumerate(layers if isinstance(layers, (list, tuple)) else ()):
        if isinstance(layer, Mapping) and layer.get("op") in _BATCHED:
            raise ConfigError(
                f"{name_layer(index, layer)}: batch statistics mix the images of a batch, so an image has no separate "
                "Jacobian: use layer_norm"
            )
        if isinstance(layer, Mapping):
            for inner in inner_lists(layer):
                _refuse_batches(inner)


@lru_cache(maxsize=64)
def _network(text: str, shape: tuple[int, ...]) -> Network:
    return Network(canonical_spec(json.loads(text)), shape)


def as_inputs(name: str, x: Any, layout: str | None) -> Any:
    """Return images in the standard layout.

    Raises:
        DataError: if they are not float32 or float64, or have a wrong shape.
    """
    if not isinstance(x, (np.ndarray, jax.Array)) or x.dtype not in (np.float32, np.float64):
        kind = getattr(x, "dtype", type(x).__name__)
        raise DataError(f"{name} must be an array of float32 or float64, the dtype of the computation, got {kind}")
    return as_images(name, x, layout)


def apply(
    spec: Spec, weights: Weights, x: Array, *, masks: Sequence[Any] | None = None, layout: str | None = None
) -> Float[Array, "n c"]:
    """Return the outputs of one finite network.

    With `x` and the weights as JAX arrays, it supports `jax.grad`, `jax.jit` and `jax.vmap`.

    Args:
        spec: list of layers, as in `Architecture.from_spec`.
        weights: see `Weights`.
        x: `(n, height, width, channels)`, `(n, height, width)` or `(n, features)`, float32 or float64. Its dtype is the
            dtype of the computation. Sequences may have NaN after their ends.
        masks: dropout masks, see `draw_masks`.
        layout: order of four axes, `NHWC` or `NCHW`.

    Returns:
        The outputs `(n, c)`: a NumPy array if `x` is one, else a JAX array.

    Raises:
        ConfigError: if a layer has no finite form or does not accept images of this shape; the message names it.
        DataError: if the images or the weights have the wrong shape or type, or a weight is not finite.
    """
    x = as_inputs("x", x, layout)
    made = network(spec, x.shape[1:])
    with precision_context(x.dtype):
        given = made.check_weights(weights, x.dtype)
        dropped = made.check_masks(masks, len(x), x.dtype)
        inputs, lengths = made.split_ends(x)
        outputs = _forward(canonical_json(spec), tuple(x.shape[1:]))(given, jnp.asarray(inputs), dropped, lengths)
    return outputs if isinstance(x, jax.Array) else np.asarray(outputs)


@lru_cache(maxsize=64)
def _forward(text: str, shape: tuple[int, ...]) -> Callable[..., Any]:
    made = _network(text, shape)

    @jax.jit
    def run(weights: Any, x: Any, masks: Any, lengths: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return made.forward(weights, x, masks, lengths=lengths)[0]

    return run


def _run(layers: Sequence[Mapping[str, Any]], x: Any, source: Any, place: str) -> Any:
    for index, layer in enumerate(layers):
        name = place + name_layer(index, layer)
        try:
            x = _layer(layer, x, source, name)
        except _PlacedError:
            raise
        except ConfigError as error:
            raise _PlacedError(f"{name} {error}") from None
    return x


class _PlacedError(ConfigError):
    """An error whose message begins with the position of the layer."""


def _layer(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    op = layer["op"]
    if op in ACTIVATIONS:
        return activation(layer)(x)
    if op == "stationary":
        raise ConfigError("is a kernel without a network, so it has no finite form: leave it out")
    if op == "flatten":
        return x.reshape(x.shape[0], -1)
    if "branches" in layer:
        return _joined(layer, x, source, name)
    if op == "mask":
        made = factors(layer["windows"], layer["power"], source.lengths, x.shape[1], x.dtype)
        return x * made[:, :, None, None]
    if op == "repeat":
        return _repeat(layer, x, source, name)
    if op == "layer_norm":
        return normalised(layer, x)
    if op == "dropout":
        return x if layer["rate"] == 1.0 else x * source.mask(x.shape[1:], layer["rate"]) / layer["rate"]
    if op == "dense":
        if x.ndim != 2:
            raise ConfigError(
                f'acts on flat activations, got images of shape {list(x.shape[1:])}: put {{"op": "flatten"}} or '
                '{"op": "global_avg_pool"} first'
            )
        return dense(layer, x, source, name)
    if x.ndim not in (4, 5):
        raise ConfigError("acts on images [height, width, channels], but activations are flat here")
    if op in _WEIGHTED:
        return _WEIGHTED[op](layer, x, source, name)
    if op == "resize":
        return resized(layer, x)
    if op in ("global_avg_pool", "global_sum_pool"):
        return global_pool(layer, x)
    if op in ("avg_pool", "sum_pool"):
        return pool(layer, x)
    raise AssertionError(op)


def _joined(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    made = [_run(branch, x, source, f"{name}, branch {n}, ") for n, branch in enumerate(layer["branches"])]
    op = layer["op"]
    if len({one.shape[:-1] if op == "fan_in_concat" else one.shape for one in made}) > 1:
        shapes = " and ".join(str(list(one.shape[1:])) for one in made)
        verb = {"residual_sum": "adds", "fan_in_concat": "puts side by side", "fan_in_product": "multiplies"}[op]
        same = "strides" if op == "fan_in_concat" else "features and strides"
        raise ConfigError(f"{verb} branches of different shapes, {shapes}: give them the same {same}")
    if op == "residual_sum":
        return sum(made[1:], start=made[0])
    if op == "fan_in_product":
        return math.prod(made[1:], start=made[0])
    if layer["fractions"] is not None:  # as if the branches had so many of all channels
        widths = [one.shape[-1] for one in made]
        shares = zip(layer["fractions"], widths, strict=True)
        scales = [math.sqrt(fraction * sum(widths) / width) for fraction, width in shares]
        made = [scale * one for scale, one in zip(scales, made, strict=True)]
    return jnp.concatenate(made, axis=-1)


def _repeat(layer: Mapping[str, Any], x: Any, source: Any, name: str) -> Any:
    def once(x: Any, source: Any) -> Any:
        made = _run(layer["layers"], x, source, f"{name}, ")
        if made.shape != x.shape:
            raise ConfigError(
                f"repeats layers that make {list(made.shape[1:])} of {list(x.shape[1:])}: in a finite network their "
                "output must have the shape and features of their input. Put a layer with these features before"
            )
        return made

    return source.repeat(once, x, layer["times"])
