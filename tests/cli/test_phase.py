"""`ntkpipe phase`: text, JSON, diagrams, blocks, and what it refuses."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ntkpipe import phase

ERF = ("phase", "kernel.activation=erf", "kernel.w_std=1.3", "kernel.b_std=0.2")


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_json_is_one_object_with_the_fields_of_python(command, tmp_path):
    code, out, _ = command(*ERF, "format=json")
    assert code == 0
    made, expected = json.loads(out), phase("erf", w_std=1.3, b_std=0.2)
    for name in ("q_star", "chi_1", "c_star", "chi_c_star", "xi_q", "xi_c", "phase", "critical_w_std"):
        assert made[name] == getattr(expected, name)
    assert not list(tmp_path.iterdir())  # no data is looked at


def test_at_criticality_the_length_is_infinite(command):
    code, out, _ = command("phase", "kernel.w_std=1.4142135623730951", "kernel.b_std=0", "format=json")
    made = json.loads(out)
    assert (code, made["phase"], made["xi_c"], made["critical_w_std"]) == (0, "critical", "inf", pytest.approx(2**0.5))


def test_text_says_what_depth_does(command):
    code, out, _ = command(*ERF, "kernel.depth=30")
    assert code == 0
    assert "erf, w_std=1.3, b_std=0.2: chaotic" in out
    assert "depth 30 is 2 correlation lengths (14.7 layers)" in out
    _, out, _ = command(*ERF, "kernel.depth=200")
    assert "makes equal images differ" in out
    _, out, _ = command(*ERF, "kernel=cnn_vec", "image_shape=[8,8,3]")
    assert "filter 3 x 3: the slowest spatial mode over 8 pixels has a depth scale of" in out


def test_a_diagram_is_drawn_with_its_numbers(command, tmp_path):
    code, out, _ = command(*ERF, "phase.w_std=[0.5,2,7]", "phase.b_std=[0,0.5,5]", "path=here")
    assert code == 0
    assert "critical w_std at this b_std is 1.1528" in out
    made = json.loads((tmp_path / "here" / "phase.json").read_text())
    assert np.shape(made["xi_c"]) == (5, 7)
    line = made["critical"]
    assert np.interp(0.2, line["b_std"], line["w_std"]) == pytest.approx(
        phase("erf", w_std=1.0, b_std=0.2).critical_w_std, rel=1e-3
    )
    rows = table(tmp_path / "here" / "phase.csv")
    assert len(rows) == 35
    one = rows[17]
    expected = phase("erf", w_std=float(one["w_std"]), b_std=float(one["b_std"]))
    for name in ("q_star", "chi_1", "c_star", "xi_c"):
        assert float(one[name]) == pytest.approx(getattr(expected, name), rel=1e-12)
    curves = table(tmp_path / "here" / "depth.csv")
    assert {row["first_correlation"] for row in curves} == {"0.0", "0.5", "0.9", "0.99"}
    with Image.open(tmp_path / "here" / "phase.png") as image:
        assert min(image.size) > 600
        assert np.asarray(image.convert("L")).std() > 10


def test_a_diagram_is_drawn_of_a_network_without_a_phase(command, tmp_path):
    code, out, _ = command("phase", "phase.w_std=[0.5,2,4]", "phase.b_std=[0,0.5,3]")  # ReLU at 2, with biases
    assert code == 0
    assert "grows without bound" in out
    assert (tmp_path / "phase" / "phase.png").exists()
    assert not (tmp_path / "phase" / "depth.csv").exists()
    assert json.loads((tmp_path / "phase" / "phase.json").read_text())["critical"]["is_point"] is True


def test_without_a_lasting_variance_the_facts_that_exist_are_shown(command):
    """ReLU with biases has no phase; it has a factor a layer, a depth, and one critical point."""
    code, out, _ = command("phase", "kernel.depth=9")  # w_std = sqrt 2, b_std = 0.1
    assert code == 0
    assert "grows without bound" in out
    assert "the only critical network has w_std=1.414213562 and b_std=0" in out
    assert "each layer multiplies the variance by 1 and adds b_std^2 = 0.01" in out
    code, out, _ = command("phase", "kernel.depth=9", "format=json")
    made = json.loads(out)
    assert (code, made["q_star"], made["phase"], made["critical_w_std"]) == (0, "inf", None, None)
    assert made["variance"] == pytest.approx([2.0 + 0.01 * k for k in range(1, 11)])
    assert made["kept"] == pytest.approx(2.01 / 2.10)  # the slopes q_l / q_(l + 1) of ReLU's correlation map
    assert made["chi_1"] == pytest.approx(1.0)
    code, out, _ = command("phase", "kernel.activation=monomial", "+kernel.activation_args.degree=2")
    assert code == 0
    assert "there is a stable fixed point at 0.010685" in out
    assert "each layer multiplies" not in out


def test_blocks_have_a_slope_and_no_critical_line(command):
    code, out, _ = command("phase", "kernel=resnet", "kernel.w_std=1", "kernel.b_std=0", "format=json")
    made = json.loads(out)
    assert (code, made["block"]) == (0, [1, 2])
    assert "critical" not in out
    # Two ReLU layers of w_std 1 beside the identity: 1 + 1/4, and correlations keep all of it at 1.
    assert made["gradient"][0] == pytest.approx(1.25, rel=1e-7)
    assert made["slope_at_1"][0] == pytest.approx(1.0, rel=1e-7)
    code, out, _ = command("phase", "kernel=attention", "phase.block=[1,3]", "phase.repetitions=3")
    assert code == 0
    assert "block of layers 1 to 2, repeated" in out


@pytest.mark.parametrize("words", ["kernel=resnet", "kernel=fcn", "kernel=cnn_vec kernel.activation=erf", "kernel=rbf"])
def test_describe_has_up_to_three_lines_of_it(command, words):
    code, out, _ = command("describe", *words.split(), "image_shape=[8,8,3]")
    assert code == 0
    after = out.split("fingerprint")[1].splitlines()[1:]
    assert len(after) <= 3
    expected = {"kernel=resnet": "block of layers 1 to 1", "kernel=fcn": "grows without bound", "kernel=rbf": ""}
    assert expected.get(words, "critical w_std at this b_std is") in "".join(after)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("phase.input_variance=0", "must be"),
        ("format=yaml", "format=yaml is not one of text, json"),
        ("phase.w_std=[1,2,5]", "needs both axes"),
        ("phase.w_std=[1,2,5] phase.b_std=[0,1,5] format=json", "writes phase.json beside its figure"),
        ("path=here", "path=here is the folder of a phase diagram"),
        ("phase.w_std=[1,2,1] phase.b_std=[0,1,5]", "the count, must be a whole number of at least 2"),
        ("phase.w_std=[-1,2,5] phase.b_std=[0,1,5]", "low above 0"),
        ("phase.w_std=[1,2,5] phase.b_std=[-1,1,5]", "low at least 0"),
        ("phase.w_std=[2,1,5] phase.b_std=[0,1,5]", "high above low"),
        ("phase.w_std=[1,2] phase.b_std=[0,1,5]", "must be [low,high,count]"),
        ("phase.w_std=x phase.b_std=[0,1,5]", "must be [low,high,count]"),
        ("kernel=resnet phase.w_std=[1,2,5] phase.b_std=[0,1,5]", "a phase diagram needs a plain network"),
        ("kernel=resnet phase.block=[3,2]", "0 <= first < end <="),
        ("kernel=resnet phase.block=[0,1.5]", "must be a whole number"),
        ("phase.block=[2,3]", "must begin after a linear layer and end with one"),
        ("phase.input_variance=-1", "input_variance=-1.0 must be"),
        ("kernel=rbf", "has no repeated block"),
        ("kernel.b_std=-1", "kernel.b_std"),
    ],
)
def test_what_is_refused(command, words, text):
    code, _, err = command("phase", *words.split())
    assert (code, text in err) == (2, True), err
    assert "Traceback" not in err
