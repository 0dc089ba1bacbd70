"""Fits of learning curves whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.report.learning_curve import PowerLaw, fit_power_law


def sizes_of(count: int) -> np.ndarray:
    return np.geomspace(100, 20_000, count).astype(int)


def law_of(sizes: np.ndarray, exponent: float, constant: float) -> np.ndarray:
    return 0.6 * (sizes / sizes[0]) ** -exponent + constant


def fitted(sizes: np.ndarray, losses: np.ndarray) -> PowerLaw:
    law, why = fit_power_law(sizes, losses)
    assert why == ""
    assert law is not None
    return law


@pytest.mark.parametrize("count", [4, 5, 6, 8, 12])
@pytest.mark.parametrize("exponent", [0.1, 0.35, 1.0, 1.5])
@pytest.mark.parametrize("constant", [0.0, 0.05, 0.3, 5.0])
def test_laws_without_noise_are_found_again(count, exponent, constant):
    sizes = sizes_of(count)
    values = law_of(sizes, exponent, constant)
    law = fitted(sizes, np.repeat(values[:, None], 3, axis=1))
    # Rounding of 1e-16, times the condition of a fit in which powers resemble a constant.
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.constant == pytest.approx(constant, abs=1e-5)
    assert law.exponent_low - 1e-9 <= exponent <= law.exponent_high + 1e-9
    assert law.exponent_high - law.exponent_low < 1e-4
    np.testing.assert_allclose(law.at(sizes), values, rtol=1e-8)
    assert law.doubts() == []


def shared(values, p, rng):
    """Test images of one difficulty each: wrong at every size that is too small for them."""
    return (rng.random(p) < values[:, None]).astype(float)


def independent(values, p, rng):
    return (rng.random((len(values), p)) < values[:, None]).astype(float)


def squared(values, p, rng):
    return values[:, None] * (0.8 * rng.standard_normal(p) + 0.6 * rng.standard_normal((len(values), p))) ** 2


def moved(values, p, rng):
    """The training images of each size move its error by 2%, and the test images do not show it."""
    return (values * np.exp(0.02 * rng.standard_normal(len(values))))[:, None] * np.ones((1, 2))


@pytest.mark.parametrize("draw", [shared, independent, squared, moved])
@pytest.mark.parametrize(
    ("exponent", "constant", "count"), [(0.15, 0.0, 4), (0.35, 0.1, 5), (0.35, 0.0, 6), (1.0, 0.05, 8), (1.5, 0.3, 12)]
)
def test_intervals_cover_the_truth_at_their_rate(draw, exponent, constant, count):
    rng, trials, covered, told = np.random.default_rng([count, int(100 * exponent)]), 40, 0, 0
    sizes = sizes_of(count)
    for _ in range(trials):
        law = fitted(sizes, draw(law_of(sizes, exponent, constant), 3000, rng))
        covered += law.exponent_low <= exponent <= law.exponent_high
        told += law.constant > 0
    # At a rate of 0.95, 32 or fewer of 40 come once in 2,600 times.
    assert covered > 32
    if constant == 0:
        assert told <= 8


@pytest.mark.parametrize(("count", "widest"), [(5, 0.25), (8, 0.15), (12, 0.12)])
def test_intervals_are_not_wider_than_the_noise_asks_for(count, widest):
    rng, sizes = np.random.default_rng(0), sizes_of(count)
    laws = [fitted(sizes, independent(law_of(sizes, 0.35, 0.0), 5000, rng)) for _ in range(15)]
    assert np.median([law.exponent_high - law.exponent_low for law in laws]) < widest


def test_what_so_few_sizes_leave_open_is_said():
    sizes, rng = np.array([1000, 2000, 4000]), np.random.default_rng(3)
    law = fitted(sizes, independent(law_of(sizes, 0.3, 0.0), 500, rng))
    assert law.constant == 0
    assert law.constant_high > 0.05
    assert law.exponent_high > 0.6
    assert any("an added constant of up to" in doubt for doubt in law.doubts())
    assert "fits as well" in law.text()


def test_five_sizes_tell_a_constant():
    sizes, rng = sizes_of(5), np.random.default_rng(4)
    law = fitted(sizes, shared(law_of(sizes, 0.35, 0.1), 10_000, rng))
    assert law.constant == pytest.approx(0.1, abs=0.05)
    assert law.exponent_low < 0.35 < law.exponent_high


def test_what_is_no_power_law_is_said():
    sizes, rng = sizes_of(8), np.random.default_rng(5)
    bump = law_of(sizes, 0.3, 0.0) * (1 + 0.5 * (np.arange(8) == 4))  # a peak on the way down
    law = fitted(sizes, independent(np.minimum(bump, 1.0), 5000, rng))
    assert law.chance < 1e-6
    assert "not a power law" in law.text()
    flat = fitted(sizes, independent(np.full(8, 0.5), 500, rng))
    assert flat.exponent_low <= 0
    assert "n^0.0" in flat.text()
    assert "(any exponent)" in flat.text()
    assert "the errors may not decrease at all" in flat.text()
    rising = fitted(sizes, independent(np.linspace(0.2, 0.6, 8), 5000, rng))
    assert rising.exponent < 0
    assert "the errors may not decrease at all" in rising.text()


def test_what_has_no_fit():
    sizes = sizes_of(6)
    assert fit_power_law(sizes, np.zeros((6, 9)))[1] == "an error is 0 or not finite"
    assert fit_power_law(sizes, np.full((6, 9), math.nan))[1] == "an error is 0 or not finite"
    assert "at least 3 sizes" in fit_power_law(sizes[:2], np.ones((2, 9)))[1]


def test_one_test_image_gives_a_law():
    sizes = sizes_of(5)
    assert fitted(sizes, law_of(sizes, 0.5, 0.0)[:, None]).exponent == pytest.approx(0.5, abs=1e-6)
