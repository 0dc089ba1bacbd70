"""An architecture: a fold of layers over the covariances of images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntkpipe.errors import ConfigError, DataError, ResourceError
from ntkpipe.kernels import host
from ntkpipe.kernels.inner_product import Input, device_products, squared_norms
from ntkpipe.kernels.nonlinear.base import Nonlinearity
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec, fingerprint, name_layer
from ntkpipe.kernels.state import Array, Kernels, KernelState, Layer, Signature


class Architecture:
    """An infinitely wide network; calling it gives the NNGP covariance and the neural tangent kernel of image pairs.

    Make one with `from_spec`. Immutable; what it compiles is shared by all architectures with the same layers.
    """

    def __init__(self, spec: list[dict[str, Any]], layers: tuple[Layer, ...]) -> None:
        self._spec = spec
        self._layers = layers

    @classmethod
    def from_spec(cls, layers: Sequence[Mapping[str, Any]]) -> Architecture:
        """Build the network that a list of layers describes.

        Args:
            layers: such as `[{"op": "flatten"}, {"op": "dense", "features": 512, "w_std": 1.4, "b_std": 0.1}]`.

        Raises:
            ConfigError: if a layer is unknown, misses a parameter, or has no formula for the activations that reach
                it; the text names the layer by its position and op.
        """
        spec = canonical_spec(layers)
        made = cls(spec, tuple(build_layer(layer) for layer in spec))
        made._signature(Signature((), 1))
        return made

    def to_spec(self) -> list[dict[str, Any]]:
        """The canonical list of layers: every parameter stated."""
        return [dict(layer) for layer in self._spec]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical spec and the version of the formulas: equal means equal kernels."""
        return fingerprint(self._spec)

    def __repr__(self) -> str:
        return f"Architecture({', '.join(layer['op'] for layer in self._spec)})"

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Check that images of this shape can pass all layers.

        Args:
            shape: of one image: `(height, width, channels)`, or `(features,)`.

        Raises:
            ConfigError: naming the layer that images of this shape cannot pass.
        """
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ConfigError(f"images of shape {list(shape)} must be [height, width, channels] or [features]")
        self._signature(Signature(tuple(shape[:-1]), shape[-1]))

    def _signature(self, signature: Signature) -> Signature:
        for index, (layer, description) in enumerate(zip(self._layers, self._spec, strict=True)):
            try:
                signature = layer.outgoing(signature)
            except ConfigError as error:
                raise ConfigError(f"{name_layer(index, description)} {error}") from None
        return signature

    def __call__(self, x1: Array, x2: Array | None = None) -> Kernels:
        """Both kernels of every pair of images, from one evaluation.

        Args:
            x1: `(n1, height, width, channels)` or `(n1, features)`, float32 or float64: the dtype of the computation.
            x2: `(n2, ...)` of the same shape and dtype; None pairs `x1` with itself, and the diagonals are then exact
                and the kernels exactly symmetric.

        Returns:
            `nngp` and `ntk`, `(n1, n2)` each, of the dtype of `x1`; NumPy arrays for NumPy arrays, JAX arrays
            otherwise. In float32 the error relative to `sqrt(k(x, x) k(x', x'))` is near 4e-7, except for the NTK of
            images within an angle theta < 1e-3 of each other: there it is near 3e-7 / theta, at most 3e-4 per layer.

        Raises:
            ConfigError: if images of this shape cannot pass a layer.
            DataError: if the arrays are not float32 or float64, or disagree in shape or dtype.
        """
        self.check_arrays(x1, x2)
        if isinstance(x1, Tracer) or isinstance(x2, Tracer):
            return self.on_device(x1, x2)
        as_jax = isinstance(x1, jax.Array)
        with precision_context(x1.dtype):
            evaluate = self.on_host if host.is_default() else self.on_device
            made = evaluate(x1, x2)
            convert: Callable[[Any], Array] = jnp.asarray if as_jax else np.asarray
            return Kernels(convert(made.nngp), convert(made.ntk))

    def diagonal(self, x: Array) -> Kernels:
        """Both kernels of every image with itself, `(n,)` each: the diagonals of `self(x)`, to the last bit."""
        self.check_arrays(x, None)
        if isinstance(x, Tracer):
            return self._fold(jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1), None, None, x[0].size)
        convert: Callable[[Any], Array] = jnp.asarray if isinstance(x, jax.Array) else np.asarray
        with precision_context(x.dtype):
            made = self._diagonal_of_norms(squared_norms(np.asarray(x)), int(np.prod(x.shape[1:])))
            return Kernels(convert(made.nngp), convert(made.ntk))

    def on_host(self, x1: Array, x2: Array | None, *, out_dtype: Any = None, pad_to: int | None = None) -> Kernels:
        """The kernels of NumPy arrays on the CPU; see `host.evaluate`. Call within `precision_context(x1.dtype)`."""
        features = int(np.prod(x1.shape[1:]))
        x1 = np.ascontiguousarray(np.reshape(x1, (len(x1), -1)))
        x2 = None if x2 is None else np.ascontiguousarray(np.reshape(x2, (len(x2), -1)))
        p = squared_norms(x1)
        diagonal = self._diagonal_of_norms(p, features) if x2 is None else None
        q = p if x2 is None else squared_norms(x2)

        def pair_map(products: np.ndarray, p: np.ndarray, q: np.ndarray) -> Kernels:
            return self._fold(products, p[:, None], q[None, :], features)

        nngp, ntk = host.evaluate(pair_map, x1, x2, p, q, out_dtype=out_dtype or x1.dtype, pad_to=pad_to)
        if diagonal is not None:
            np.fill_diagonal(nngp, diagonal.nngp)
            np.fill_diagonal(ntk, diagonal.ntk)
        return Kernels(nngp, ntk)

    def on_device(self, x1: Array, x2: Array | None) -> Kernels:
        """The kernels on JAX's default device, or under tracing; call within `precision_context(x1.dtype)`."""
        features = int(np.prod(x1.shape[1:]))
        x1 = jnp.asarray(x1)
        products, p, q = device_products(x1, x1 if x2 is None else jnp.asarray(x2))
        kernels = self._fold(products, p[:, None], q[None, :], features)
        if x2 is not None:
            return kernels
        diagonal = self._fold(p, None, None, features)
        return Kernels(*(_symmetric(*pair) for pair in zip(kernels, diagonal, strict=True)))

    def _diagonal_of_norms(self, norms: np.ndarray, features: int) -> Kernels:
        # Chunks of one length: one compilation, and the same bits however many images there are.
        n, chunk = len(norms), 1024
        padded = np.zeros(-(-n // chunk) * chunk, norms.dtype)
        padded[:n] = norms
        made = [self._fold(padded[i : i + chunk], None, None, features) for i in range(0, n, chunk)]
        return Kernels(*(np.concatenate([np.asarray(part) for part in parts])[:n] for parts in zip(*made, strict=True)))

    def _fold(self, nngp: Array, p: Array | None, q: Array | None, features: int) -> Kernels:
        """Fold the layers over inner products and squared norms, not yet divided by `features`."""
        arrays: _Arrays = (nngp, None, p, q)
        for layers, signature in self.segments_with_signatures(features):
            arrays = compiled_segment(layers, signature)(*arrays)
        nngp, ntk = arrays[0], arrays[1]
        return Kernels(nngp, jnp.zeros_like(nngp) if ntk is None else ntk)

    def segments_with_signatures(self, features: int) -> list[tuple[tuple[Layer, ...], Signature]]:
        """Runs of layers that end with a nonlinearity, each with what comes in; the last holds what follows it."""
        runs: list[list[Layer]] = [[Input(features)]]
        for layer in self._layers:
            if any(isinstance(previous, Nonlinearity) for previous in runs[-1]):
                runs.append([])
            runs[-1].append(layer)
        if len(runs) > 1 and not any(isinstance(layer, Nonlinearity) for layer in runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
        signature, segments = Signature((), features), []
        for run in runs:
            segments.append((tuple(run), signature))
            for layer in run:
                signature = layer.outgoing(signature)
        return segments

    def check_arrays(self, x1: Array, x2: Array | None) -> None:
        """Check two blocks of images, as `__call__` does; see there for what is raised."""
        for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
            if x.dtype not in (np.float32, np.float64):
                raise DataError(f"{name} has dtype {x.dtype}: convert images to float32 or float64")
            if x.ndim < 2 or x.shape[0] < 1:
                raise DataError(f"{name} has shape {x.shape}: it must be (images, height, width, channels)")
        if x2 is not None and (x1.shape[1:] != x2.shape[1:] or x1.dtype != x2.dtype):
            raise DataError(
                f"x1 and x2 must agree: images of shape {x1.shape[1:]} {x1.dtype} and {x2.shape[1:]} {x2.dtype}"
            )
        self.check_input(tuple(x1.shape[1:]))


_Arrays = tuple[Array, Array | None, Array | None, Array | None]


@lru_cache(maxsize=256)
def compiled_segment(layers: tuple[Layer, ...], signature: Signature) -> Callable[..., _Arrays]:
    """A run of layers as one compiled function of `(nngp, ntk, p, q)`, shared by all networks that contain it.

    One nonlinearity at a time: XLA gives each result a loop of its own that recomputes all before it, whatever
    `optimization_barrier` asks for, so that a network compiled as a whole costs the square of its depth (depth 10,
    float32: 574 ms against 42 ms for a tile of 2048 x 2048). And a network of 100 equal layers compiles three functions.
    """

    def segment(nngp: Array, ntk: Array | None, p: Array | None, q: Array | None) -> _Arrays:
        state = KernelState(nngp, ntk, p, q, signature)
        for layer in layers:
            state = layer(state)
        return state.nngp, state.ntk, state.p, state.q

    return jax.jit(segment)


@jax.jit
def _symmetric(block: jax.Array, diagonal: jax.Array) -> jax.Array:
    """The lower triangle of a square block on both sides of its exact diagonal."""
    row, col = jnp.arange(len(block))[:, None], jnp.arange(len(block))[None, :]
    return jnp.where(row == col, diagonal[:, None], jnp.where(row > col, block, block.T))


def precision_context(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """The JAX context in which arrays of `dtype` stay what they are; the caller's global setting is not touched.

    Raises:
        ResourceError: if the default device has no float64.
    """
    if np.dtype(dtype) != np.float64:
        return contextlib.nullcontext()
    platform = jax.default_backend()
    if platform not in ("cpu", "gpu", "cuda", "rocm"):
        raise ResourceError(f"device {platform} has no float64: set kernel.dtype=float32, or JAX_PLATFORMS=cpu")
    return jax.enable_x64(True)
