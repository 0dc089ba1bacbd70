"""Degrees of the series of nonlinearities without a closed form, and a bound on the truncation error of both kernels.

docs/mathematics.md derives the bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.evaluation.fold import entering, joined, repetitions
from ntkpipe.kernels.evaluation.inner_product import Input
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.images import as_planes
from ntkpipe.kernels.layers.attention import SelfAttention
from ntkpipe.kernels.layers.baseline import Stationary
from ntkpipe.kernels.layers.convolution import Conv
from ntkpipe.kernels.layers.fan_in import FanInProduct
from ntkpipe.kernels.layers.linear import Dense
from ntkpipe.kernels.layers.nonlinear.base import Identity, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.elementwise import Elementwise
from ntkpipe.kernels.layers.normalisation import LayerNorm
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.parameters import LARGEST_DEGREE, USUAL_DEGREE
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.sequences import filled, filled_to_flatten
from ntkpipe.kernels.spec import canonical_spec, inner_lists
from ntkpipe.kernels.state import Array, KernelState, Signature

Spec = Sequence[Mapping[str, Any]]
Place = tuple[int, ...]
"""The place of a layer: its position, followed by the branch and the position in it for layers within a layer."""

# Degrees to try, and the largest truncation error to accept, relative to the root of both images' own values.
_DEGREES = (USUAL_DEGREE, 96, 128, 192, LARGEST_DEGREE)
_ENOUGH = {"float32": 2.0**-24, "float64": 16 * float(np.finfo(np.float64).eps)}
# Number of a layer's variances at which a degree is tried, spread from the smallest to the largest.
_TRIED = 64
# Closed forms lose differences of cosines below this one to rounding, so this one replaces them.
_LEAST_DIFFERENCE = 1e-12


def is_expanded(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer of a canonical spec is expanded in a series."""
    return "nodes" in layer and layer.get("nngp") is None


def expanded_layers(spec: Spec, place: Place = ()) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the place and the settings of every layer of a canonical spec that is a series, also within branches."""
    for index, layer in enumerate(spec):
        if is_expanded(layer):
            yield (*place, index), layer
        for number, branch in enumerate(inner_lists(layer)):
            yield from expanded_layers(branch, (*place, index, number))


def extreme_images(x: np.ndarray, count: int = 4) -> np.ndarray:
    """Return the positions of a few images that span the variances of a block, ascending, `(at most count + 1,)`.

    They are `count` images evenly spaced by norm, from the smallest to the largest, and the image with the largest
    pixel.

    Args:
        x: images, `(n, ...)`.
        count: number of images that are chosen by norm.
    """
    flat = filled(x).reshape(len(x), -1)
    norms = np.einsum("ni,ni->n", flat, flat, dtype=np.float64)
    order = np.argsort(norms, kind="stable")
    chosen = order[np.linspace(0, len(x) - 1, min(count, len(x))).round().astype(int)]
    largest = max(range(len(x)), key=lambda i: float(np.abs(flat[i]).max(initial=0.0)))
    return np.unique([*chosen, largest])


def with_degrees(spec: Spec, images: np.ndarray, dtype: str) -> list[dict[str, Any]]:
    """Return the spec with a degree for every series that states none, chosen for the variances in the network.

    The chosen degree is the smallest of a few whose error bound for both moments, relative to the root of the images'
    own values, is below the rounding error of `dtype` at every variance that the images reach at that layer. If none
    is, it is the largest degree.

    Args:
        spec: layers.
        images: images with the extreme variances, `(n, height, width, channels)` or `(n, features)`; see
            `extreme_images`.
        dtype: dtype of the tiles, `float32` or `float64`.

    Raises:
        ConfigError: if a layer is unknown or does not accept images of this shape.
    """
    made = canonical_spec(spec)
    wanted = [place for place, layer in expanded_layers(made) if layer["degree"] is None]
    if not wanted:
        return made
    with precision_context(np.float64):
        variances: dict[Place, Array] = {}
        _Fold(variances).run(made, images)
        for place in wanted:
            _at(made, place).update(_chosen(_at(made, place), np.asarray(variances[place]), _ENOUGH[dtype]))
    return canonical_spec(made)


def with_half_degrees(spec: Spec) -> list[dict[str, Any]]:
    """Return the spec with half the degree and half the quadrature nodes of every series.

    The difference between its kernels and those of the full spec measures the convergence of both.
    """
    made = canonical_spec(spec)
    for place, layer in list(expanded_layers(made)):
        at = _at(made, place)
        at["degree"] = max((USUAL_DEGREE if layer["degree"] is None else layer["degree"]) // 2, 1)
        at["nodes"] = None
    return canonical_spec(made)


def expansion_error(spec: Spec, images: np.ndarray) -> dict[str, float]:
    """Return a bound on the truncation error of both kernels of any two images, relative to `sqrt(k(x, x) k(x', x'))`.

    The bound is exactly 0 for a network without series, and at most 2, which is the trivial bound. It does not include
    rounding, nor the quadrature error of functions with a kink or jump elsewhere than at 0.

    Args:
        spec: layers; see `with_degrees`.
        images: images as in `with_degrees`, in float64. The bound holds for them. It grows with the variances, so it
            also holds for all images with variances between theirs.

    Returns:
        `{"nngp": ..., "ntk": ...}`.
    """
    made = canonical_spec(spec)
    if not any(True for _ in expanded_layers(made)):
        return {"nngp": 0.0, "ntk": 0.0}
    with precision_context(np.float64):
        own, left = _Fold({}).run(made, images)
        return {
            "nngp": _relative(left.nngp, own.nngp),
            "ntk": 0.0 if own.ntk is None or left.ntk is None else _relative(left.ntk, own.ntk),
        }


def _relative(left: Array, own: Array) -> float:
    left, own = np.asarray(left), np.asarray(own)
    shares = np.divide(left, own, out=np.where(left > 0, np.inf, 0.0), where=own > 0)
    return float(np.minimum(np.nan_to_num(shares, nan=2.0), 2.0).max(initial=0.0))


def _at(spec: list[dict[str, Any]], place: Place) -> dict[str, Any]:
    *inner, last = place
    for index, branch in zip(inner[::2], inner[1::2], strict=True):
        spec = inner_lists(spec[index])[branch]
    return spec[last]


def _chosen(layer: Mapping[str, Any], variances: np.ndarray, enough: float) -> dict[str, int]:
    p = np.unique(variances)
    p = p[np.linspace(0, len(p) - 1, _TRIED).round().astype(int)]
    longest = build_layer(canonical_spec([{**layer, "degree": LARGEST_DEGREE, "nodes": None}])[0])
    assert isinstance(longest, Elementwise)
    degree = USUAL_DEGREE
    for series in longest.expand(p):
        squares = np.square(np.asarray(series.coefficients))
        # The remainder after each degree, summed from the highest powers down so that small terms are not lost.
        left = np.cumsum(squares[::-1], axis=0)[::-1] - squares + np.asarray(series.even**2 + series.odd**2)
        whole = left[0] + squares[0]
        degree = next(
            (d for d in _DEGREES if d >= degree and _relative(2.0 * left[d], whole) <= enough), LARGEST_DEGREE
        )
    return {"degree": degree, "nodes": 2 * degree + 2}


class _Fold:
    """Evaluates the kernels of images with themselves in float64, and a bound on their truncation errors.

    Args:
        variances: receives the variances that reach each nonlinearity, by its place.
    """

    def __init__(self, variances: dict[Place, Array]) -> None:
        self._variances = variances

    def run(self, spec: Spec, images: np.ndarray) -> tuple[KernelState, KernelState]:
        """Return the final state of the kernels and the final state of the bounds on their truncation errors."""
        network = Architecture.from_spec(spec)
        x = np.asarray(images, np.float64)
        x = filled_to_flatten(x) if network.is_flat(x.shape[1:]) else filled(x)
        if network.is_flat(x.shape[1:]):
            x = x.reshape(len(x), -1)
        steps = network.steps(x.shape[1:], own=True)
        signature = steps[0].incoming
        if signature.spatial:
            moved = jnp.moveaxis(jnp.asarray(as_planes(x)), 0, -1)
            nngp = layout.products(moved, moved, signature) / signature.features
        else:
            features = x.shape[1]
            state = KernelState(jnp.asarray((x * x).sum(axis=1)), None, Signature((), features), is_own=True)
            nngp = Input(features)(state, signature).nngp
        own = KernelState(nngp, None, signature, is_own=True)
        return self._fold(steps, own, own.replace(nngp=jnp.zeros_like(nngp)), ())

    def _fold(
        self, steps: Sequence[Step], own: KernelState, left: KernelState, place: Place
    ) -> tuple[KernelState, KernelState]:
        for index, step in enumerate(steps):
            if isinstance(step.layer, Repeat):
                own, left = self._repeat(step, own, left, (*place, index, 0))
                continue
            if step.branches:
                ends = [
                    self._fold(
                        branch, entering(branch, step, own), entering(branch, step, left), (*place, index, number)
                    )
                    for number, branch in enumerate(step.branches)
                ]
                of_own = [end for end, _ in ends]
                left = _joined(of_own, [end for _, end in ends], step)
                own = joined(of_own, step)
                continue
            left = self._left(step, own, left, (*place, index))
            own = step.layer(own, step.outgoing)
        return own, left

    def _see(self, place: Place, variances: Array) -> None:
        before = [self._variances[place]] if place in self._variances else []
        self._variances[place] = jnp.concatenate([*before, jnp.ravel(variances)])

    def _repeat(self, step: Step, own: KernelState, left: KernelState, place: Place) -> tuple[KernelState, KernelState]:
        first, body, more = repetitions(step)
        for branch in first:
            own, left = self._fold(branch, entering(branch, step, own), entering(branch, step, left), place)
        if not more:
            return entering((), step, own), entering((), step, left)

        def both(arrays: Any) -> tuple[KernelState, KernelState]:
            (k, t), (less, of_ntk) = arrays
            return own.replace(nngp=k, ntk=t), left.replace(nngp=less, ntk=of_ntk)

        def once(arrays: Any, _: None) -> tuple[Any, Any]:
            here, less = both(arrays)
            inner = _Fold({})
            after = inner._fold(body, entering(body, step, here), entering(body, step, less), place)
            # Keep only the smallest and the largest variance, because there may be thousands of repetitions.
            ends = {at: jnp.stack([jnp.min(p), jnp.max(p)]) for at, p in inner._variances.items()}
            return tuple((state.nngp, state.ntk) for state in after), ends

        arrays, seen = lax.scan(once, ((own.nngp, own.ntk), (left.nngp, left.ntk)), None, length=more)
        for at, variances in seen.items():
            self._see(at, variances)
        own, left = (state.replace(signature=body[-1].outgoing) for state in both(arrays))
        return entering((), step, own), entering((), step, left)

    def _left(self, step: Step, own: KernelState, left: KernelState, place: Place) -> KernelState:
        layer, outgoing = step.layer, step.outgoing
        if isinstance(layer, Nonlinearity) and not isinstance(layer, Identity):
            self._see(place, _variances(own.nngp, own.signature))
            return _through(layer, own, left).replace(signature=outgoing)
        if isinstance(layer, Dense | Conv):  # the bias has no error
            return dataclasses.replace(layer, b_std=None)(left, outgoing)
        if isinstance(layer, SelfAttention):
            return _attended(layer, own, left, outgoing)
        if isinstance(layer, LayerNorm):
            row, column = layout.own_views(layer, own)
            return layer(left.replace(is_own=False, row=row, column=column), outgoing).replace(
                is_own=True, row=None, column=None
            )
        if isinstance(layer, Stationary):
            # The kernel is completely monotone in the squared distance, so its error is largest at distance 0.
            zero = jnp.zeros_like(left.nngp)
            made = 1.0 - layer.pairs(-jnp.maximum(jnp.max(left.nngp), 0.0) + zero, zero, zero)
            return left.replace(nngp=made, ntk=made, signature=outgoing)
        return layer(left, outgoing)


def _variances(x: Array, signature: Signature) -> Array:
    return layout.variances(x) if signature.spatial else x


def _outer(field: Array, signature: Signature) -> Array:
    """Return the product of a field with itself, at all pairs of pixels."""
    if not signature.spatial:
        return jnp.square(field)
    return layout.spread_row(field) * layout.spread_column(field, signature)


def _through(layer: Nonlinearity, own: KernelState, left: KernelState) -> KernelState:
    signature = own.signature
    p = _variances(own.nngp, signature)
    present = p >= jnp.finfo(p.dtype).tiny
    inverse = jnp.where(present, 1.0 / jnp.sqrt(jnp.where(present, p, 1.0)), 0.0)
    differences = left.nngp * _outer(inverse, signature)  # of cosines
    if isinstance(layer, Elementwise):
        nngp, dot = (
            _outer(jnp.sqrt(2.0 * (f.even**2 + f.odd**2)), signature)
            + _outer(jnp.sqrt(_weighted(f.coefficients)), signature) * differences
            for f in layer.expand(p)
        )
    else:
        largest = jnp.max(differences)
        off = jnp.clip(largest, _LEAST_DIFFERENCE, 2.0)
        rounding = 8 * float(np.finfo(np.float64).eps)
        lost = zip(layer.same(p), layer.pairs(p * (1.0 - off), p, p), strict=True)
        nngp, dot = (
            jnp.where(largest > 0.0, _outer(jnp.sqrt(jnp.maximum(same - near, 0.0) + rounding * same), signature), 0.0)
            for same, near in lost
        )
    if own.ntk is None:
        return left.replace(nngp=nngp, ntk=None)
    slopes = _outer(jnp.sqrt(layer.same(p)[1]), signature)
    ntk = _outer(jnp.sqrt(_variances(own.ntk, signature)), signature) * dot
    return left.replace(nngp=nngp, ntk=ntk if left.ntk is None else ntk + slopes * left.ntk)


def _joined(own: Sequence[KernelState], left: Sequence[KernelState], step: Step) -> KernelState:
    """Return the bounds on the truncation errors after a join of branches.

    For a product, the bound is the product of the factors plus their errors, minus the product of the factors.
    """
    if not isinstance(step.layer, FanInProduct):
        return joined(left, step)
    wider = joined(
        [a.replace(nngp=a.nngp + b.nngp, ntk=_plus(a.ntk, b.ntk)) for a, b in zip(own, left, strict=True)], step
    )
    plain = joined(own, step)
    ntk = None if wider.ntk is None or plain.ntk is None else wider.ntk - plain.ntk
    return plain.replace(nngp=wider.nngp - plain.nngp, ntk=ntk)


def _plus(one: Array | None, other: Array | None) -> Array | None:
    return one if other is None else other if one is None else one + other


def _weighted(coefficients: Array) -> Array:
    """Return the sum of `j a_j^2`, the largest derivative of a series by the cosine."""
    powers = jnp.arange(coefficients.shape[0], dtype=coefficients.dtype)
    return jnp.einsum("j,j...->...", powers, jnp.square(coefficients))


def _attended(layer: SelfAttention, own: KernelState, left: KernelState, outgoing: Signature) -> KernelState:
    """Return the bounds after an attention layer, from the errors of its weights and of the mixed covariances."""
    (weights,) = layer.image_features(own)
    weights, off = jnp.abs(weights), layout.to_matrix(left.nngp, own.signature)
    off = abs(layer.w_query_std * layer.w_key_std) * off
    if layer.mechanism == "SOFTMAX":
        off = weights * jnp.expm1(2.0 * jnp.max(off))
    wider = weights + off
    scale = (layer.w_out_std * layer.w_value_std) ** 2

    def mixed(of_own: Array, of_left: Array) -> Array:
        root = jnp.sqrt(jnp.diagonal(layer.values(of_own, own.signature), axis1=1, axis2=2))
        less, all_of_it = jnp.einsum("npq,nq->np", off, root), jnp.einsum("npq,nq->np", wider, root)
        share = jnp.max(jnp.where(all_of_it > 0.0, less / jnp.where(all_of_it > 0.0, all_of_it, 1.0), 0.0))
        matrix = wider @ layout.to_matrix(of_left, own.signature) @ jnp.swapaxes(wider, -1, -2)
        matrix = matrix + 2.0 * share * all_of_it[:, :, None] * all_of_it[:, None, :]
        return layout.from_matrix(scale * matrix, outgoing)

    nngp = mixed(own.nngp, left.nngp)
    ntk = 2.0 * nngp
    if own.ntk is not None:
        ntk = ntk + mixed(own.ntk, jnp.zeros_like(own.ntk) if left.ntk is None else left.ntk)
    return left.replace(nngp=nngp, ntk=ntk, signature=outgoing)
