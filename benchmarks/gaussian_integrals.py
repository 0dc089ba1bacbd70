"""`E[phi(u) phi(v)]` and `E[phi'(u) phi'(v)]` of nonlinearities without a closed form, in float64, by integration.

Smooth nonlinearities are integrated by the trapezium rule in two variables, which converges exponentially; its step
follows from the distance of the poles from the real line. ELU has a kink at zero. Given u, its integral over v has a
closed form. The integral over u is computed on each side of zero, by Gauss-Legendre rules on intervals that shrink
towards zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, expit, ndtr

# Distance of the nearest pole from the real line, of arguments as they are.
_POLES = {"tanh": math.pi / 2, "swish": math.pi, "sigmoid": math.pi, "softplus": math.pi}
INTEGRATED = (*_POLES, "elu")
# The normal density at the end of the range is 1e-17 of its largest.
_RANGE = 8.9
_AT_ONCE = 1 << 22


def moments(layer: dict, k: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both moments for u, v with covariance `k` and variances `p` and `q`, arrays of the same shape.

    The relative error is a few units of float64 rounding.
    """
    shape = k.shape
    integral = _elu if layer["op"] == "elu" else _smooth
    value, slope = integral(layer, k.ravel(), p.ravel(), q.ravel())
    return value.reshape(shape), slope.reshape(shape)


def _function(layer: dict) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    op = layer["op"]

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if op == "tanh":
            value = np.tanh(x)
            return value, 1 - value * value
        beta = layer.get("beta", 1.0)
        s = expit(beta * x)
        if op == "sigmoid":
            return s, s * (1 - s)
        if op == "softplus":
            return np.logaddexp(0, x), s
        return x * s, s + beta * x * s * (1 - s)

    return both


def _smooth(layer: dict, k: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = _function(layer)
    variance = max(float(p.max(initial=0.0)), float(q.max(initial=0.0)), 1e-3)
    pole = _POLES[layer["op"]] / layer.get("beta", 1.0) / math.sqrt(variance)
    # The rule's error is exp(-2 pi d / h + d^2 / 2), d from the real line, where neither the poles nor the density forbid it.
    d = min(pole, _RANGE)
    step = 2 * math.pi * d / (48 + d * d / 2)
    z = step * np.arange(-math.ceil(_RANGE / step), math.ceil(_RANGE / step) + 1)
    weights = step / math.sqrt(2 * math.pi) * np.exp(-z * z / 2)
    value, slope = np.empty_like(k), np.empty_like(k)
    batch = max(1, _AT_ONCE // len(z) ** 2)
    for start in range(0, len(k), batch):
        rows = slice(start, start + batch)
        a = np.sqrt(p[rows])[:, None]
        b = k[rows, None] / np.where(a > 0, a, 1.0)
        rest = np.sqrt(np.maximum(q[rows, None] - b * b, 0.0))
        f, df = both(a * z)
        g, dg = both(b[:, :, None] * z[:, None] + rest[:, :, None] * z)
        value[rows] = np.einsum("mi,mij,j->m", f * weights, g, weights, optimize=True)
        slope[rows] = np.einsum("mi,mij,j->m", df * weights, dg, weights, optimize=True)
    return value, slope


def _half_line() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of the normal density on `z > 0`, dense near 0, where the integrand may change fast."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([[0.0], np.geomspace(1e-9, 0.5, 30), np.linspace(0.5, 9.0, 18)[1:]])
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    z = (middle[:, None] + half[:, None] * nodes).ravel()
    return z, (half[:, None] * weights).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _elu(layer: dict, k: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    alpha = layer["alpha"]
    half, weights = _half_line()
    z, weights = np.concatenate([-half, half]), np.concatenate([weights, weights])
    a = np.sqrt(p)[:, None]
    b = k[:, None] / np.where(a > 0, a, 1.0)
    s = np.sqrt(np.maximum(q[:, None] - b * b, 0.0))
    u, m = a * z, b * z
    f, df = (
        np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0))),
        np.where(u > 0, 1.0, alpha * np.exp(np.minimum(u, 0))),
    )
    safe = np.where(s > 0, s, 1.0)
    above = np.where(s > 0, ndtr(m / safe), m > 0)  # P(v > 0)
    density = np.where(s > 0, safe / math.sqrt(2 * math.pi) * np.exp(-0.5 * (m / safe) ** 2), 0.0)
    # E[exp(v); v < 0], by the scaled function where its factor would overflow.
    x = (m + s * s) / (safe * math.sqrt(2))
    scaled = 0.5 * erfcx(np.maximum(x, 0)) * np.exp(-0.5 * (m / safe) ** 2)
    plain = np.exp(np.minimum(m + s * s / 2, 700.0)) * ndtr(-x * math.sqrt(2))
    below = np.where(s > 0, np.where(x > 0, scaled, plain), np.where(m > 0, 0.0, np.exp(np.minimum(m, 0))))
    g = m * above + density + alpha * (below - (1 - above))
    dg = above + alpha * below
    return (f * g) @ weights, (df * dg) @ weights
