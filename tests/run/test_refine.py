"""`solver.refine` from end to end: what a run exports, says, and takes up after a crash, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from lab import QUICK, Lab

from ntkpipe.run.opened import open_run
from ntkpipe.sources import exact_products

WORDS = ("predict.times=[10,inf]", "predict.ridges=[0,1e-3]", "solver=krylov")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    here = Lab(tmp_path_factory.mktemp("refine"), *QUICK, *WORDS)
    here.run("plain")
    here.run("refined", "solver.refine=1")
    return here


def test_the_end_is_refined_and_marked(lab: Lab) -> None:
    plain, found = lab.predictions("plain"), lab.predictions("refined")
    np.testing.assert_array_equal(found.mean[:, 0], plain.mean[:, 0])
    assert 0 < np.abs(found.mean[:, 1] - plain.mean[:, 1]).max() < 1e-4
    assert found.error_bound[:, 1].max() < 1e-3 * plain.error_bound[:, 1].max()
    assert found.error_estimate is not None
    assert plain.error_estimate is not None
    assert found.error_estimate[:, 1].max() < 1e-2 * plain.error_estimate[:, 1].max()
    metrics = lab.metrics("refined")
    assert {(entry["time"], entry["refined"]) for entry in metrics["entries"]} == {(10.0, False), ("inf", True)}
    assert metrics["refinement"]["ntk"]["steps"] == 1
    assert "refinement" not in lab.metrics("plain")
    page = (lab.path / "refined" / "report" / "report.html").read_text()
    assert "Refined in float64 (1 step, correction" in page


def test_a_run_says_how_it_was_refined(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.command("run", *lab.words, "run_dir=said", "solver.refine=1", "store.url=elsewhere") == 0
    said = "".join(capsys.readouterr())
    assert "ntk and nngp: computing 3 train tiles again in float64" in said
    assert "ntk and nngp: computing 2 test tiles again in float64" in said
    assert said.count("tiles again in float64") == 2  # one pass for both kernels
    assert said.count("; refined in float64 (1 step, correction ") == 2


def test_verify_finds_the_refined_weights_right(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.command("verify", "run_dir=refined", "tiles=10", "rows=10") == 0
    said = "".join(capsys.readouterr())
    assert said.count("residual of 10 recomputed rows") == 4
    assert said.count("10 test predictions") == 2


def test_a_killed_refinement_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("solver.refine=1", "store.url=killed")
    real, parts = exact_products.product_task, []

    def dying(*args: object) -> object:
        parts.append(args[1:])
        if len(parts) == 3:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exact_products, "product_task", dying)
    assert lab.command("run", *lab.words, "run_dir=killed", *words) != 0
    assert len(parts) == 3
    found = lab.run("killed", *words)
    assert parts[2:4] == [(1, 1, 2)] * 2  # the part that was lost, and no other
    np.testing.assert_array_equal(found.mean, lab.predictions("refined").mean)


def test_a_later_process_restores_it_and_changes_nothing(lab: Lab) -> None:
    points = np.random.default_rng(0).random((3, 8, 8, 1))
    before = {path: path.stat().st_mtime_ns for path in (lab.path / "store").rglob("*") if path.is_file()}
    plain, found = (open_run(lab.path / name).predict(points) for name in ("plain", "refined"))
    assert 0 < np.abs(found.mean[:, 1] - plain.mean[:, 1]).max() < 1e-4
    assert found.error_bound[:, 1].max() < 1e-3 * plain.error_bound[:, 1].max()
    assert before == {path: path.stat().st_mtime_ns for path in (lab.path / "store").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("kernel.dtype=float64",), "float64 already"),
        (("predict.times=[10,100]",), "are finite"),
        (("solver=flow", "predict.loss=logistic", "predict.times=[10]"), "t = inf"),
    ],
)
def test_what_cannot_be_refined_is_refused_at_once(
    lab: Lab, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.command("run", *lab.words, "run_dir=refused", "solver.refine=1", *words) != 0
    assert text in "".join(capsys.readouterr())
    assert not (lab.path / "refused").exists()


def test_the_plan_says_what_it_costs(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.command("plan", *lab.words, "run_dir=planned", "solver.refine=2") == 0
    assert "refine      2 steps at t = inf: tiles again in float64" in capsys.readouterr().out
