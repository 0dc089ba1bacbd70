"""Kernels of fully connected networks to 60 digits, pair by pair, from the textbook formulas: nothing that cancels matters."""

from __future__ import annotations

from typing import Any

import mpmath as mp

DIGITS = 60


def kernels(layers, u, v) -> tuple[mp.mpf, mp.mpf]:
    """NNGP and NTK of one pair of float inputs, `ntk` parameterisation, at `DIGITS` digits; `layers` are canonical specs."""
    with mp.workdps(DIGITS):
        (x, y) = ([mp.mpf(float(value)) for value in part] for part in (u, v))
        k, p, q = (mp.fsum(a * b for a, b in zip(f, g, strict=True)) / len(x) for f, g in ((x, y), (x, x), (y, y)))
        k, t, _, _ = _fold(layers, (k, mp.mpf(0), p, q))
        return k, t


def _fold(layers, state):
    for layer in layers:
        state = _advance(layer, state)
    return state


def _advance(layer: dict[str, Any], state):
    k, t, p, q = state
    if layer["op"] == "flatten":
        return state
    if layer["op"] == "dense":
        w2, b2 = mp.mpf(layer["w_std"]) ** 2, mp.mpf(layer["b_std"] or 0) ** 2
        k, p, q = (w2 * value + b2 for value in (k, p, q))
        return k, k + w2 * t, p, q
    if layer["op"] == "repeat":
        for _ in range(layer["times"]):
            state = _fold(layer["layers"], state)
        return state
    if layer["op"] == "residual_sum":
        ends = [_fold(branch, state) for branch in layer["branches"]]
        return tuple(mp.fsum(values) for values in zip(*ends, strict=True))
    if layer["op"] == "fan_in_concat":
        ends = [_fold(branch, state) for branch in layer["branches"]]
        shares = [mp.mpf(fraction) for fraction in layer["fractions"]]
        return tuple(mp.fdot(shares, values) for values in zip(*ends, strict=True))
    if layer["op"] == "fan_in_product":
        ends = [_fold(branch, state) for branch in layer["branches"]]
        k, p, q = (mp.fprod(end[at] for end in ends) for at in (0, 2, 3))
        t = mp.fsum(end[1] * mp.fprod(other[0] for m, other in enumerate(ends) if m != n) for n, end in enumerate(ends))
        return k, t, p, q
    if layer["op"] == "layer_norm":
        f, g = (value + mp.mpf(layer["eps"]) for value in (p, q))
        root = mp.sqrt(f * g)
        return k / root, t / root, p / f, q / g
    if layer["op"] == "dropout":
        return k, t, p / mp.mpf(layer["rate"]), q / mp.mpf(layer["rate"])
    moments = MOMENTS[layer["op"]]
    value, slope = moments(layer, k, p, q)
    return value, t * slope, moments(layer, p, p, p)[0], moments(layer, q, q, q)[0]


def _bent(a, b):
    def moments(k, p, q):
        r = mp.sqrt(p * q)
        cosine = max(min(k / r, mp.mpf(1)), mp.mpf(-1)) if r else mp.mpf(0)
        angle, c = mp.acos(cosine), (a - b) ** 2 / (2 * mp.pi)
        dot = (a**2 + b**2) / 2 - c * angle
        return c * r * mp.sqrt(1 - cosine**2) + dot * k, dot

    return moments


def _erf(layer, k, p, q):
    a, b, c = (mp.mpf(layer[name]) for name in "abc")
    norms, scale = (1 + 2 * b**2 * p) * (1 + 2 * b**2 * q), 2 * b**2
    value = a**2 * 2 / mp.pi * mp.asin(scale * k / mp.sqrt(norms)) + c**2
    return value, a**2 * b**2 * 4 / mp.pi / mp.sqrt(norms - (scale * k) ** 2)


def _gelu(layer, k, p, q):
    def value(k):
        norms = (1 + p) * (1 + q)
        rest = mp.sqrt(norms - k * k)
        return k / 4 + (k * mp.asin(k / mp.sqrt(norms)) + (k * k + p * q * rest**2) / (norms * rest)) / (2 * mp.pi)

    return value(k), mp.diff(value, k)


def _sin(layer, k, p, q):
    a, b, c = (mp.mpf(layer[name]) for name in "abc")
    apart, together = mp.exp(-(b**2) * (p + q - 2 * k) / 2), mp.exp(-(b**2) * (p + q + 2 * k) / 2)
    return (
        a**2 / 2 * (apart - mp.cos(2 * c) * together),
        (a * b) ** 2 / 2 * (apart + mp.cos(2 * c) * together),
    )


def _exp(layer, k, p, q):
    a, b = mp.mpf(layer["a"]), mp.mpf(layer["b"])
    value = a**2 * mp.exp(b**2 * ((p + q) / 2 + k))
    return value, b**2 * value


def _gaussian(layer, k, p, q):
    a, b = mp.mpf(layer["a"]), mp.mpf(layer["b"])
    rest = (1 - 2 * b * p) * (1 - 2 * b * q) - (2 * b * k) ** 2
    return a**2 / mp.sqrt(rest), 4 * a**2 * b**2 * k / mp.sqrt(rest) ** 3


def _rbf(layer, k, p, q):
    gamma = mp.mpf(layer["gamma"])
    value = mp.exp(-gamma * (p + q - 2 * k))
    return value, 2 * gamma * value


def _exp_normalized(layer, k, p, q):
    gamma, r = mp.mpf(layer["gamma"]), mp.sqrt(p * q)
    value = mp.exp(gamma * (k / r + mp.mpf(layer["shift"])))
    return r * value, gamma * value


def _hermite(layer, k, p, q):
    def value(n, k):
        terms = ((2 * m, n - 2 * m) for m in range(n // 2 + 1))
        product = (p - 1) * (q - 1)
        return mp.fsum(
            mp.factorial(n)
            / (mp.mpf(2) ** m * mp.factorial(m // 2) ** 2 * mp.factorial(j))
            * k**j
            * product ** (m // 2)
            for m, j in terms
        )

    n = layer["degree"]
    return value(n, k), n * value(n - 1, k)


def _monomial(layer, k, p, q):
    n = layer["degree"]

    def value(n, k):
        return mp.fsum(
            mp.binomial(n, 2 * m) ** 2
            * mp.factorial(n - 2 * m)
            * mp.fac2(2 * m - 1) ** 2
            * k ** (n - 2 * m)
            * (p * q) ** m
            for m in range(n // 2 + 1)
        )

    return value(n, k), n**2 * value(n - 1, k)


def _rectified(layer, k, p, q):
    """Degrees 0 and 2 (Cho and Saul 2009)."""
    r = mp.sqrt(p * q)
    cosine = max(min(k / r, mp.mpf(1)), mp.mpf(-1))
    angle = mp.acos(cosine)
    sine = mp.sqrt(1 - cosine**2)
    if layer["degree"] == 0:
        return (mp.pi - angle) / (2 * mp.pi), mp.mpf(0)
    value = r**2 * (3 * sine * cosine + (mp.pi - angle) * (1 + 2 * cosine**2)) / (2 * mp.pi)
    return value, 4 * r * (sine + (mp.pi - angle) * cosine) / (2 * mp.pi)


def _sign(layer, k, p, q):
    return 2 / mp.pi * mp.asin(max(min(k / mp.sqrt(p * q), mp.mpf(1)), mp.mpf(-1))), mp.mpf(0)


MOMENTS = {
    "relu": lambda layer, *kpq: _bent(mp.mpf(0), mp.mpf(1))(*kpq),
    "abs": lambda layer, *kpq: _bent(mp.mpf(-1), mp.mpf(1))(*kpq),
    "leaky_relu": lambda layer, *kpq: _bent(mp.mpf(layer["alpha"]), mp.mpf(1))(*kpq),
    "erf": _erf,
    "gelu": _gelu,
    "sin": _sin,
    "exp": _exp,
    "gaussian": _gaussian,
    "rbf": _rbf,
    "exp_normalized": _exp_normalized,
    "hermite": _hermite,
    "monomial": _monomial,
    "rectified_monomial": _rectified,
    "sign": _sign,
    "identity": lambda layer, k, p, q: (k, mp.mpf(1)),
}
