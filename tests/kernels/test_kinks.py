"""Networks whose NTK of zero pixels depends on a slope at 0."""

from __future__ import annotations

import pytest

from ntkpipe.kernels.kinks import needs_slope_at_zero
from ntkpipe.kernels.spec import canonical_spec


def dense(b_std, parameterization="standard"):
    return {"op": "dense", "features": 3, "b_std": b_std, "parameterization": parameterization}


RELU, TANH = {"op": "relu"}, {"op": "erf"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([dense(0.0), RELU, dense(0.0)], True),
        ([dense(0.0), TANH, dense(None), RELU, dense(0.0)], True),
        ([dense(0.0), {"op": "residual_sum", "branches": [[], [RELU, dense(None)]]}], True),
        ([{"op": "repeat", "times": 3, "layers": [dense(0.0), RELU]}], True),
        ([dense(0.0), TANH, dense(0.0)], False),
        ([dense(None), RELU, dense(0.0)], False),
        ([dense(0.0, "ntk"), RELU, dense(0.0)], False),
        ([dense(0.0), TANH, dense(0.1), RELU, dense(0.0)], False),
    ],
)
def test_a_kink_after_a_bias_that_begins_at_zero(layers, expected):
    assert needs_slope_at_zero(canonical_spec(layers)) is expected
