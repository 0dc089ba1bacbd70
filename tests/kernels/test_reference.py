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
    "cnn3_same_flatten_relu",
    "cnn2_valid_flatten_relu",
    "cnn3_circular_flatten_erf",
    "cnn2_same_stride2_flatten_relu",
    "cnn2_flatten_standard",
    "cnn3_same_gap_relu",
    "cnn3_circular_gap_relu",
    "cnn2_same_avgpool3s2_same",
    "myrtle5_8x8",
    "myrtle10_8x8",
    "myrtle5_32x32",
    "resnet_identity_gap",
    "wrn_small",
    "cnn2_layernorm_channel_gap",
    "cnn2_layernorm_all_gap",
    "attn_softmax_gap",
]


@pytest.fixture(scope="module")
def reference(reference_folder):
    described = json.loads((reference_folder / "public.json").read_text())
    with np.load(reference_folder / "public.npz", allow_pickle=False) as arrays:
        yield described, arrays


def find(reference, name):
    """A case, its images and the architecture."""
    described, arrays = reference
    case = next(c for c in described["cases"] if c["name"] == name)
    inputs = described["inputs"][case["inputs"]]
    return case, arrays[inputs["train"]], arrays[inputs["test"]], Architecture.from_spec(case["arch"])


def test_every_case_is_listed(reference):
    assert sorted(NAMES) == sorted(c["name"] for c in reference[0]["cases"])


@pytest.mark.parametrize("name", NAMES)
def test_case(reference, name):
    case, train, test, arch = find(reference, name)
    rtol = case["rtol"]
    # As many columns in both blocks: one compiled program serves both.
    padded = np.concatenate([test, train])[: len(train)]
    blocks = {"train_train": arch(train), "test_train": arch(padded, train)}
    for kernel in ("nngp", "ntk"):
        for block, made in blocks.items():
            expected = reference[1][case["expected"][f"{kernel}_{block}"]]
            values = getattr(made, kernel)[: len(expected)]
            error = np.abs(values - expected) / np.abs(expected).max()
            assert values.dtype == np.float64
            if block == "train_train":
                assert np.diag(error).max() <= rtol[f"{kernel}_train_train_diagonal"]
                np.fill_diagonal(error, 0)
            assert error.max() <= rtol["default"]


def test_diagonals_are_exact_where_the_peer_rounds(reference):
    """Of a ReLU network without pooling, in closed form: the peer is off by the angle that it finds between equal images.

    All variances of a layer follow from those of the one below, and the NTK is a sum of them.
    """
    case, train, _, arch = find(reference, "fcn_d10_relu_bias")
    w2, b2 = 2.0, 0.01
    variance, ntk = (train.reshape(len(train), -1) ** 2).mean(axis=1), 0.0
    for layer in case["arch"]:
        if layer["op"] == "dense":
            variance, ntk = w2 * variance + b2, w2 * variance + b2 + w2 * ntk
        elif layer["op"] == "relu":
            variance, ntk = variance / 2, ntk / 2
    made = arch(train)
    # Two roundings in each of 21 layers, and sums of 3,072 squares in NumPy's pairwise order: 12 more.
    bound = (2 * 21 + 12) * np.finfo(np.float64).eps
    np.testing.assert_allclose(np.diag(made.nngp), variance, rtol=bound)
    np.testing.assert_allclose(np.diag(made.ntk), ntk, rtol=bound)
    peer = np.diag(reference[1][case["expected"]["ntk_train_train"]])
    assert np.abs(peer / ntk - 1).max() > 1e4 * bound
