"""What one layer of a fully connected network does to variances and correlations, from the nonlinearities of `kernels/`.

Of a nonlinearity phi, Gaussian u and v of variance q and correlation c: `E phi^2`, `E phi'^2`, their slope in q, and what
`E phi(u) phi(v)` leaves of `E phi^2`. The latter is formed without that difference (see `kernels.apart`), so that correlations near
1 keep their digits. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
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

# All variances at which maps are tabulated: dense where networks live, sparse beyond.
VARIANCES = np.concatenate(
    [np.geomspace(1e-40, 1e-8, 321)[:-1], np.geomspace(1e-8, 1e8, 1601), np.geomspace(1e8, 1e16, 81)[1:]]
)
# Variances whose series are expanded at once: 512 nodes and 256 coefficients of each.
_BATCH = 4096
_LEAST = 16
# `E phi^2` at variance 0 of series, whose variances begin at the smallest number.
_VANISHING = 1e-290


class Squares(NamedTuple):
    """Of single variances, arrays of their shape.

    Args:
        value: `E phi^2`.
        dot: `E phi'^2`.
        slope: derivative of `value` by the variance.
    """

    value: np.ndarray
    dot: np.ndarray
    slope: np.ndarray


class Pairs(Protocol):
    """Pairs of equal variance, `(n,)` of them."""

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`E phi^2 - E phi(u) phi(v)` and `E phi'(u) phi'(v)` at correlations `1 - gap`, `(n,)` each."""
        ...


@dataclass(frozen=True)
class Maps:
    """The maps of one nonlinearity.

    Args:
        name: of the nonlinearity, as people write it.
        layer: for pairs.
        single: for single variances: the same function; of series without their terms, which a square does not need.
        coarse: likewise with half the nodes, which tells the error of the quadrature; None of closed forms.
    """

    name: str
    layer: Nonlinearity
    single: Nonlinearity
    coarse: Nonlinearity | None = None

    def squares(self, variances: Any) -> Squares:
        """Of any variances, at least 0."""
        return self._of(self.single, variances)

    def quadrature_error(self, variances: Any) -> np.ndarray:
        """An estimate, relative, of the larger one of `E phi^2` and `E phi'^2`; 0 of closed forms, near 1e-3 of kinks beside 0."""
        q = np.asarray(variances, np.float64)
        if self.coarse is None:
            return np.zeros_like(q)
        fine, coarse = self.squares(q), self._of(self.coarse, q)
        with np.errstate(all="ignore"):
            made = np.maximum(np.abs(coarse.value / fine.value - 1.0), np.abs(coarse.dot / fine.dot - 1.0))
        return np.where(q == 0.0, 0.0, np.where(np.isfinite(made), made, np.inf))

    def _of(self, layer: Nonlinearity, variances: Any) -> Squares:
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
        # What vanishes with the variance is linear there.
        vanishing = (q == 0.0) & (value <= _VANISHING)
        return Squares(np.where(vanishing, 0.0, value), dot, np.where(vanishing, dot, slope))

    def at(self, variances: np.ndarray) -> Pairs:
        """Of pairs, prepared for many correlations at the same variances `(n,)`."""
        q = np.asarray(variances, np.float64)
        return _Series(self.layer, q) if isinstance(self.layer, Elementwise) else _Closed(self.layer, q)

    @cached_property
    def table(self) -> Squares:
        """`squares` at `VARIANCES`, where overflow counts as infinite."""
        made = self.squares(VARIANCES)
        return Squares(*(np.where(np.isnan(part), np.inf, part) for part in made))

    @cached_property
    def table_error(self) -> np.ndarray:
        """`quadrature_error` at `VARIANCES`, and rounding: steep functions of large variances are kinked."""
        return self.quadrature_error(VARIANCES) + 4.0 * np.finfo(np.float64).eps


def activation_maps(activation: str | Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> Maps:
    """The maps of a nonlinearity of the registry.

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
    series, fine, coarse = (one for one in made if isinstance(one, Nonlinearity))
    return Maps(name, series, fine, coarse)


@jax.jit(static_argnums=0)
def _squares(layer: Nonlinearity, q: jax.Array) -> tuple[Array, Array, Array]:
    (value, dot), (slope, _) = jax.jvp(layer.same, (q,), (jnp.ones_like(q),))
    return value, dot, slope


@jax.jit(static_argnums=0)
def _near(layer: Nonlinearity, q: jax.Array, gap: jax.Array) -> tuple[Array, Array]:
    value, _ = layer.same(q)
    upper, _, dot = layer.near(Apart(q, q, q * gap, q * (2.0 - gap)), value, value)
    return upper, dot


@jax.jit(static_argnums=0)
def _coefficients(layer: Elementwise, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    made = [
        jnp.concatenate([jnp.square(f.coefficients), jnp.square(f.even)[None], jnp.square(f.odd)[None]])
        for f in layer.expand(q)
    ]
    return jnp.asarray(made[0]), jnp.asarray(made[1])


class _Closed:
    """Closed forms, near equal images in their distance form."""

    def __init__(self, layer: Nonlinearity, q: np.ndarray) -> None:
        self._layer, self._q = layer, q

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with precision_context(np.float64):
            upper, dot = _near(self._layer, self._q, np.asarray(gap, np.float64))
            return np.asarray(upper), np.asarray(dot)


class _Series:
    """Power series in the correlation, whose coefficients are squares: `sum a_j^2 (1 - c^j)` cancels nothing."""

    def __init__(self, layer: Elementwise, q: np.ndarray) -> None:
        with precision_context(np.float64):
            parts = [_coefficients(layer, q[i : i + _BATCH]) for i in range(0, max(len(q), 1), _BATCH)]
            self._value, self._slope = (np.concatenate([np.asarray(part[k]) for part in parts], axis=1) for k in (0, 1))
        even = layer.degree + 2 - layer.degree % 2
        self._powers = np.array([*range(layer.degree + 1), even, 2 * layer.degree + 3 - even], float)[:, None]

    def __call__(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = np.asarray(gap, np.float64)
        lost = -np.expm1(self._powers * np.log1p(-np.minimum(gap, 0.5)))
        lost = np.where(gap <= 0.5, lost, 1.0 - (1.0 - gap) ** self._powers)
        upper = np.sum(self._value * lost, axis=0)
        return upper, np.sum(self._slope * (1.0 - lost), axis=0)
