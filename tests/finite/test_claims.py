"""Exponents, their errors and verdicts, on numbers that were made."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.finite import claims

WIDTHS = (64, 128, 256, 512)


def drawn(width, power, networks, spread=0.3, seed=0):
    rng = np.random.default_rng([seed, width])
    return width**power * (1 + spread * rng.standard_normal(networks))


def test_an_exponent_of_exact_powers():
    assert claims.fit_exponent([1, 2, 8], [3.0, 1.5, 0.375]) == (pytest.approx(-1.0), 0.0)
    slope, error = claims.fit_exponent([1, 10], [1.0, 0.1], [0.1, 0.01])
    assert slope == pytest.approx(-1.0)
    assert error == pytest.approx(np.hypot(0.1, 0.1) / np.log(10))


@pytest.mark.parametrize(("power", "verdict"), [(-0.5, "holds"), (-0.1, "does not hold"), (-1.0, "does not hold")])
def test_a_verdict_about_a_root_mean_square(power, verdict):
    made = claims.root_mean_square("kernel", "kernel", -0.5, {w: drawn(w, power, 200) for w in WIDTHS})
    assert made.exponent == pytest.approx(power, abs=0.05)
    assert made.verdict == verdict
    assert made.exponent_error < 0.05
    assert made.networks_needed is None


def test_errors_are_those_of_repeated_experiments():
    again = [
        claims.root_mean_square("kernel", "kernel", -0.5, {w: drawn(w, -0.5, 50, seed=s) for w in WIDTHS})
        for s in range(60)
    ]
    assert np.std([one.exponent for one in again]) == pytest.approx(
        np.mean([one.exponent_error for one in again]), rel=0.35
    )


def outputs(width, bias, noise, networks, seed=0):
    """Ten independent outputs of networks, whose means are `bias / width`."""
    rng = np.random.default_rng([seed, width])
    return bias / width + noise * rng.standard_normal((networks, 10))


def test_a_bias_is_corrected_for_noise():
    made = claims.bias_of_mean("mean", {w: outputs(w, 10.0, 0.02, 2000) for w in WIDTHS})
    assert made.values[0] == pytest.approx(10 / 64, rel=0.03)
    assert made.exponent == pytest.approx(-1.0, abs=0.1)
    assert made.verdict == "holds"
    # Without any bias the squared distance of the means is that of the noise; corrected it is 0 within its error.
    none = [claims.bias_of_mean("mean", {64: outputs(64, 0.0, 1.0, 50, seed)}).values[0] for seed in range(100)]
    squares = np.sign(none) * np.square(none)
    assert abs(squares.mean()) < 3 * squares.std() / 10


def test_noise_that_allows_no_verdict_says_how_many_networks_would():
    made = claims.bias_of_mean("mean", {w: outputs(w, 10.0, 1.0, 50) for w in WIDTHS})
    assert made.verdict == "undecided"
    assert made.networks_needed > 1000
    assert f"use about {made.networks_needed:,} networks" in made.text
    enough = claims.bias_of_mean("mean", {w: outputs(w, 10.0, 1.0, made.networks_needed) for w in WIDTHS})
    assert enough.verdict == "holds"


def test_a_bias_of_the_variance():
    def spread(width):
        return np.sqrt(2.0 * (1 - 8.0 / width)) * outputs(width, 0.0, 1.0, 4000)

    predicted = {w: np.full(10, 2.0) for w in WIDTHS}
    made = claims.bias_of_variance("variance", {w: spread(w) for w in WIDTHS}, predicted)
    np.testing.assert_allclose(made.values, [-8 / w for w in WIDTHS], atol=0.03)
    assert made.exponent == pytest.approx(-1.0, abs=3 * made.exponent_error)
    assert made.verdict == "holds"


def test_a_few_networks_decide_nothing():
    made = claims.root_mean_square("kernel", "kernel", -0.5, {w: drawn(w, -0.5, 9) for w in WIDTHS})
    assert (made.verdict, made.networks_needed) == ("undecided", 10)


def test_one_width_has_no_exponent():
    made = claims.root_mean_square("kernel", "kernel", -0.5, {64: drawn(64, -0.5, 20)})
    assert (made.exponent, made.verdict) == (None, "undecided")
    assert "give several" in made.text
