"""The two-layer network beyond rate 2 over lambda (arXiv:2003.02218), against descent on its weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ntkpipe
from ntkpipe.errors import ConfigError
from ntkpipe.finite.two_layers import catapult


def descended(width, rate, f0, lambda0, target, seed=0):
    """Gradient descent on u and v themselves, from weights that have the wanted output and curvature."""
    rng = np.random.default_rng(seed)
    u, other = rng.standard_normal((2, width))
    u /= np.linalg.norm(u)
    other -= (other @ u) * u
    other /= np.linalg.norm(other)
    size = math.sqrt(width * lambda0 / 2)
    cosine = f0 * math.sqrt(width) / size**2
    u, v = size * u, size * (cosine * u + math.sqrt(1 - cosine**2) * other)
    eta, peak, steps = rate / lambda0, 0.0, 0
    while True:
        g = v @ u / math.sqrt(width) - target
        peak = max(peak, abs(g))
        if abs(g) < 1e-12:
            return steps, (u @ u + v @ v) / width, peak
        u, v = u - eta * g * v / math.sqrt(width), v - eta * g * u / math.sqrt(width)
        steps += 1


@pytest.mark.parametrize(
    ("rate", "f0", "target"), [(0.5, 0.8, 0.0), (1.5, 0.8, 0.3), (2.5, 0.8, 0.0), (3.5, 0.8, 0.0), (3.0, -0.4, 0.5)]
)
def test_two_numbers_follow_the_weights(rate, f0, target):
    made = catapult(width=64, rate=rate, f0=f0, target=target)
    steps, curvature, peak = descended(64, rate, f0, 2.0, target)
    assert made.end == "converged"
    # The last error is near 1e-12 of an output near 1, rounded to 1e-16: a step more or less.
    assert abs(made.steps - steps) <= 1
    assert made.lambda_end == pytest.approx(curvature, rel=1e-9)
    assert made.peak_error == pytest.approx(peak, rel=1e-9)


def test_reference_values():
    made = ntkpipe.catapult(width=512, rate=2.5, f0=0.8, lambda0=2.0, target=0.0)
    assert (made.end, made.steps) == ("converged", 32)
    assert made.lambda_end == pytest.approx(1.0222580794, abs=5e-11)
    assert made.peak_error == pytest.approx(7.486301763, abs=5e-10)
    assert catapult(rate=3.5).lambda_end == pytest.approx(0.342810, abs=5e-7)
    assert catapult(rate=4.2).end == "diverged"


def test_three_phases():
    lazy = catapult(width=10**6, rate=1.5)
    assert lazy.lambda_end == pytest.approx(2.0, abs=1e-4)
    assert lazy.peak_error == 0.8
    for rate in (2.5, 3.0, 3.5):
        made = catapult(width=10**6, rate=rate)
        # Thrown to an error of the order of the root of the width, it ends where its rate is stable.
        assert made.peak_error > 0.1 * math.sqrt(10**6)
        assert rate * made.lambda_end / 2.0 < 2.0
    # Of a sample that is fitted already nothing moves.
    assert catapult(f0=0.5, target=0.5, rate=9.0).steps == 0


def test_an_end_is_not_waited_for():
    made = catapult(rate=2.0, max_steps=100)
    assert (made.end, made.steps) == ("unfinished", 100)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 0}, "width=0"),
        ({"rate": 0.0}, "rate=0.0 must be above 0"),
        ({"lambda0": -1.0}, "lambda0"),
        ({"target": math.nan}, "target=nan"),
        ({"f0": 30.0}, "no network of width 512"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
)
def test_bad_input(settings, text):
    with pytest.raises(ConfigError, match=text):
        catapult(**settings)
