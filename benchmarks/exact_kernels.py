"""Kernels of infinitely wide networks in 120 digits, from the same floats that a run uses.

This is a second implementation of docs/mathematics.md, for comparison only. It shares no code with `ntkpipe`, reads the
same list of layers, and evaluates one pair of points at a time. FLINT (python-flint, https://flintlib.org) does the
arithmetic, in balls of 400 bits and 100 more for every layer, each of which contains the exact number. Kinks and nearly
equal points cost no accuracy here.

Nonlinearities without a closed form are integrated in float64 over one or two variables; `is_exact` tells whether a
network has none of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flint
import numpy as np
from flint import arb
from gaussian_integrals import INTEGRATED, moments

PRECISION = 400
flint.ctx.prec = PRECISION
# An angle of 1e-13 makes a ball 2^43 times as wide where it is computed from its sine, and the next layer does so again: a ball that
# comes to hold zero would count as zero.
BITS_OF_A_LAYER = 100

Numbers = np.ndarray
"""Of dtype object, with an `arb` in every place."""

_sqrt: Callable[..., Any] = np.frompyfunc(lambda x: x.sqrt(), 1, 1)
_exp: Callable[..., Any] = np.frompyfunc(lambda x: x.exp(), 1, 1)
_asin: Callable[..., Any] = np.frompyfunc(lambda x: x.asin(), 1, 1)
_atan2: Callable[..., Any] = np.frompyfunc(arb.atan2, 2, 1)
# What cannot be told from zero is zero: the sine of the angle between a point and itself, or its distance to itself.
_at_least_zero: Callable[..., Any] = np.frompyfunc(lambda x: arb(0) if x.contains(0) else x, 1, 1)
_middle: Callable[..., Any] = np.frompyfunc(lambda x: x.mid(), 1, 1)
exact: Callable[..., Any] = np.frompyfunc(lambda x: arb(float(x)), 1, 1)
"""Floats as they are."""


def is_exact(layers: Iterable[dict]) -> bool:
    """Return whether every layer has a closed form."""
    return all(
        all(map(is_exact, layer["branches"])) if layer["op"] == "residual_sum" else layer["op"] not in INTEGRATED
        for layer in layers
    )


def _pools(layers: Iterable[dict]) -> bool:
    return any(
        any(map(_pools, layer["branches"])) if layer["op"] == "residual_sum" else layer["op"] == "global_avg_pool"
        for layer in layers
    )


@dataclass(frozen=True)
class _State:
    """Covariances `k`, tangents `t` (pairs, pixels of both), variances `p` (points, pixels), and the pairs.

    Pixels are none, (h, w) of both images, or (h, w, h', w').
    """

    k: Numbers
    t: Numbers
    p: Numbers
    first: np.ndarray
    second: np.ndarray
    features: int

    @property
    def variances(self) -> tuple[Numbers, Numbers]:
        """Return the variances of both points for every entry of `k`."""
        p, q = self.p[self.first], self.p[self.second]
        if self.k.ndim == 5:
            return p[:, :, :, None, None], q[:, None, None]
        return p, q


def kernels(layers: Sequence[dict], x: np.ndarray, pairs: np.ndarray) -> tuple[Numbers, Numbers]:
    """Return the NNGP and the NTK of pairs of points.

    Args:
        layers: list of layers as in `kernel.path`, with all parameters.
        x: points, `(m, h, w, c)` floats.
        pairs: row indices of the pairs, `(k, 2)`.

    Returns:
        Two arrays `(k,)` of numbers.
    """
    flint.ctx.prec = PRECISION + BITS_OF_A_LAYER * len(layers)
    try:
        return _kernels(layers, x, pairs)
    finally:
        flint.ctx.prec = PRECISION


def _kernels(layers: Sequence[dict], x: np.ndarray, pairs: np.ndarray) -> tuple[Numbers, Numbers]:
    values = exact(x)
    first, second = pairs.T
    p = (values * values).sum(-1) / x.shape[-1]
    if _pools(layers):
        a, b = values[first], values[second]
        k = (a[:, :, :, None, None, :] * b[:, None, None]).sum(-1) / x.shape[-1]
    else:
        k = (values[first] * values[second]).sum(-1) / x.shape[-1]
    state = _State(k, k * 0, p, first, second, x.shape[-1])
    for layer in layers:
        state = _apply(state, layer)
    return _middle(state.k), _middle(state.t)


def _apply(state: _State, layer: dict) -> _State:
    op = layer["op"]
    if op == "flatten":
        return _flatten(state)
    if op == "global_avg_pool":
        pixels = tuple(range(1, state.k.ndim))
        count = math.prod(state.k.shape[1:])
        # Variances of a mean need covariances of an image with itself, and no layer that is known here asks for them.
        nothing = np.full(len(state.p), arb("nan"), dtype=object)
        return replace(state, k=state.k.sum(pixels) / count, t=state.t.sum(pixels) / count, p=nothing)
    if op == "dense":
        return _linear(state, layer, lambda x: x, state.features)
    if op == "conv":
        taps = math.prod(layer["filter"])
        return _linear(state, layer, lambda x: _shifted_mean(x, layer), state.features * taps)
    if op == "residual_sum":
        ends = []
        for branch in layer["branches"]:
            end = state
            for inner in branch:
                end = _apply(end, inner)
            ends.append(end)
        k, t, p = (sum(getattr(end, name) for end in ends[1:]) + getattr(ends[0], name) for name in "ktp")
        return replace(ends[0], k=k, t=t, p=p)
    if op == "stationary":
        p, q = state.variances
        k = _stationary(_at_least_zero(p + q - state.k * 2), layer)
        return replace(state, k=k, t=k)
    return _nonlinear(state, layer)


def _flatten(state: _State) -> _State:
    pixels = state.p.shape[1:]
    if not pixels:
        return state
    k, t = state.k, state.t
    if k.ndim == 5:
        rows, cols = np.indices(pixels)
        k, t = k[:, rows, cols, rows, cols], t[:, rows, cols, rows, cols]
    count = math.prod(pixels)
    means = {name: x.sum((1, 2)) / count for name, x in (("k", k), ("t", t), ("p", state.p))}
    return replace(state, **means, features=state.features * count)


def _linear(state: _State, layer: dict, mean: Callable[[Numbers], Numbers], fan_in: int) -> _State:
    w, b = arb(layer["w_std"]) ** 2, arb(layer["b_std"] or 0.0) ** 2
    before = mean(state.k)
    k, p = before * w + b, mean(state.p) * w + b
    own = k if layer["parameterization"] == "ntk" else before * fan_in + (0 if layer["b_std"] is None else 1)
    return replace(state, k=k, t=own + mean(state.t) * w, p=p, features=layer["features"])


def _shifted_mean(x: Numbers, layer: dict) -> Numbers:
    """Return the mean over the taps of a filter at both images of a pair; values beyond the edges are zero."""
    taps, strides, padding = layer["filter"], layer["strides"], layer["padding"]
    axes = [tuple(range(axis, x.ndim, 2)) for axis in (1, 2)]
    extents = []
    for own, size, stride in zip(axes, taps, strides, strict=True):
        n = x.shape[own[0]]
        out = (n - size) // stride + 1 if padding == "VALID" else -(-n // stride)
        total = max((out - 1) * stride + size - n, 0)
        low = total // 2
        for axis in own:
            places = np.arange(-low, n + total - low)
            padded = np.take(x, places % n, axis=axis)
            if padding == "SAME":
                outside = ((places < 0) | (places >= n)).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
                padded = np.where(outside, arb(0), padded)
            x = padded
        extents.append((out, stride))
    total = None
    for i in range(taps[0]):
        for j in range(taps[1]):
            part = x
            for own, (out, stride), at in zip(axes, extents, (i, j), strict=True):
                for axis in own:
                    part = np.take(part, np.arange(out) * stride + at, axis=axis)
            total = part if total is None else total + part
    assert total is not None
    return total / math.prod(taps)


def _stationary(square: Numbers, layer: dict) -> Numbers:
    scaled = square / arb(layer["length_scale"]) ** 2
    if layer["kernel"] == "rbf":
        return _exp(scaled / -2)
    nu = layer["nu"] or 0.5
    s = _sqrt(scaled * arb(2 * nu))
    return _exp(-s) * {0.5: 1, 1.5: s + 1, 2.5: s * s / 3 + s + 1}[nu]


def _nonlinear(state: _State, layer: dict) -> _State:
    op = layer["op"]
    maps: dict[str, Callable[..., tuple[Numbers, Numbers]]] = {
        "relu": lambda k, p, q: _ab_relu(k, p, q, arb(0), arb(1)),
        "leaky_relu": lambda k, p, q: _ab_relu(k, p, q, arb(layer["alpha"]), arb(1)),
        "abs": lambda k, p, q: _ab_relu(k, p, q, arb(-1), arb(1)),
        "erf": lambda k, p, q: _erf(k, p, q, *(arb(layer[name]) for name in "abc")),
        "gelu": _gelu,
    }
    if op in INTEGRATED:

        def map_of(k: Numbers, p: Numbers, q: Numbers) -> tuple[Numbers, Numbers]:
            value, slope = moments(layer, *(np.broadcast_to(a, k.shape).astype(np.float64) for a in (k, p, q)))
            return exact(value), exact(slope)
    else:
        map_of = maps[op]
    k, dot = map_of(state.k, *state.variances)
    p, _ = map_of(state.p, state.p, state.p)
    return replace(state, k=k, t=state.t * dot, p=p)


def _ab_relu(k: Numbers, p: Numbers, q: Numbers, a: arb, b: arb) -> tuple[Numbers, Numbers]:
    """Return both kernels of `a min(x, 0) + b max(x, 0)` (Cho and Saul 2009), by the angle's sine and cosine times norms."""
    sine = _sqrt(_at_least_zero(p * q - k * k))
    c = (a - b) ** 2 / (2 * arb.pi())
    angle = _atan2(sine, _at_least_zero(k))
    zero = np.broadcast_to((p * q) == 0, k.shape)  # has no direction: the limit of a shrinking bias
    dot = (a * a + b * b) / 2 - np.where(zero, arb.pi() / 2, angle) * c
    return sine * c + dot * k, dot


def _erf(k: Numbers, p: Numbers, q: Numbers, a: arb, b: arb, c: arb) -> tuple[Numbers, Numbers]:
    """Return both kernels of `a erf(b x) + c` (Williams 1996)."""
    scale = 2 * b * b
    norm = (p * scale + 1) * (q * scale + 1)
    value = _asin(k * scale / _sqrt(norm)) * (2 * a * a / arb.pi()) + c * c
    return value, 4 * a * a * b * b / arb.pi() / _sqrt(norm - k * k * scale * scale)


def _gelu(k: Numbers, p: Numbers, q: Numbers) -> tuple[Numbers, Numbers]:
    """Return both kernels of `x Phi(x)`; the kernel of the slope is the derivative of the other one by k."""
    norm = (p + 1) * (q + 1)
    square = norm - k * k
    root = _sqrt(square)
    angle = _atan2(k, root)
    two_pi = 2 * arb.pi()
    value = ((k * k + p * q * square) / (norm * root) + k * angle) / two_pi + k / 4
    slope = k / root * (1 / square + (1 - p * q) / norm + 1) / two_pi + angle / two_pi + arb(1) / 4
    return value, slope
