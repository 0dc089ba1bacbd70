"""The maps of variance and correlation of one fully connected layer, from the nonlinearities in `kernels`.

For a nonlinearity phi and Gaussian u and v with variance q and correlation c, they are `E phi^2`, `E phi'^2`, the
derivative by q, and `E phi^2 - E phi(u) phi(v)`. The last is computed without cancellation (see `kernels.apart`), so
correlations near 1 keep their digits. Everything is float64.

The layers expand formulas in series, which end at a degree. Where this costs accuracy (near correlation 1 of functions with
kinks, and of steep ones), and at kinks away from 0, the same formulas are integrated on panels instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.layers.nonlinear.base import Identity, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.elementwise import Elementwise
from ntkpipe.kernels.layers.nonlinear.piecewise import ABRelu
from ntkpipe.kernels.parameters import ACTIVATIONS, LARGEST_DEGREE, LAYERS
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.kernels.state import Array
from ntkpipe.propagation.kinks import kinks
from ntkpipe.propagation.panels import Panels, moments_of_pairs

# The variances at which maps are tabulated: dense for usual values, sparse for extreme ones.
VARIANCES = np.concatenate(
    [np.geomspace(1e-40, 1e-8, 321)[:-1], np.geomspace(1e-8, 1e8, 1601), np.geomspace(1e8, 1e16, 81)[1:]]
)
# Number of variances whose series are expanded together, with 512 nodes and 256 coefficients each.
_BATCH = 4096
_LEAST = 16
# `E phi^2` at variance 0 of series, whose variances begin at the smallest number.
_VANISHING = 1e-290
ACCURATE = 1e-11
"""Largest relative error of a series because it ends; above it, panels replace it."""


class Squares(NamedTuple):
    """Moments at given variances, arrays of their shape.

    Args:
        value: `E phi^2`.
        dot: `E phi'^2`.
        slope: derivative of `value` by the variance.
    """

    value: np.ndarray
    dot: np.ndarray
    slope: np.ndarray


class Pairs(Protocol):
    """Moments of pairs of equal variance, for `(n,)` variances."""

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `E phi^2 - E phi(u) phi(v)` and `E phi'(u) phi'(v)` at correlations `1 - gap`, `(n,)` each."""
        ...


@dataclass(frozen=True)
class Maps:
    """The maps of one nonlinearity.

    Args:
        name: readable name of the nonlinearity.
        layer: the layer for pairs.
        single: the layer for single variances: the same function; for series, without their terms; for kinks away from
            0, panels.
        coarse: as `single` with half the nodes, to estimate the quadrature error; None for closed forms.
        panels: the formula on panels; None for closed forms.
        jumps: whether the formula jumps.
    """

    name: str
    layer: Nonlinearity
    single: Nonlinearity | Panels
    coarse: Nonlinearity | Panels | None = None
    panels: Panels | None = None
    jumps: bool = False

    def squares(self, variances: Any) -> Squares:
        """Return the moments at variances `>= 0` of any shape."""
        return self._of(self.single, variances)

    def quadrature_error(self, variances: Any) -> np.ndarray:
        """Estimate the larger relative error of `E phi^2` and `E phi'^2`: 0 for closed forms, rounding for formulas that
        are smooth between their kinks, more for singular slopes such as that of `sqrt(abs(x))`.
        """
        q = np.asarray(variances, np.float64)
        if self.coarse is None:
            return np.zeros_like(q)
        fine, coarse = self.squares(q), self._of(self.coarse, q)
        with np.errstate(all="ignore"):
            made = np.maximum(np.abs(coarse.value / fine.value - 1.0), np.abs(coarse.dot / fine.dot - 1.0))
            made = np.where(fine.dot == 0.0, np.abs(coarse.value / fine.value - 1.0), made)  # a function of steps
        return np.where(q == 0.0, 0.0, np.where(np.isfinite(made), made, np.inf))

    def _of(self, layer: Nonlinearity | Panels, variances: Any) -> Squares:
        q = np.asarray(variances, np.float64)
        flat = q.ravel()
        padded = np.pad(flat, (0, max(0, _LEAST - len(flat))), constant_values=1.0)  # one compilation for a few
        with precision_context(np.float64), np.errstate(all="ignore"):
            parts = [
                [np.asarray(part) for part in _squares(layer, padded[i : i + _BATCH])]
                for i in range(0, len(padded), _BATCH)
            ]
        made = (np.concatenate(part)[: len(flat)].reshape(q.shape) for part in zip(*parts, strict=True))
        value, dot, slope = made
        # Moments that vanish with the variance are linear near 0.
        vanishing = (q == 0.0) & (value <= _VANISHING)
        return Squares(np.where(vanishing, 0.0, value), dot, np.where(vanishing, dot, slope))

    def at(self, variances: np.ndarray, accuracy: float = ACCURATE) -> Pairs:
        """Return the moments of pairs at variances `(n,)`, prepared for many correlations.

        Args:
            variances: of both points.
            accuracy: largest relative error that is allowed for a shorter time.
        """
        q = np.asarray(variances, np.float64)
        if self.panels is None or not isinstance(self.layer, Elementwise):
            return _Closed(self.layer, q)
        return _Series(self, self.layer, self.panels, q, accuracy)

    @cached_property
    def table(self) -> Squares:
        """The result of `squares` at `VARIANCES`; overflow gives infinity."""
        made = self.squares(VARIANCES)
        return Squares(*(np.where(np.isnan(part), np.inf, part) for part in made))

    @cached_property
    def table_error(self) -> np.ndarray:
        """The result of `quadrature_error` at `VARIANCES`, plus rounding."""
        return self.quadrature_error(VARIANCES) + 4.0 * np.finfo(np.float64).eps


def activation_maps(activation: str | Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> Maps:
    """Return the maps of a nonlinearity.

    Args:
        activation: its name, such as `tanh`; or a layer, such as `{"op": "elementwise", "function": "x * sigmoid(x)"}`.
        arguments: its parameters, if only the name is given.

    Raises:
        ConfigError: if there is no such nonlinearity, or a parameter is missing, unknown or out of range.
    """
    layer = dict(activation) if isinstance(activation, Mapping) else {"op": activation, **(arguments or {})}
    if layer.get("op") not in ACTIVATIONS:
        raise ConfigError(f"activation {layer.get('op')!r} is not one of {', '.join(ACTIVATIONS)}")
    (canonical,) = canonical_spec([layer])
    defaults = {p.name: p.default for p in LAYERS[layer["op"]]} | {
        "degree": canonical.get("degree"),
        "nodes": canonical.get("nodes"),
    }
    if layer["op"] in ("monomial", "rectified_monomial", "hermite"):
        del defaults["degree"]
    stated = {key: value for key, value in canonical.items() if key != "op" and value != defaults.get(key)}
    name = layer["op"] + (f"({', '.join(f'{key}={value}' for key, value in stated.items())})" if stated else "")
    return _maps(name, tuple(canonical.items()))


@lru_cache(maxsize=32)
def _maps(name: str, canonical: tuple[tuple[str, Any], ...]) -> Maps:
    layer = dict(canonical)
    if "nodes" not in layer or layer.get("nngp") is not None:
        made = build_layer(layer)
        assert isinstance(made, Nonlinearity)
        made = ABRelu(1.0, 1.0) if isinstance(made, Identity) else made  # which has no moments of its own
        return Maps(name, made, made)
    nodes = 2 * LARGEST_DEGREE + 2
    wanted = ((LARGEST_DEGREE, nodes), (1, nodes), (1, nodes // 2))
    made = [build_layer(layer | {"degree": degree, "nodes": count}) for degree, count in wanted]
    series, fine, coarse = (one for one in made if isinstance(one, Elementwise))
    places, jumps = kinks(series.function)
    panels = Panels(series.function, places)
    if any(place != 0.0 for place in places):  # which the layers' own rules do not resolve
        return Maps(name, series, panels, Panels(series.function, places, panels.nodes // 2), panels, jumps)
    return Maps(name, series, fine, coarse, panels, jumps)


@partial(jax.jit, static_argnums=0)
def _squares(layer: Nonlinearity | Panels, q: jax.Array) -> tuple[Array, Array, Array]:
    (value, dot), (slope, _) = jax.jvp(layer.same, (q,), (jnp.ones_like(q),))
    return value, dot, slope


@partial(jax.jit, static_argnums=0)
def _near(layer: Nonlinearity, q: jax.Array, gap: jax.Array) -> tuple[Array, Array]:
    value, _ = layer.same(q)
    upper, _, dot = layer.near(Apart(q, q, q * gap, q * (2.0 - gap)), value, value)
    return upper, dot


@partial(jax.jit, static_argnums=0)
def _coefficients(layer: Elementwise | Panels, q: jax.Array) -> tuple[Array, Array]:
    """Return squared coefficients of phi and phi', and the squares that even and odd polynomials leave out."""
    if isinstance(layer, Panels):
        return layer.expand(q, LARGEST_DEGREE)
    made = [
        jnp.concatenate([jnp.square(f.coefficients), jnp.square(f.even)[None], jnp.square(f.odd)[None]])
        for f in layer.expand(q)
    ]
    return jnp.asarray(made[0]), jnp.asarray(made[1])


class _Closed:
    """Moments of pairs from closed forms, in distance form for nearly equal images."""

    def __init__(self, layer: Nonlinearity, q: np.ndarray) -> None:
        self._layer, self._q = layer, q

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with precision_context(np.float64):
            upper, dot = _near(self._layer, self._q, np.asarray(gap, np.float64))
            return np.asarray(upper), np.asarray(dot)


class _Series:
    """Moments of pairs from power series in the correlation: in `sum a_j^2 (1 - c^j)` nothing cancels.

    The terms t beyond the last degree D are at most `t |c|^(D + 1)`, and the loss of correlation that they cause is at most
    the gap times their part of `q E phi'^2 = sum j a_j^2`. Where both matter, panels are used.
    """

    def __init__(self, maps: Maps, layer: Elementwise, panels: Panels, q: np.ndarray, accuracy: float) -> None:
        self._panels, self._q, self._accuracy = panels, q, accuracy
        expanded = panels if isinstance(maps.single, Panels) else layer
        with precision_context(np.float64):
            parts = [_coefficients(expanded, q[i : i + _BATCH]) for i in range(0, max(len(q), 1), _BATCH)]
            self._value, self._slope = (np.concatenate([np.asarray(part[k]) for part in parts], axis=1) for k in (0, 1))
        even = layer.degree + 2 - layer.degree % 2
        self._powers = np.array([*range(layer.degree + 1), even, 2 * layer.degree + 3 - even], float)[:, None]
        self._left, self._left_of_slope = (np.sum(part[-2:], axis=0) for part in (self._value, self._slope))
        known = np.sum(self._powers[:-2] * self._value[:-2], axis=0)
        left = np.maximum(q * np.sum(self._slope, axis=0) - known, 0.0)
        self._moment = np.full_like(left, np.inf) if maps.jumps else left  # phi' has no square of its jumps

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = np.asarray(gap, np.float64)
        lost = -np.expm1(self._powers * np.log1p(-np.minimum(gap, 0.5)))
        lost = np.where(gap <= 0.5, lost, 1.0 - (1.0 - gap) ** self._powers)
        upper, dot = np.sum(self._value * lost, axis=0), np.sum(self._slope * (1.0 - lost), axis=0)
        kept = np.abs(1.0 - gap) ** (self._powers[-1] - 1.0)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.minimum(self._left * kept, np.where(gap > 0.0, self._moment * gap, 0.0))
            unsure = (error > self._accuracy * upper) | (self._left_of_slope * kept > self._accuracy * np.abs(dot))
        at = np.flatnonzero(unsure)
        if len(at):
            padded = np.pad(at, (0, (1 << (len(at) - 1).bit_length()) - len(at)), mode="edge")  # few compilations
            with precision_context(np.float64):
                made = moments_of_pairs(self._panels, jnp.asarray(self._q[padded]), jnp.asarray(gap[padded]))
            upper[at], dot[at] = (np.asarray(part)[: len(at)] for part in made)
        return upper, dot
