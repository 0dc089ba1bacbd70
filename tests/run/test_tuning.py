"""`ntkpipe tune`: what it chooses, writes, finds again and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from lab import QUICK

import ntkpipe as nk
from ntkpipe.dynamics.criteria import score
from ntkpipe.errors import ConfigError
from ntkpipe.kernels.evidence import Evidence
from ntkpipe.run import tuning

_WORDS = (*QUICK, "kernel.dtype=float64", "tune.size=60", "path=found")


def digits(m: int) -> tuple[nk.Dataset, np.ndarray]:
    data = nk.load_dataset("digits", train_size=m, test_size=5)
    return data, data.targets


def test_scores_are_what_they_say():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 5)), rng.standard_normal((30, 2))
    kernel = x @ x.T + np.eye(30)
    a = kernel + 0.1 * kernel.diagonal().mean() * np.eye(30)
    inverse = np.linalg.inv(a)
    left_out = (inverse @ y) / inverse.diagonal()[:, None]
    found = score(kernel, y, [1e-3, 0.1], "loo")
    assert found.curve[1] == pytest.approx(np.mean(left_out**2))
    known = kernel[:24, :24] + 0.1 * kernel.diagonal()[:24].mean() * np.eye(24)
    off = y[24:] - kernel[24:, :24] @ np.linalg.solve(known, y[:24])
    assert score(kernel, y, [0.1], "held_out", held_out=6).value == pytest.approx(np.mean(off**2))
    # The evidence at the most likely scale of the kernel.
    scale = np.vdot(y, inverse @ y) / y.size
    _, logdet = np.linalg.slogdet(scale * a)
    evidence = -0.5 * np.vdot(y, inverse @ y) / scale - 0.5 * 2 * logdet - 0.5 * y.size * np.log(2 * np.pi)
    assert score(kernel, y, [0.1], "likelihood").value == pytest.approx(-evidence / y.size)
    with pytest.raises(ConfigError, match="leaves"):
        score(kernel, y, [0.1], "held_out", held_out=30)


def test_gradients_are_those_of_the_evidence_of_the_zoo():
    data, y = digits(40)
    x = data.prepared("float64").x_train[:40].reshape(40, -1)
    logs = np.log([1.2, 0.3, 1e-2])
    cost = Evidence(x, y, {"op": "erf"}, 2, biased=True)
    value, slope = cost(logs)
    network = nk.zoo.fcn(depth=2, activation="erf", w_std=1.2, b_std=0.3)
    matrix = tuning._matrix(network, data.prepared("float64").x_train[:40], "nngp", "float64")
    assert value == pytest.approx(score(matrix, y, [1e-2], "likelihood").value, rel=1e-9)
    for k in range(3):
        step = 1e-5 * np.eye(3)[k]
        assert slope[k] == pytest.approx((cost(logs + step)[0] - cost(logs - step)[0]) / 2e-5, rel=1e-4, abs=1e-7)


def test_gradients_choose_what_a_run_takes(work):
    words = ("tune", *_WORDS, "tune.w_std=[0.5,3]", "tune.b_std=[0.01,1]", "tune.depth=[1,2]")
    found = work.ok(*words)
    record = json.loads((work.path / "found/tune.json").read_text())
    assert record["points"] == 60
    values = [one["value"] for one in record["trials"]]
    assert values == sorted(values)
    assert {one["values"]["depth"] for one in record["trials"]} == {1.0, 2.0}
    chosen = yaml.safe_load((work.path / "found/experiment/tuned.yaml").read_text())
    assert chosen["kernel"]["w_std"] == record["best"]["values"]["w_std"]
    assert "-log evidence" in found.out
    assert (work.path / "found/surface.png").exists()
    # Nothing that was tried is tried again.
    kept = (work.path / "found/trials.jsonl").read_text()
    work.ok(*words)
    assert (work.path / "found/trials.jsonl").read_text() == kept
    work.ok("run", "--config-dir", "found", "experiment=tuned", *QUICK, "run_dir=r", "report=false")
    config = json.loads((work.path / "r/run.json").read_text())["config"]
    assert config["kernel"]["w_std"] == chosen["kernel"]["w_std"]
    assert config["predict"]["ridges"] == chosen["predict"]["ridges"]


def test_lists_are_tried_all_and_share_the_tiles_of_runs(work):
    work.ok("gram", *QUICK, "kernel.dtype=float64", "run_dir=a", "kernel.depth=2")
    before = len(work.objects("gram/*/manifest.json"))
    found = work.ok("tune", *_WORDS, "tune.depth=[2,3]", "tune.by=loo", "tune.kernel=ntk")
    assert len(work.objects("gram/*/manifest.json")) == before + 1
    assert "accuracy" in found.out
    assert len(json.loads((work.path / "found/tune.json").read_text())["trials"]) == 2


def test_weights_of_a_sum_are_chosen_without_new_tiles(work):
    pytest.importorskip("optuna")
    parts = "kernel.parts=[{kind:fcn,depth:1},{kind:rbf,length_scale:2.0}]"
    work.ok("tune", *_WORDS, "kernel=sum", parts, "tune.weights=[0.01,100]", "tune.by=held_out", "tune.trials=6")
    assert len(work.objects("gram/*/manifest.json")) == 2
    weights = yaml.safe_load((work.path / "found/experiment/tuned.yaml").read_text())["kernel"]["weights"]
    assert weights[0] == 1.0
    assert 0.01 <= weights[1] <= 100


def test_python_searches_ranges_and_goes_on(tmp_path):
    pytest.importorskip("optuna")
    data, _ = digits(50)
    asked = {"w_std": [0.5, 3.0], "depth": [1, 2]}
    found = nk.tune(nk.zoo.fcn, data, asked, by="loo", kernel="ntk", trials=5, path=tmp_path / "kept.jsonl")
    assert len(found.trials) == 5
    again = nk.tune(nk.zoo.fcn, data, asked, by="loo", kernel="ntk", trials=7, path=tmp_path / "kept.jsonl")
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 7
    assert again.trials[0].score.value <= found.trials[0].score.value
    assert "depth" in repr(found)


def test_without_optuna_a_search_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    data, _ = digits(20)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[tune\]'"):
        nk.tune(nk.zoo.fcn, data, {"w_std": [0.5, 3.0]}, by="loo")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune.w_std=[1]",), "two numbers"),
        (("tune.w_std=[-1,2]",), "kernel.w_std"),
        (("tune.length_scale=[1,2]",), "no meaning for kernel=fcn"),
        (("tune.by=luck",), "likelihood"),
        (("tune.size=3",), "tune.size=3"),
        (("tune.ridge=[0,1]",), "above 0"),
        (("tune.weights=[1,2]",), "kernel=sum"),
    ],
)
def test_what_cannot_be_tuned_is_refused(work, words, said):
    found = work("tune", *[w for w in _WORDS if not w.startswith(tuple(x.split("=")[0] + "=" for x in words))], *words)
    assert found.code == 2
    assert said in found.err
