"""Diagrams of networks: every layer is in them, repetitions are framed, branches meet."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

import ntkpipe as nk
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.report.network import network_svg

DENSE = {"op": "dense", "features": 5, "w_std": 1.0}
SPACE = "{http://www.w3.org/2000/svg}"


def drawn(spec, shape=None):
    root = ElementTree.fromstring(network_svg(canonical_spec(spec), shape))
    texts = ["".join(one.itertext()) for one in root.iter(f"{SPACE}text")]
    frames = [one for one in root.iter(f"{SPACE}rect") if one.get("class") == "frame"]
    return root, texts, frames


@pytest.mark.parametrize("name", ["fcn", "cnn_gap", "myrtle10", "resnet", "wide_resnet", "attention"])
def test_everything_lies_inside_the_picture(name):
    root, texts, _ = drawn(getattr(nk.zoo, name)().to_spec(), (32, 32, 3))
    assert texts[0] == "input"
    assert texts[-1] == "output"
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{SPACE}rect"):
        x, y, w, h = (float(box.get(side)) for side in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_equal_layers_in_a_row_are_drawn_once():
    _, texts, frames = drawn(nk.zoo.myrtle10().to_spec())
    assert len(frames) == 3  # convolutions within groups, groups, and the poolings at the end
    assert texts.count("conv 3×3") == 1
    assert [text for text in texts if text.startswith("×")].count("× 3") == 2


def test_layers_that_differ_in_a_parameter_are_not():
    _, texts, frames = drawn([DENSE, {"op": "relu"}, {**DENSE, "w_std": 2.0}, {"op": "relu"}])
    assert not frames
    assert texts.count("dense") == 2


def test_branches_meet_in_their_sign_and_repeats_say_how_often():
    branches = {"op": "fan_in_product", "branches": [[DENSE, {"op": "relu"}], [DENSE]]}
    root, texts, frames = drawn([branches, {"op": "repeat", "times": 1000, "layers": [DENSE, {"op": "erf"}]}, DENSE])
    assert len(list(root.iter(f"{SPACE}circle"))) == 1
    assert "×" in texts
    assert "× 1,000" in texts
    assert len(frames) == 1
    _, texts, _ = drawn([DENSE, {"op": "residual_sum", "branches": [[{"op": "relu"}, DENSE], []]}])
    assert "+" in texts
