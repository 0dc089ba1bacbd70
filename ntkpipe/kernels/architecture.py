"""`Architecture`, an infinitely wide network: it applies layers one after another to the covariances of images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.evaluation import flat, host, self_pairs, spatial
from ntkpipe.kernels.evaluation.fold import PerImageFeatures
from ntkpipe.kernels.evaluation.mapping import map_covariances
from ntkpipe.kernels.evaluation.prepared import Prepared, along
from ntkpipe.kernels.evaluation.readouts import share
from ntkpipe.kernels.evaluation.resolve import Step, resolve, with_features
from ntkpipe.kernels.images import as_images, as_planes, check_blocks
from ntkpipe.kernels.layers.linear import Flatten
from ntkpipe.kernels.layers.residual import PlaceError, signatures
from ntkpipe.kernels.places import check_any_shape, located
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.sequences import check_lengths, filled_to_flatten, lengths_of, masked_spec
from ntkpipe.kernels.spec import canonical_spec, fingerprint, is_deep
from ntkpipe.kernels.state import Array, Kernels, Layer, Signature


class Architecture:
    """An infinitely wide network. Calling it returns the NNGP covariance and the neural tangent kernel of image pairs.

    Create one with `from_spec` or a function of `ntkpipe.zoo`. Architectures are immutable, and those with equal layers
    share their compiled programs.
    """

    def __init__(
        self, specs: Sequence[list[dict[str, Any]]], networks: Sequence[tuple[Layer, ...]], *, has_masks: bool = False
    ) -> None:
        deepest = max(range(len(networks)), key=lambda k: len(networks[k]))
        self._spec, self._layers = specs[deepest], networks[deepest]
        self._networks = tuple(zip(specs, networks, strict=True))
        self._tapped, self._order = share(networks)
        self._deepest = self._order.index(max(self._order))
        self._has_masks = has_masks
        self._masked: dict[tuple[int, ...], tuple[Architecture, ...]] = {}

    @classmethod
    def from_spec(cls, layers: Sequence[Mapping[str, Any]]) -> Architecture:
        """Build the network that a list of layers describes.

        Args:
            layers: one mapping per layer, such as `[{"op": "flatten"}, {"op": "dense", "features": 512, "w_std": 1.4,
                "b_std": 0.1}]`.

        Raises:
            ConfigError: if a layer is unknown, misses a parameter, or has no formula for its input. The message names
                the layer by its position and op.
        """
        return cls.sharing([layers])

    @classmethod
    def sharing(cls, specs: Sequence[Sequence[Mapping[str, Any]]]) -> Architecture:
        """Build several networks that share their first layers, such as one family at several depths.

        `tiles` and `diagonals` return the kernels of all networks, in the given order. This costs little more than the
        deepest network alone. All other methods and attributes are those of the deepest network.

        Args:
            specs: one list of layers per network.

        Raises:
            ConfigError: as in `from_spec`, or if the networks differ in more than depth and readout.
        """
        canonical = [canonical_spec(layers) for layers in specs]
        made = cls(canonical, [tuple(build_layer(layer) for layer in spec) for spec in canonical])
        for spec, layers in made._networks:
            check_any_shape(spec, layers)
        return made

    def to_spec(self) -> list[dict[str, Any]]:
        """Return the canonical list of layers, with every parameter stated."""
        return copy.deepcopy(self._spec)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical spec and the version of the formulas. Equal fingerprints mean equal kernels."""
        return fingerprint(self._spec)

    def __repr__(self) -> str:
        return f"Architecture({', '.join(layer['op'] for layer in self._spec)})"

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Check that all layers accept images of this shape.

        Args:
            shape: shape of one image: `(height, width, channels)`, `(depth, height, width, channels)` or `(features,)`.

        Raises:
            ConfigError: if a layer does not accept them; the message names the layer.
        """
        self.steps(tuple(shape))

    def steps(self, shape: tuple[int, ...], *, own: bool = False, plain: bool = True) -> tuple[Step, ...]:
        """Return each layer with its incoming and outgoing signatures, for images of this shape.

        Args:
            shape: shape of one image, as in `check_input`.
            own: resolve for images paired with themselves, where variances are needed too.
            plain: leave out the taps at which shallower networks leave.

        Raises:
            ConfigError: if a layer does not accept images of this shape; the message names the layer.
        """
        if len(shape) not in (1, 3, 4) or min(shape) < 1:
            raise ConfigError(
                f"images of shape {list(shape)} must be [height, width, channels], [depth, height, width, channels] or [features]"
            )
        start = Signature.of_shape(shape)
        for spec, layers in self._networks:
            try:
                last = signatures(layers, start)[-1]
            except PlaceError as error:
                raise ConfigError(located(error, spec)) from None
            if last.spatial:
                raise ConfigError(
                    f"the network ends with an image of {list(last.spatial)} pixels, not with one output: end it with "
                    '{"op": "flatten"} or {"op": "global_avg_pool"}, and {"op": "dense"}'
                )
        return resolve(self._layers if plain else self._tapped, start, own=own)

    def __call__(self, x1: Array, x2: Array | None = None, *, layout: str | None = None) -> Kernels:
        """Return the NNGP covariance and the NTK of every pair of images.

        This also works inside `jax.grad`, `jax.jvp` and `jax.jit`. Networks on images then need much more memory,
        because all covariances of a row of pairs are kept. Derivatives at kinks are symmetric: at equal images, the
        derivative of E[phi' phi'] of ReLU is 0.

        Args:
            x1: `(n1, height, width, channels)`, `(n1, height, width)`, `(n1, depth, height, width, channels)` or `(n1,
                features)`, float32 or float64. Its dtype is the dtype of the computation. Sequences of different
                lengths have NaN after their ends (not inside JAX transformations; see `sequences`).
            x2: `(n2, ...)` of the same shape and dtype. None pairs `x1` with itself; the diagonals are then exact and
                the kernels exactly symmetric.
            layout: order of the axes, such as `NHWC` or `NCHW`. None means `NHWC`, and a shape that looks like another
                layout is an error.

        Returns:
            `nngp` and `ntk`, `(n1, n2)` each, of the dtype of `x1`: NumPy arrays if `x1` is one, else JAX arrays.

            In float32 the error relative to `sqrt(k(x, x) k(x', x'))` is about 4e-7, and 7e-6 for the NTK of images at
            an angle of 0.045. Pairs at smaller angles, and nearly opposite pairs, are evaluated again in float64 from
            their difference. Equal images have the kernels of the diagonal, to the last bit, unless the network has
            dropout. Inside JAX transformations nothing is evaluated again: the error of the NTK is then 3e-7 / theta at
            an angle theta, at most 3e-4 per layer.

        Raises:
            ConfigError: if a layer does not accept images of this shape.
            DataError: if the arrays are not float32 or float64, disagree in shape or dtype, or look like another
                layout.
        """
        x1, x2 = as_images("x1", x1, layout), None if x2 is None else as_images("x2", x2, layout)
        self.check_arrays(x1, x2)
        if isinstance(x1, Tracer) or isinstance(x2, Tracer):
            return self.on_device(x1, x2) if self.is_flat(x1.shape[1:]) else self._program(x1, x2)
        as_jax = isinstance(x1, jax.Array)
        convert: Callable[[Any], Array] = jnp.asarray if as_jax else np.asarray
        with precision_context(x1.dtype):
            if as_jax and self.is_flat(x1.shape[1:]) and not host.is_default():
                made = self.on_device(x1, x2)  # the data stays on the device
            else:
                rows = self.prepare(np.asarray(x1))
                made = self.tiles(rows, None if x2 is None else self.prepare(np.asarray(x2)))[self._deepest]
            return Kernels(*map(convert, made))

    def diagonal(self, x: Array, *, layout: str | None = None) -> Kernels:
        """Return both kernels of every image with itself, `(n,)` each.

        They equal the diagonals of `self(x)` to the last bit. The arguments and errors are those of `__call__`.
        """
        x = as_images("x", x, layout)
        self.check_arrays(x, None)
        if isinstance(x, Tracer):
            if not self.is_flat(x.shape[1:]):
                return self_pairs.traced(self.steps(x.shape[1:], own=True, plain=False), x)[0][-1]
            runs = self._flat_runs(x)
            return flat.fold_norms(runs, jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1))[0][-1]
        convert: Callable[[Any], Array] = jnp.asarray if isinstance(x, jax.Array) else np.asarray
        with precision_context(x.dtype):
            made = self.diagonals(np.asarray(x))[self._deepest]
            return Kernels(*map(convert, made))

    def map(self, k: Any, p: Any = None, q: Any = None, *, ntk: Any = None, features: int = 1) -> Kernels:
        """Return both kernels after the layers from covariances instead of images, for networks that do not act on
        pixels.

        The map is elementwise and a JAX function of all its arguments: it supports `jit`, `vmap` and derivatives by the
        covariances. Images `x, x'` of d numbers have `k = x . x' / d`, `p = x . x / d` and `q = x' . x' / d`.

        Args:
            k: covariances of pairs, of any shape, float32 or float64; if `p` is None, variances of points.
            p: variances of the first points, of a shape that broadcasts to that of `k`. None pairs every point with
                itself, with an angle of exactly 0.
            q: variances of the second points, of a shape that broadcasts to that of `k`; None means equal to `p`.
            ntk: neural tangent kernel before the layers, of the shape of `k`; None means 0, as for images.
            features: number of incoming features, which the `standard` parameterisation needs.

        Returns:
            `nngp` and `ntk`, of the shape of `k`: NumPy arrays for NumPy arrays and numbers, else JAX arrays.

        Raises:
            ConfigError: if a layer acts on pixels; the message names it.
            DataError: if the covariances are not float32 or float64, or if `q` is given without `p`.

        Examples:
            >>> relu = Architecture.from_spec([{"op": "dense", "features": 1, "w_std": 2**0.5}, {"op": "relu"}])
            >>> [round(float(kernel), 4) for kernel in relu.map(0.5, 1.0, 1.0)]
            [0.609, 0.3333]
        """
        try:
            return map_covariances(self._layers, k, p, q, ntk, features)
        except PlaceError as error:
            raise ConfigError(located(error, self._spec)) from None

    def prepare(self, x: np.ndarray) -> Prepared:
        """Return the images together with the per-image features that `tiles` needs, computed once.

        Call it within `precision_context(x.dtype)`.

        Args:
            x: `(n, height, width, channels)` or `(n, features)`, float32 or float64.
        """
        x = np.ascontiguousarray(x)
        if self.is_flat(x.shape[1:]):
            return Prepared(filled_to_flatten(x).reshape(len(x), -1), ())
        if lengths_of(x) is not None:
            return Prepared(x, (), tuple(one._seen(x) for one in self._of_sequences(x.shape[1:])))
        return Prepared(x, self._seen(x))

    def _seen(self, x: np.ndarray) -> PerImageFeatures:
        return self_pairs.image_features(self._steps_with_features(x.shape[1:]), as_planes(x), on_cpu=host.is_default())

    def _steps_with_features(self, shape: tuple[int, ...]) -> tuple[Step, ...]:
        """Return the steps for images with themselves, up to the last layer that needs per-image features."""
        layers = with_features(self._layers)
        signature = Signature.of_shape(shape)
        ends = [signature, *signatures(layers, signature)][-1].spatial
        return resolve(layers, signature, wanted=((0,),) * len(ends), own=True)

    def tiles(
        self,
        rows: Prepared,
        columns: Prepared | None,
        *,
        out_dtype: Any = None,
        pad_to: int | None = None,
        pairs: int | None = None,
    ) -> list[Kernels]:
        """Return both kernels of every pair of prepared images as NumPy arrays, for every network.

        Args:
            rows: first images, from `prepare`.
            columns: second images, from `prepare`; None pairs the rows with themselves.
            out_dtype: dtype of the result; None means that of the images.
            pad_to: edge of a full tile; smaller tiles at the border then reuse its compiled programs.
            pairs: number of columns that are evaluated together in a network on images; None chooses it.
        """
        if rows.masked or (columns is not None and columns.masked):
            return self._tiles_of_sequences(rows, columns, out_dtype=out_dtype, pad_to=pad_to, pairs=pairs)
        x, other = rows.images, None if columns is None else columns.images
        dtype = out_dtype or x.dtype
        if self.is_flat(x.shape[1:]):
            runs = self._flat_runs(x)
            if self._is_deep:
                return [_as_dtype(kernels, dtype) for kernels in self._sorted(flat.in_distance_form(runs, x, other))]
            if host.is_default():
                return self._sorted(flat.on_host(runs, x, other, out_dtype=dtype, pad_to=pad_to))
            others = None if columns is None else columns.on_device
            return self._sorted(flat.padded_on_device(runs, rows.on_device, others, out_dtype=dtype, pad_to=pad_to))
        steps, own_steps = (self.steps(x.shape[1:], own=own, plain=False) for own in (False, True))
        made = spatial.tile(steps, own_steps, rows, columns, pad_to=pad_to, pairs=pairs, on_cpu=host.is_default())
        return [_as_dtype(kernels, dtype) for kernels in self._sorted(made)]

    def _tiles_of_sequences(self, rows: Prepared, columns: Prepared | None, **options: Any) -> list[Kernels]:
        """Return the kernels for sequences of different lengths, evaluating one network after the other."""
        networks = self._of_sequences(rows.images.shape[1:])

        def seen(block: Prepared) -> tuple[PerImageFeatures, ...]:
            return block.masked or tuple(one._seen(block.images) for one in networks)

        of_rows = seen(rows)
        of_columns = [None] * len(networks) if columns is None else seen(columns)
        made = []
        for one, row, column in zip(networks, of_rows, of_columns, strict=True):
            other = None if columns is None or column is None else Prepared(columns.images, column)
            made += one.tiles(Prepared(rows.images, row), other, **options)
        return made

    def _of_sequences(self, shape: tuple[int, ...]) -> tuple[Architecture, ...]:
        """Return each network with masks, for sequences in arrays of this shape."""
        if shape not in self._masked:
            specs = [masked_spec(spec, shape[0]) for spec, _ in self._networks]
            self._masked[shape] = tuple(
                Architecture([spec], [tuple(build_layer(layer) for layer in spec)], has_masks=True) for spec in specs
            )
        return self._masked[shape]

    def _check_ends(self, x: Array) -> None:
        """Raise `DataError` if a sequence is shorter than the windows of a network."""
        if not isinstance(x, Tracer) and (lengths := lengths_of(np.asarray(x))) is not None:
            for spec, _ in self._networks:
                check_lengths(lengths, spec, x.shape[1])

    def diagonals(self, x: np.ndarray) -> list[Kernels]:
        """Return both kernels of every image with itself, `(n,)` each, for every network.

        Call it within `precision_context(x.dtype)`.
        """
        if self.is_flat(x.shape[1:]):
            return self._sorted(flat.diagonals(self._flat_runs(x), filled_to_flatten(x)))
        if not self._has_masks and lengths_of(x) is not None:
            return [one.diagonals(x)[0] for one in self._of_sequences(x.shape[1:])]
        steps = self.steps(x.shape[1:], own=True, plain=False)
        return self._sorted(self_pairs.diagonals(steps, as_planes(x), on_cpu=host.is_default()))

    @cached_property
    def _program(self) -> Callable[[Array, Array | None], Kernels]:
        # Without `jit`, gradients would run operation by operation.
        return jax.jit(self._traced)

    def _traced(self, x1: Array, x2: Array | None) -> Kernels:
        """Return the kernels of a network on images inside a JAX transformation."""
        steps = self.steps(x1.shape[1:], plain=False)
        featured_steps = self._steps_with_features(x1.shape[1:])

        def seen(x: Array) -> PerImageFeatures:
            return along(steps, self_pairs.traced(featured_steps, as_planes(x))[1] if featured_steps else ())

        of_rows = seen(x1)
        other, of_columns = (x1, of_rows) if x2 is None else (x2, seen(x2))
        made = spatial.traced(steps, as_planes(jnp.asarray(x1)), of_rows, as_planes(jnp.asarray(other)), of_columns)[-1]
        if x2 is not None:
            return made
        return Kernels(*(flat.symmetric(*pair) for pair in zip(made, self.diagonal(x1), strict=True)))

    def in_distance_form(self, x1: np.ndarray, x2: np.ndarray) -> Kernels:
        """Return both kernels `(n1, n2)` of a flat network in float64, with every pair evaluated from distances.

        This is slower than `__call__`, and accurate even where the layers have made all directions nearly equal.
        Comparing the two shows the accuracy that `__call__` loses.

        Args:
            x1: `(n1, ...)`, images or features.
            x2: `(n2, ...)`, images or features.

        Raises:
            ConfigError: if the network does not flatten its images first.
        """
        if not self.is_flat(x1.shape[1:]):
            raise ConfigError("the distance form needs a network that flattens its images first")
        with precision_context("float64"):
            rows, columns = (x.reshape(len(x), -1).astype(np.float64) for x in (x1, x2))
            return flat.in_distance_form(self._flat_runs(rows), rows, columns)[self._deepest]

    def on_device(self, x1: Array, x2: Array | None) -> Kernels:
        """Return the kernels of a flat network on JAX's default device, or inside a JAX transformation.

        Call it within a `precision_context`.
        """
        return flat.on_device(self._flat_runs(x1), x1, x2)[-1]

    def _flat_runs(self, x: Array) -> list[tuple[Step, ...]]:
        return flat.segments(self._tapped, int(np.prod(x.shape[1:])))

    def _sorted(self, made: Sequence[Kernels]) -> list[Kernels]:
        return [made[k] for k in self._order]

    @cached_property
    def _is_deep(self) -> bool:
        return is_deep(self._spec)

    def is_flat(self, shape: tuple[int, ...]) -> bool:
        """Return whether images of this shape are flattened before any other layer."""
        return len(shape) == 1 or isinstance(self._layers[0], Flatten)

    def check_arrays(self, x1: Array, x2: Array | None) -> None:
        """Check two blocks of images as `__call__` does, with the same errors."""
        check_blocks(x1, x2)
        self.check_input(tuple(x1.shape[1:]))
        for x in (x1,) if x2 is None else (x1, x2):
            self._check_ends(x)


def _as_dtype(kernels: Kernels, dtype: Any) -> Kernels:
    return Kernels(*(np.asarray(kernel).astype(dtype, copy=False) for kernel in kernels))
