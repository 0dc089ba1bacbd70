"""`ntkpipe validate`: ensembles beside predictions, resumed, and refused before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from lab import Lab

import ntkpipe as nk
from ntkpipe.errors import ConfigError
from ntkpipe.run.validation import stage

SMALL = (
    "cluster=serial", "data=digits", "data.train_size=12", "data.test_size=6", "kernel.depth=1",
    "finite.widths=[8,16]", "finite.networks=4",
    "finite.steps=6", "predict.learning_rate=0.2", "finite.memory_gib=0.02", "store.url=s",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("validate"), *SMALL)


def found(lab, name):
    folder = lab.path / name / "validation"
    group = zarr.open_group(folder / "validation.zarr", mode="r")
    return json.loads((folder / "validation.json").read_text()), {key: array[...] for key, array in group.arrays()}


def test_an_ensemble_beside_the_predictions(lab, capfd):
    assert lab.command("validate", *SMALL, "run_dir=a") == 0
    record, arrays = found(lab, "a")
    assert arrays["outputs"].shape == arrays["linearised"].shape == (4, 2, 5, 6, 10)
    assert arrays["time"].tolist() == [0, 1, 2, 5, 6]
    assert arrays["covariance"].shape == (2, 5, 6, 6)
    # Networks and their linearisations start at the same outputs, and the predictions at zero.
    np.testing.assert_allclose(arrays["outputs"][:, :, 0], arrays["linearised"][:, :, 0], atol=1e-5)
    assert not arrays["mean"][:, 0].any()
    assert {one["name"] for one in record["claims"]} == {"kernel", "drift", "linearisation", "flow", "mean", "variance"}
    assert {one.stem for one in (lab.path / "a" / "validation").glob("*.png")} == {"members", "training", "width"}
    text = capfd.readouterr().err
    assert all(one["quantity"] in text for one in record["claims"])


def test_a_run_that_stops_goes_on_to_the_same_bits(lab, monkeypatch):
    assert lab.command("validate", *SMALL, "finite.seed=1", "run_dir=whole") == 0
    kept, calls = stage._keep, []

    def stops(folder, kind, chunk, arrays):
        kept(folder, kind, chunk, arrays)
        calls.append((kind, chunk.width))
        if len(calls) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_keep", stops)
    codes = [lab.command("validate", *SMALL, "finite.seed=1", "run_dir=pieces") for _ in range(2)]
    assert codes == [130, 130]
    monkeypatch.setattr(stage, "_keep", kept)
    assert lab.command("validate", *SMALL, "finite.seed=1", "run_dir=pieces") == 0
    (record, arrays), (again, others) = found(lab, "whole"), found(lab, "pieces")
    assert record == again
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name])


def test_a_damaged_chunk_is_made_again(lab):
    words = (*SMALL, "finite.seed=2", "run_dir=damaged")
    assert lab.command("validate", *words) == 0
    first = found(lab, "damaged")[1]
    one, *_ = (lab.path / "damaged" / "validation").glob("*/training-*.npz")
    content = bytearray(one.read_bytes())
    content[len(content) // 2] ^= 1
    one.write_bytes(content)
    assert lab.command("validate", *words) == 0
    np.testing.assert_array_equal(found(lab, "damaged")[1]["outputs"], first["outputs"])


def test_large_rates(lab):
    assert lab.command("validate", *SMALL, "kernel.activation=identity", "finite.rates=[0.5,20]", "run_dir=rates") == 0
    record, arrays = found(lab, "rates")
    assert arrays["loss"].shape == (2, 4, 2, 5)
    phases = {(one["width"], one["rate"]): one["phases"] for one in record["rates"]}
    assert phases[8, 0.5]["lazy"] == phases[16, 0.5]["lazy"] == 4
    assert phases[16, 20]["diverging"] == 4


@pytest.mark.parametrize(
    "words",
    [
        ("kernel.parameterization=standard", "kernel.width=16", "predict.learning_rate=0.02"),
        ("predict.dynamics=momentum", "predict.momentum=0.5"),
        ("finite.trained=readout",),
        ("kernel=cnn_gap", "data.downsample=2", "kernel.width=8"),
        ("finite.output_scale=[1,4]", "finite.centred=true"),
        ("finite.training=sgd", "finite.batch_size=4"),
        ("finite.loss=cross_entropy",),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.slow
def test_other_networks_and_other_training(lab, words):
    """All of it runs; a linearisation stays nearer to its network than the outputs are to 0."""
    told = {word.partition("=")[0] for word in words}
    given = [word for word in SMALL if word.partition("=")[0] not in told]
    given = [word for word in given if not (words[0] == "kernel=cnn_gap" and word.startswith("kernel."))]
    assert lab.command("validate", *given, *words, f"run_dir={words[0].replace('=', '-')}") == 0
    record, arrays = found(lab, words[0].replace("=", "-"))
    assert np.isfinite(arrays["outputs"]).all()
    assert bool(record["labelled"]) == (words[0] in ("finite.training=sgd", "finite.loss=cross_entropy"))
    if "linearised" in arrays:
        off = np.square(arrays["outputs"] - arrays["linearised"]).mean()
        assert off < 0.5 * np.square(arrays["outputs"]).mean()
    if words[0] == "finite.trained=readout":
        np.testing.assert_allclose(arrays["outputs"], arrays["linearised"], atol=2e-5)
    if words[0].startswith("finite.output_scale"):
        assert arrays["outputs"].shape[0] == 2
        assert {"lazy_8", "lazy_drift_16"} <= {one["name"] for one in record["claims"]}


@pytest.mark.slow
def test_exponents_of_widths(lab):
    """One hidden layer of erf, where sampling noise allows a verdict: those of THEORY within 0.15."""
    words = [word for word in SMALL if not word.startswith("finite.")]
    wide = (
        "kernel.activation=erf",
        "finite.widths=[256,512,1024,2048]",
        "finite.networks=16",
        "finite.steps=100",
        "predict.dynamics=gradient_descent",
    )
    assert lab.command("validate", *words, *wide, "predict.learning_rate=1", "run_dir=wide") == 0
    record, _ = found(lab, "wide")
    claims = {one["name"]: one for one in record["claims"]}
    for name in ("kernel", "drift", "linearisation", "flow"):
        assert claims[name]["exponent"] == pytest.approx(claims[name]["expected"], abs=0.15), name
        assert claims[name]["verdict"] == "holds"


def test_the_same_from_python_on_a_run(lab):
    assert lab.command("validate", *SMALL, "run_dir=python") == 0
    first = found(lab, "python")[0]
    run = nk.open_run(lab.path / "python")
    assert run.validate() == first
    again = run.validate(networks=2, linearised=False)
    assert again["settings"]["finite"]["networks"] == 2
    with pytest.raises(ConfigError, match=r"finite\.widths=0 must be at least 1"):
        run.validate(widths=[0])


def test_a_stored_run_is_validated_with_other_networks(lab):
    assert lab.command("gram", *SMALL, "run_dir=stored") == 0
    assert lab.command("validate", "run_dir=stored", "finite.widths=[8]", "finite.networks=3", "finite.steps=2") == 0
    assert found(lab, "stored")[1]["outputs"].shape == (3, 1, 3, 6, 10)


def test_a_run_of_discrete_steps_says_where_its_rate_lies(lab, capfd):
    words = (
        *(w for w in SMALL if not w.startswith("predict.")),
        "report=false",
        "predict.times=[5]",
        "predict.dynamics=gradient_descent",
    )
    for rate, text in ((0.2, "the theory holds"), (14, "flatter minimum"), (60, "training diverges")):
        assert lab.command("run", *words, f"predict.learning_rate={rate}", f"run_dir=rate-{rate}") == 0
        found_there = lab.metrics(f"rate-{rate}")["rates"]["ntk"]
        assert text in found_there["text"]
        assert found_there["text"] in capfd.readouterr().err
    unit = lab.metrics("rate-0.2")["rates"]["ntk"]["rate_times_curvature"]
    assert found_there["rate_times_curvature"] == pytest.approx(300 * unit)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("finite.widths=[0,8]", "finite.widths=0 must be at least 1"),
        ("finite.networks=1", "finite.networks=1 must be at least 2"),
        ("predict.learning_rate=50", "width 8: 0 ("),
        ("finite.memory_gib=1e-6", "one network of width 16 needs"),
        ("kernel=rbf", "stationary"),
        ("finite.training=sgd", "finite.batch_size=None"),
        ("augment=hflip", "set augment=none"),
        ("predict.times=[0.5,3]", "whole steps"),
        ("finite.between=[0,99]", "two of 12 training points"),
    ],
)
def test_what_is_refused(lab, capfd, words, text):
    given = [word for word in SMALL if not word.startswith(words.partition("=")[0] + "=")]
    if words == "kernel=rbf":
        given = [word for word in given if not word.startswith("kernel.")]
    assert lab.command("validate", *given, words, f"run_dir=refused-{words.partition('=')[0]}") in (2, 3, 8)
    assert text in capfd.readouterr().err
