"""The length of expansions follows from the data, and what they leave of both kernels is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.kernels.truncation import expanded_layers, expansion_error, extreme_images, with_degrees

CONV = {"op": "conv", "features": 4, "filter": [3, 3], "w_std": 1.2, "b_std": 0.1}
DENSE = {"op": "dense", "features": 8, "w_std": 2.0, "b_std": 0.1}
TANH = {"op": "tanh", "degree": 5}
NETWORKS = {
    "fully connected": [DENSE, TANH, DENSE, {"op": "elu", "degree": 6}, DENSE, {"op": "relu"}, DENSE],
    "convolutional": [
        CONV,
        TANH,
        {"op": "avg_pool", "window": [2, 2]},
        CONV,
        {"op": "relu"},
        {"op": "global_avg_pool"},
        DENSE,
    ],
    "standard": [DENSE | {"parameterization": "standard"}, TANH, DENSE | {"parameterization": "standard"}],
}


def with_degree(spec, degree):
    made = canonical_spec(spec)
    for _, layer in expanded_layers(made):
        layer.update(degree=degree, nodes=2 * degree + 2)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_is_bounded(name):
    """Against a longer series, whose own bound is far smaller; next to equal images too, where the largest errors are."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 3, 3, 2) if name == "convolutional" else (8, 6))
    x = np.concatenate([x, x + 1e-3 * rng.standard_normal(x.shape)])
    spec, longer = NETWORKS[name], with_degree(NETWORKS[name], 21)
    made, exact = Architecture.from_spec(spec)(x), Architecture.from_spec(longer)(x)
    bound, rest = expansion_error(spec, x), expansion_error(longer, x)
    for kernel in ("nngp", "ntk"):
        value, wanted = getattr(made, kernel), getattr(exact, kernel)
        own = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        error = (np.abs(value - wanted) / own).max()
        assert rest[kernel] < 0.2 * bound[kernel]
        assert 1e-4 * bound[kernel] < error <= bound[kernel] + rest[kernel]


def test_networks_without_expansions_leave_nothing():
    assert expansion_error([DENSE, {"op": "relu"}, DENSE], np.ones((2, 3))) == {"nngp": 0.0, "ntk": 0.0}


def test_degrees_follow_from_the_variances_and_the_precision():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((20, 6))
    spec = [DENSE, {"op": "swish"}, DENSE, {"op": "residual_sum", "branches": [[{"op": "tanh"}, DENSE], []]}, DENSE]

    def degrees(images, dtype):
        return [layer["degree"] for _, layer in expanded_layers(with_degrees(spec, images, dtype))]

    assert degrees(0.01 * x, "float32") == [64, 64]
    low, high = degrees(x, "float32"), degrees(x, "float64")
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert high[1] == 255
    kept = [DENSE, TANH, DENSE]
    assert with_degrees(kept, x, "float64") == canonical_spec(kept)


def test_extreme_images():
    x = np.random.default_rng(3).standard_normal((50, 2, 2, 1))
    x[7], x[9], x[11, 0, 0, 0] = 0, 10, 15
    assert {7, 9, 11} <= set(extreme_images(x))
    assert len(extreme_images(x)) <= 5
