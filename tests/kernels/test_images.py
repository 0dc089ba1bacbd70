from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkpipe
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.images import as_images

SPEC = [
    {"op": "conv", "features": 8, "filter": [3, 3], "padding": "SAME"},
    {"op": "relu"},
    {"op": "global_avg_pool"},
    {"op": "dense", "features": 1},
]


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((5, 7), None, (5, 7)),
        ((5, 7), "NCHW", (5, 7)),
        ((5, 8, 8), None, (5, 8, 8, 1)),
        ((5, 3, 4), None, (5, 3, 4, 1)),
        ((5, 8, 8, 3), None, (5, 8, 8, 3)),
        ((5, 1, 1, 100), None, (5, 1, 1, 100)),
        ((5, 1, 64, 4), None, (5, 1, 64, 4)),
        ((5, 32, 32, 64), None, (5, 32, 32, 64)),
        ((5, 3, 32, 32), "NCHW", (5, 32, 32, 3)),
        ((5, 3, 32, 32), "NHWC", (5, 3, 32, 32)),
        ((5, 64, 4), "NHWC", (5, 64, 4, 1)),
        ((5, 64, 4), "NCHW", (5, 64, 4, 1)),
    ],
)
def test_what_a_shape_means(shape, layout, expected):
    assert as_images("x", np.zeros(shape), layout).shape == expected


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 3, 32, 32), (5, 4, 8, 6), (5, 64, 4), (5, 3, 100)])
def test_what_looks_like_another_layout_is_asked_about(shape):
    with pytest.raises(DataError, match=r"photos has shape .*data\.layout=.*in Python layout="):
        as_images("photos", np.zeros(shape), None)


def test_what_is_no_layout():
    with pytest.raises(ConfigError, match="NHWC, NCHW"):
        as_images("x", np.zeros((5, 3, 8, 8)), "nchw")
    for shape in ((5,), (5, 1, 2, 3, 4, 5)):
        with pytest.raises(DataError, match="it must be"):
            as_images("x", np.zeros(shape), None)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_architectures_take_layouts(convert):
    arch = ntkpipe.Architecture.from_spec(SPEC)
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 5)).astype(np.float32)
    with pytest.raises(DataError, match=r"data\.layout=NCHW"):
        arch(convert(x))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(arch(convert(x), layout="NCHW").ntk, arch(last).ntk)
    np.testing.assert_array_equal(arch(convert(x), convert(x[:2]), layout="NCHW").nngp, arch(last, last[:2]).nngp)
    np.testing.assert_array_equal(arch.diagonal(convert(x), layout="NCHW").ntk, arch.diagonal(last).ntk)
    gray = x[:, 0]
    np.testing.assert_array_equal(arch(gray).ntk, arch(gray[..., None]).ntk)
