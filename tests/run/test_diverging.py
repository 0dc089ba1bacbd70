"""Discrete training beyond the largest stable learning rate: the run says so, and nothing overflows on the way."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from lab import Lab


@pytest.mark.parametrize("dynamics", ["gradient_descent", "momentum"])
def test_what_diverges_is_said_in_words(tmp_path, capsys, dynamics):
    work = Lab(
        tmp_path, "cluster=serial", "data=synthetic", "data.n_train=24", "data.n_test=5", "data.shape=[4,4,1]", "data.classes=2",
        "grid.edge=16", "kernel=fcn", "kernel.depth=1", "kernel.dtype=float64", "kernel.w_std=30", "report=false",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = work.run(
            "a", f"predict.dynamics={dynamics}", "predict.covariance=full", "predict.error_estimate=true",
            "predict.times=[1,1e6,inf]",
        )  # fmt: skip
    assert np.isfinite(found.mean).all()
    told = capsys.readouterr().err
    assert "largest stable learning rate" in told
    assert "RuntimeWarning" not in told
    if dynamics == "gradient_descent":  # the continuous limit of momentum does not diverge
        doubts = {entry["time"]: entry["doubt"] for entry in work.metrics("a")["entries"]}
        assert doubts == {1.0: None, 1e6: "no_bound", "inf": "estimate_exceeds_prediction"}
