"""Commands of single stages: which they follow, and what they leave behind if that stage is not there."""

from __future__ import annotations

from pathlib import Path

DATA = ("data=digits", "data.train_size=40", "data.test_size=10")


def test_predict_without_a_run_writes_nothing(command, tmp_path):
    code, _, err = command("predict", *DATA, "run_dir=nowhere")
    assert code == 2, err
    assert "run_dir=nowhere is not a run" in err
    assert list(tmp_path.iterdir()) == []


def test_predict_before_solve_names_the_command(command, tmp_path):
    assert command("gram", *DATA, "run_dir=run")[0] == 0
    code, _, err = command("predict", "run_dir=run")
    assert code == 4, err
    assert "run ntkpipe solve run_dir=run" in err.replace(f"{tmp_path}/", "")
    assert command("solve", "run_dir=run")[0] == 0
    assert command("predict", "run_dir=run")[0] == 0
    assert Path("run/predictions.zarr").exists()
