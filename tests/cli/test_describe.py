"""`ntkpipe describe`: every choice of kernel, as a table and as a file that `kernel=spec` takes."""

from __future__ import annotations

import sys

import pytest

from ntkpipe.config import KERNELS
from ntkpipe.kernels.spec import fingerprint, load_spec
from ntkpipe.kernels.zoo import FAMILIES

SHAPE = "image_shape=[8,8,3]"


@pytest.mark.parametrize("kind", [kind for kind in KERNELS if kind in FAMILIES])
def test_every_kernel_is_described_and_given_back(command, tmp_path, kind):
    code, table, _ = command("describe", f"kernel={kind}", SHAPE)
    assert code == 0
    code, text, _ = command("describe", f"kernel={kind}", SHAPE, "format=yaml")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(text)
    spec = load_spec(tmp_path / "mine.yaml")
    assert spec == FAMILIES[kind]((8, 8, 3))
    assert fingerprint(spec) in table
    assert command("describe", "kernel=spec", "kernel.path=mine.yaml", SHAPE)[:2] == (0, table)


def test_json_names_the_same_layers(command, tmp_path):
    for form in ("json", "yaml"):
        code, text, _ = command("describe", "format=" + form, "kernel=wide_resnet", SHAPE)
        assert code == 0
        (tmp_path / f"a.{form}").write_text(text)
    assert load_spec(tmp_path / "a.json") == load_spec(tmp_path / "a.yaml")


def test_the_table_shows_shapes_covariances_and_branches(command):
    _, table, _ = command("describe", "kernel=resnet", "kernel.blocks=1", "kernel.pool=vec", SHAPE)
    lines = [line.split() for line in table.splitlines()]
    # Without pooling, of 64 x 64 covariances those of equal pixels alone.
    assert lines[2][:6] == ["0", "conv", "features=64", "filter=3x3", "w_std=1.41421", "b_std=0.1"]
    assert lines[2][6:12] == ["8", "x", "8", "x", "64", "64"]
    assert ["1.0", "branch"] in lines
    assert ["1.1", "branch:", "the", "identity"] in lines
    _, table, _ = command("describe", "kernel=resnet", "kernel.blocks=1", SHAPE)
    assert table.splitlines()[2].split()[6:12] == ["8", "x", "8", "x", "64", "4,096"]


def test_without_a_shape_the_data_set_is_looked_at(command, tmp_path):
    code, table, _ = command("describe", "kernel=myrtle5")  # of digits
    assert code == 0
    assert "8 x 8 x 1" in table


def test_with_a_shape_no_data_is_loaded_and_no_ray_started(command, tmp_path, monkeypatch):
    monkeypatch.setattr("ntkpipe.run.prepare.load_dataset", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, table, _ = command("describe", "data=npz", "data.path=nowhere.npz", "kernel=cntk", "image_shape=[32,32,3]")
    assert code == 0
    assert "32 x 32 x 3" in table
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("image_shape=[32,32]", "image_shape=[32,32] must be [height,width,channels]"),
        ("image_shape=[32,32,0]", "must be"),
        ("image_shape=32", "must be"),
        ("image_shape=[32,32,3", "must be"),
        ("format=toml", "format=toml is not one of table, json, yaml"),
        (f"kernel=myrtle5 kernel.depth=5 {SHAPE}", "kernel.depth=5 has no meaning for kernel=myrtle5"),
        (f"kernel=rbf kernel.activation=erf {SHAPE}", "which takes kernel.length_scale, kernel.dtype:"),
        ("kernel=myrtle7 image_shape=[30,30,3]", "multiples of 4"),
        ("kernel=myrtle7 image_shape=[300]", "needs images"),
        (f"kernel=wide_resnet kernel.depth=12 {SHAPE}", "6 k + 4"),
        (f"kernel.path=a.yaml {SHAPE}", "kernel.path=a.yaml has no meaning for kernel=fcn"),
        (f"kernel=spec kernel.path=a.yaml {SHAPE}", "a.yaml cannot be read"),
        (
            f"kernel=cnn_gap kernel.filter=[3,3,3] {SHAPE}",
            "kernel.filter=[3, 3, 3] has 3 numbers, but the data has images of 32 x 32: set one number per axis",
        ),
        (f"kernel=cnn_gap kernel.padding=same {SHAPE}", "SAME, VALID, CIRCULAR"),
        ("kernel=cnn_gap kernel.padding=VALID kernel.depth=4 image_shape=[8,8,3]", "layer 6 (conv)"),
        (f"kernel.activation_args.alpha=1 {SHAPE}", "layer 2 (relu): unknown parameter alpha"),
    ],
)
def test_what_is_refused(command, tmp_path, words, text):
    code, _, err = command("describe", *words.split())
    assert (code, text in err) == (2, True), err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_svg_is_a_diagram(command):
    code, text, _ = command("describe", "kernel=resnet", SHAPE, "format=svg")
    assert code == 0
    assert text.startswith("<svg")
    assert "8 × 8 × 3" in text
