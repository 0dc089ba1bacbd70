"""`ntkpipe plan` on the machines of a profile: words, tables, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ntkpipe.cli.main import main

WORDS = ("plan", "cluster=serial", "data=synthetic", "data.n_train=100", "data.n_test=10")


@pytest.fixture
def words(tmp_path) -> tuple[str, ...]:
    return (*WORDS, f"store.url={tmp_path}/store", f"run_dir={tmp_path}/run")


def test_sizes_and_overrides(words, capsys) -> None:
    assert main([*words, "cluster.profile=h200x8x16", "plan.sizes=[50000,1000000]", "profile.nodes=2"]) == 0
    out = capsys.readouterr().out
    assert "50,000 points on h200x8x16, 2 nodes with 8 workers each" in out
    assert "1,000,000 points on h200x8x16" in out
    assert "measurements of one H200 GPU and of no cluster" in out
    assert main([*words, "cluster/profile=cpu16x64", "plan.figures=true", "profile.price=7"]) == 0
    out = capsys.readouterr().out
    assert "100 points on cpu16x64" in out
    assert any(line.split() == ["price", "7", "yours"] for line in out.splitlines())


def test_without_a_profile(words, capsys) -> None:
    assert main(list(words)) == 0
    assert "ntkpipe calibrate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["cluster.profile=none"], "no such profile"),
        (["plan.sizes=[5]"], "need a machine"),
        (["cluster.profile=cpu16x64", "plan.sizes=many"], "must be a list of numbers"),
        (["cluster.profile=cpu16x64", "plan.sizes=[0]"], "a whole number above 0"),
        (["cluster.profile=cpu16x64", "profile.nodes=x"], "profile.nodes=x must be a number"),
        (["cluster.profile=cpu16x64", "profile.nodes=0"], "a whole number above 0"),
        (["cluster.profile=cpu16x64", "plan.passes=1.5"], "a whole number above 0"),
    ],
)
def test_refusals(words, capsys, more, said) -> None:
    assert main([*words, *more]) == 2
    assert said in capsys.readouterr().err


def _tree(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(path)): (p.stat().st_size, p.stat().st_mtime_ns) for p in path.rglob("*")}


@pytest.mark.parametrize("gram", ["stored", "auto"])
def test_planning_writes_nothing_and_starts_nothing(tmp_path, monkeypatch, capsys, gram: str) -> None:
    """Not even of a network whose pairs, and of a store whose disk, a run would measure first."""
    words = ("cluster=serial", "data=synthetic", "data.n_train=40", "data.n_test=8", "data.shape=[16,16,3]")
    words += (f"store.url={tmp_path}/store", f"run_dir={tmp_path}/run", f"store.gram={gram}", "grid.edge=16")
    monkeypatch.setattr("ntkpipe.planning.probes._OBJECT_BYTES", 1 << 12)
    assert main(["gram", *words]) == 0
    before = _tree(tmp_path)
    assert any(name.startswith("store/gram") for name in before)
    for name in ("subprocess.Popen", "ntkpipe.planning.surroundings.measure_disk"):
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(name))
    monkeypatch.setattr("ntkpipe.planning.shapes._WORTH_MEASURING", 0.0)
    assert main(["plan", *words]) == 0
    assert main(["plan", *words, "kernel=cnn_gap", "grid.edge=null", "augment=hflip"]) == 0
    assert "numbers used:" in capsys.readouterr().out
    assert _tree(tmp_path) == before
