"""Learning curves beyond the sample."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.dynamics.extrapolation import extrapolate
from ntkpipe.dynamics.learning_theory import learning_theory
from ntkpipe.errors import ConfigError
from ntkpipe.solvers.spectrum import spectrum


def test_a_power_law_goes_on_with_no_band_to_speak_of():
    n = [100, 200, 400, 800]
    for one in extrapolate(n, [3.0 * x**-0.4 for x in n], [1600, 6400], 0.5):
        assert one.test_mse == pytest.approx(3.0 * one.n**-0.4)
        assert (one.low, one.high) == (pytest.approx(one.test_mse), pytest.approx(one.test_mse))
        assert one.ridge == 0.5


def test_a_floor_lies_in_the_band():
    n = [100, 200, 400, 800, 1600]
    for one in extrapolate(n, [0.2 + 10.0 / x for x in n], [3200, 6400]):
        assert one.low < 0.2 + 10.0 / one.n < one.high


def test_a_sample_of_a_known_spectrum_tells_what_more_points_give():
    rng = np.random.default_rng(0)
    values, coefficients = np.arange(1, 20001) ** -1.6, np.arange(1, 20001) ** -1.0
    features = rng.standard_normal((300, 20000)) * np.sqrt(values)
    targets = (features / np.sqrt(values)) @ coefficients
    found = spectrum(features @ features.T, targets, ridges=(1e-3,))
    exact = {
        one.n: learning_theory(values, coefficients, one.n, found.absolute_ridges[0]) for one in found.extrapolated()
    }
    for one in found.extrapolated([600, 1200]):
        assert one.low * 0.85 < exact[one.n].test_mse < one.high * 1.15
    assert "extrapolated squared error" in "\n".join(found.lines())
    assert [one["n"] for one in found.to_dict()["extrapolated"]] == [600, 1200, 2400]


def test_what_is_no_extrapolation_is_refused():
    n = [100, 200, 400, 800]
    with pytest.raises(ConfigError, match="sizes must be above"):
        extrapolate(n, [4, 3, 2, 1], [500])
    with pytest.raises(ConfigError, match="up to 12800"):
        extrapolate(n, [4, 3, 2, 1], [20_000])
    with pytest.raises(ConfigError, match="too few"):
        extrapolate(n[:3], [3, 2, 1], [500])
