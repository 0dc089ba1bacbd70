"""Kernels of deep networks of every nonlinearity, against a recursion with 18 digits that shares no code with the package.

All images have the fixed variance q, so that a nonlinearity is one power series in the correlation, `E phi(u) phi(v) = sum a_j^2 c^j`
and `q E phi'(u) phi'(v) = sum j a_j^2 c^(j - 1)`. The `a_j` are integrals over one Gaussian, by the trapezoidal rule on 22-digit
values of phi. Piecewise ones have closed forms in the angle. The recursion follows the gap `1 - c` in long double.

What float64 can hold: rounded deviations move q by `eps / (1 - V'(q))` and chi_1 by a few eps. Each of L layers multiplies the NTK by
chi_1, so its relative error is a few `L eps / (1 - V')`: 1e-11 to 1e-10 for 10,000 layers. In the ordered and in the chaotic phase the
kernels of different images forget errors after xi_c layers. ELU is not compared: its second derivative jumps, and its series is slow.
"""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
from layer_kinds import dense, repeat

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.parameters import ACTIVATIONS

CORRELATION, TERMS = 0.6, 200
LONG = np.longdouble
PI = np.arccos(LONG(-1))
SCALE = mp.mpf("2.4020563531719796")


SLOWER = ("elementwise", "tanh", "sigmoid", "swish", "softplus", "mish", "gelu")


def logistic(x):
    return 1 / (1 + mp.exp(-x))


SMOOTH = {
    "erf": ({}, mp.erf),
    "gelu": ({}, lambda x: x * mp.ncdf(x)),
    "sin": ({}, mp.sin),
    "cos": ({}, mp.cos),
    "monomial": ({"degree": 2}, lambda x: x**2),
    "hermite": ({"degree": 3}, lambda x: (x**3 - 3 * x) / mp.sqrt(6)),
    "exp": ({}, mp.exp),
    "rbf": ({}, lambda x: mp.sqrt(2) * mp.sin(mp.sqrt(2) * x + mp.pi / 4)),
    "gaussian": ({}, lambda x: mp.exp(-(x**2))),
    "sigmoid_like": ({}, lambda x: 0.5 * mp.erf(x / SCALE) + 0.5),
    "elementwise": ({"function": "sin(x) + x"}, lambda x: mp.sin(x) + x),
    "tanh": ({}, mp.tanh),
    "sigmoid": ({}, logistic),
    "swish": ({}, lambda x: x * logistic(x)),
    "softplus": ({}, lambda x: mp.log(1 + mp.exp(x))),
    "mish": ({}, lambda x: x * mp.tanh(mp.log(1 + mp.exp(x)))),
}
SLOPES = {
    "relu": (0, 1),
    "leaky_relu": (0.1, 1),
    "ab_relu": (-0.5, 1),
    "abs": (-1, 1),
    "identity": (1, 1),
    "rectified_monomial": (0, 1),
}
PIECEWISE = {"leaky_relu": {"alpha": 0.1}, "ab_relu": {"a": -0.5, "b": 1.0}, "rectified_monomial": {"degree": 1}}


class Series:
    """Of a smooth phi at the variance q."""

    def __init__(self, function, q):
        with mp.workdps(25):
            z = [mp.mpf(k) / 20 for k in range(-260, 261)]
            root = mp.sqrt(mp.mpf(q))
            values = np.array([LONG(mp.nstr(function(root * one) * mp.npdf(one) / 20, 22)) for one in z])
        z = np.arange(-260, 261, dtype=LONG) / 20
        before, now, made = np.zeros_like(z), np.ones_like(z), []
        for j in range(TERMS):
            made.append(values @ now)
            before, now = now, (z * now - np.sqrt(LONG(j)) * before) / np.sqrt(LONG(j + 1))
        self.j, self.a2, self.q = np.arange(TERMS).astype(LONG), np.array(made) ** 2, LONG(q)
        self.square, self.dot_square = self.a2.sum(), (self.j * self.a2).sum() / self.q
        # E[phi^2 (z^2 - 1)] / (2 q)
        squares = values**2 * np.exp(z**2 / 2) * np.sqrt(2 * PI) * 20
        self.slope = (squares * (z**2 - 1)).sum() / (2 * self.q)

    def __call__(self, gap):
        logarithm = np.log1p(-gap)
        kept = np.exp((self.j[1:] - 1) * logarithm)
        lost = self.a2[1:] @ -np.expm1(self.j[1:] * logarithm)
        return lost, (self.j[1:] * self.a2[1:]) @ kept / self.q


class Piecewise:
    """phi(x) = a x below 0 and b x above."""

    def __init__(self, slopes, q):
        a, b = (LONG(repr(one)) for one in slopes)
        self.q, self.mean, self.bend = LONG(q), (a * a + b * b) / 2, (a - b) ** 2 / (2 * PI)
        self.square, self.dot_square, self.slope = self.mean * self.q, self.mean, self.mean

    def __call__(self, gap):
        angle = 2 * np.arcsin(np.sqrt(gap / 2))
        # sin t - t cos t without that difference
        bent = np.sin(angle) - angle * np.cos(angle)
        if angle < 0.05:
            bent = angle**3 / 3 * (1 - angle**2 / 10 * (1 - angle**2 / 28 * (1 - angle**2 / 54)))
        return self.q * (self.mean * gap - self.bend * bent), self.mean - self.bend * angle


class Sign(Piecewise):
    def __init__(self, q):
        self.q, self.square, self.dot_square, self.slope = LONG(q), LONG(1), LONG(np.inf), LONG(0)

    def __call__(self, gap):
        return 4 / PI * np.arcsin(np.sqrt(gap / 2)), 2 / (PI * self.q * np.sqrt(gap * (2 - gap)))


class Normalised(Piecewise):
    """sqrt(p q) exp(c - 1), the kernel of `exp_normalized`."""

    def __init__(self, q):
        self.q, self.square, self.dot_square, self.slope = LONG(q), LONG(q), LONG(1), LONG(1)

    def __call__(self, gap):
        return -self.q * np.expm1(-gap), np.exp(-gap)


def reference(maps, layers, w_std, b_std):
    """NNGP between different images; NTK of one and of different images."""
    q, w2, gap = maps.q, LONG(w_std) ** 2, 1 - LONG(CORRELATION)
    ratio = (w2 * maps.square + LONG(b_std) ** 2) / q if b_std == 0 else LONG(1)
    own, other = q, q * (1 - gap)
    for _ in range(layers):
        lost, dot = maps(gap)
        gap = w2 * lost / (q * ratio)
        own, other = q + w2 * maps.dot_square / ratio * own, q * (1 - gap) + w2 * dot / ratio * other
    grown = ratio**layers
    return q * (1 - gap) * grown, own * grown, other * grown


def made_by(layer, layers, q, w_std, b_std):
    x = np.sqrt(2 * q) * np.array([[1.0, 0.0], [CORRELATION, math.sqrt(1 - CORRELATION**2)]])
    spec = [dense(1, 1.0, None), repeat(layers, layer, dense(1, w_std, b_std or None))]
    kernels = Architecture.from_spec(spec)(x)
    return kernels.nngp[0, 1], kernels.ntk[0, 0], kernels.ntk[0, 1]


def of(name, q):
    if name in SMOOTH:
        arguments, function = SMOOTH[name]
        return {"op": name, **arguments}, Series(function, q)
    if name in SLOPES:
        return {"op": name, **PIECEWISE.get(name, {})}, Piecewise(SLOPES[name], q)
    return {"op": name}, Sign(q) if name == "sign" else Normalised(q)


def points(name, maps):
    """Deviations with the fixed variance q, and stable there: ordered, critical, chaotic."""
    if name == "sign":
        return [0.5 * math.sqrt(maps.q)]
    scales = name in SLOPES or name == "exp_normalized"
    if scales:
        return [math.sqrt(chi / float(maps.dot_square)) for chi in (0.97, 1.0)]
    found = []
    for chi in (0.005, 0.02, 0.2, 0.5, 0.97, 1.0, 1.01):
        w2 = chi / float(maps.dot_square)
        if maps.q - w2 * maps.square >= 0 and abs(w2 * maps.slope) < 0.99:
            found.append(math.sqrt(w2))
    return found[-3:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "elu"])
def test_to_nine_digits(name):
    """At the most chaotic point with a stable variance q: critical where there is a line. Fewer layers of what takes longer."""
    q = 0.1
    layer, maps = of(name, q)
    layers = 1_000 if name in SLOWER else 10_000
    for w_std in points(name, maps)[-1:]:
        left = q - w_std**2 * float(maps.square)
        b_std = math.sqrt(left) if left > 1e-12 else 0.0
        right, made = reference(maps, layers, w_std, b_std), made_by(layer, layers, q, w_std, b_std)
        known = slice(0, 1) if name == "sign" else slice(None)  # the package takes the derivative of sign as 0
        np.testing.assert_allclose(np.float64(made)[known], np.float64(right)[known], rtol=1e-9)
