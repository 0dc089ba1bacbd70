"""Agreement with neural-tangents, float64."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe.kernels.architecture import Architecture

NAMES = [
    "fcn_d1_relu_nobias",
    "fcn_d3_relu_bias",
    "fcn_d10_relu_bias",
    "fcn_d5_erf",
    "fcn_d3_gelu",
    "fcn_d3_leaky",
    "fcn_d3_abrelu",
    "fcn_d2_relu_standard",
    "fcn_d3_erf_standard_nobias",
    "fcn_d2_sin",
    "fcn_d3_layernorm_relu",
]


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference"
    described = json.loads((folder / "public.json").read_text())
    with np.load(folder / "public.npz", allow_pickle=False) as arrays:
        yield described, arrays


def test_every_fully_connected_case_is_listed(reference):
    assert sorted(NAMES) == sorted(c["name"] for c in reference[0]["cases"] if c["name"].startswith("fcn"))


@pytest.mark.parametrize("name", NAMES)
def test_fully_connected_case(reference, name):
    described, arrays = reference
    case = next(c for c in described["cases"] if c["name"] == name)
    inputs = described["inputs"][case["inputs"]]
    train, test = arrays[inputs["train"]], arrays[inputs["test"]]
    arch = Architecture.from_spec(case["arch"])
    rtol = case["rtol"]
    blocks = {"train_train": arch(train), "test_train": arch(test, train)}
    for kernel in ("nngp", "ntk"):
        for block, made in blocks.items():
            expected = arrays[case["expected"][f"{kernel}_{block}"]]
            error = np.abs(getattr(made, kernel) - expected) / np.abs(expected).max()
            assert getattr(made, kernel).dtype == np.float64
            if block == "train_train":
                assert np.diag(error).max() <= rtol[f"{kernel}_train_train_diagonal"]
                np.fill_diagonal(error, 0)
            assert error.max() <= rtol["default"]
