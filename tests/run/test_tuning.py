"""`ntkpipe tune`: what it chooses, writes, finds again and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from lab import QUICK

import ntkpipe as nk
from ntkpipe.dynamics.criteria import Score, score
from ntkpipe.errors import ConfigError
from ntkpipe.kernels.evidence import Evidence
from ntkpipe.run import tuning
from ntkpipe.run.trials import Range, Trial, Tuned

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
    # Errors of one standardised target are in the units of the data; several targets keep their own.
    one = score(kernel, y[:, :1], [0.1], "loo", scale=np.array([3.0]))
    assert one.value == pytest.approx(np.mean((3 * left_out[:, 0]) ** 2))
    assert score(kernel, y, [0.1], "loo", scale=np.array([3.0, 2.0])).value == pytest.approx(found.curve[1])
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


def test_best_values_at_the_end_of_a_range_are_named():
    ranges = {
        "w_std": Range(0.5, 3.0),
        "b_std": Range(0.0, 1.0),
        "depth": Range(options=(1.0, 2.0, 4.0)),
        "width": Range(options=(8.0, 9.0)),
    }

    def ends(**values: float) -> list[str]:
        return Tuned((Trial(values, Score(0.0, 1e-3, np.zeros(1))),), "loo", 10, ranges).at_the_end()

    assert ends(w_std=3.0, b_std=0.0, depth=4.0, width=9.0) == ["w_std", "depth"]
    assert ends(w_std=0.5, b_std=1.0, depth=2.0, width=8.0) == ["w_std", "b_std"]
    assert ends(w_std=1.0, b_std=0.5, depth=2.0, width=8.0) == []


def test_a_data_set_that_is_smaller_than_the_largest_size_is_used_whole(work):
    rng = np.random.default_rng(0)
    columns = [*rng.standard_normal((3, 50)), rng.standard_normal(50)]
    rows = ["a,b,c,price", *(",".join(f"{v:.3f}" for v in row) for row in zip(*columns, strict=True))]
    (work.path / "houses.csv").write_text("\n".join(rows))
    work.ok("tune", "data.path=houses.csv", "data.target=price", "cluster=serial", "tune.depth=[1,2]", "path=found")
    assert json.loads((work.path / "found/tune.json").read_text())["points"] == 40


def test_lists_are_tried_all_and_share_the_tiles_of_runs(work):
    work.ok("gram", *QUICK, "kernel.dtype=float64", "run_dir=a", "kernel.depth=2")
    before = len(work.objects("gram/*/manifest.json"))
    found = work.ok("tune", *_WORDS, "tune.depth=[2,3]", "tune.by=loo", "tune.kernel=ntk")
    assert len(work.objects("gram/*/manifest.json")) == before + 1
    assert "accuracy" in found.out
    assert len(json.loads((work.path / "found/tune.json").read_text())["trials"]) == 2


def test_errors_are_in_the_units_of_a_standardised_table(work):
    x = np.random.default_rng(0).standard_normal((40, 3))
    for name, unit in (("one", 1.0), ("hundred", 100.0)):
        rows = np.column_stack([x, unit * (x[:, 0] + 0.3 * x[:, 1] ** 2)])
        np.savetxt(work.path / f"{name}.csv", rows, delimiter=",", header="a,b,c,y", comments="")
        work.ok("tune", f"data.path={name}.csv", "data.target=y", "tune.depth=[1,2]", "tune.by=loo", f"path={name}")
    errors = [json.loads((work.path / name / "tune.json").read_text())["best"]["value"] for name in ("one", "hundred")]
    assert errors[1] == pytest.approx(1e4 * errors[0], rel=1e-6)


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


def test_trials_of_other_networks_points_or_targets_are_not_taken(tmp_path):
    data, _ = digits(40)
    others = nk.load_dataset("digits", train_size=40, test_size=5, subset_seed=5)
    halves = nk.load_dataset("digits", train_size=40, test_size=5, labels="half")

    def best(depth: int, data: nk.Dataset, path: str | None) -> float:
        kept = None if path is None else tmp_path / path
        build = lambda w_std: nk.zoo.fcn(depth=depth, w_std=w_std)  # noqa: E731
        return nk.tune(build, data, {"w_std": [0.5, 1.0, 2.0]}, by="loo", path=kept).trials[0].score.value

    asked = [(1, data), (3, data), (1, others), (1, halves)]
    assert [best(*one, "kept.jsonl") for one in asked] == [best(*one, None) for one in asked]
    assert best(1, data, "kept.jsonl") == best(1, data, None)
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 12


def test_trials_of_another_target_are_not_taken(work):
    x = np.random.default_rng(0).standard_normal((40, 3))
    rows = ["a,b,c,p,q,part"]
    for k, one in enumerate(x):
        classes = "uv"[int(one[0] > 0)], "uv"[int(one[1] > 0)]
        rows.append(",".join([*(f"{v:.3f}" for v in one), *classes, "test" if k > 29 else "train"]))
    (work.path / "t.csv").write_text("\n".join(rows))
    words = ("data.path=t.csv", "data.features=[a,b,c]", "data.split=part", "tune.depth=[1,2]", "tune.by=loo")
    work.ok("tune", *words, "data.target=p", "path=found")
    for path in ("found", "fresh"):
        work.ok("tune", *words, "data.target=q", f"path={path}")
    made = [json.loads((work.path / path / "tune.json").read_text()) for path in ("found", "fresh")]
    assert made[0] == made[1]


def test_errors_from_python_are_in_the_units_of_a_standardised_target():
    x = np.random.default_rng(0).standard_normal((40, 3))
    y = x[:, 0] + 0.3 * x[:, 1] ** 2
    errors = [
        nk.tune(
            nk.zoo.fcn, nk.Dataset(x, unit * y, labels="regression", targets="standardize"), {"depth": [1, 2]}, by="loo"
        )
        .trials[0]
        .score.value
        for unit in (1.0, 100.0)
    ]
    assert errors[1] == pytest.approx(1e4 * errors[0], rel=1e-6)


def test_without_optuna_a_search_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    data, _ = digits(20)
    with pytest.raises(ConfigError, match=r'pip install "ntkpipe\[tune\]"'):
        nk.tune(nk.zoo.fcn, data, {"w_std": [0.5, 3.0]}, by="loo")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune.w_std=[1]",), "two numbers"),
        (("tune.w_std=[-1,2]",), "kernel.w_std"),
        (("tune.length_scale=[1,2]",), "is not available for kernel=fcn"),
        (("tune.by=luck",), "likelihood"),
        (("tune.size=3",), "tune.size=3"),
        (("tune.ridge=[0,1]",), "above 0"),
        (("tune.weights=[1,2]",), "kernel=sum"),
        (("tune.depth=[1.5,2]",), "tune.depth=[1.5, 2.0] must hold whole numbers"),
        (("tune.w_std=[1,2]", "tune.by=held_out", "tune.held_out=1.5"), "share between 0 and 1, or a whole number"),
        (("tune.w_std=[1,2]", "tune.by=held_out", "tune.held_out=0"), "share between 0 and 1, or a whole number"),
    ],
)
def test_what_cannot_be_tuned_is_refused(work, words, said):
    found = work("tune", *[w for w in _WORDS if not w.startswith(tuple(x.split("=")[0] + "=" for x in words))], *words)
    assert found.code == 2
    assert said in found.err
