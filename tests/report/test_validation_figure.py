"""Figures of `ntkpipe validate`, of numbers that were made."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ntkpipe.finite import claims
from ntkpipe.report.validation_figure import Shown, write_validation_figures


def is_drawn(path):
    with Image.open(path) as image:
        return min(image.size) > 300 and np.asarray(image.convert("L")).std() > 10


def test_members_claims_and_curves(tmp_path):
    rng = np.random.default_rng(0)
    steps, places = (0, 1, 10), np.linspace(0, 1, 5)
    members = {width: rng.standard_normal((8, 3, 5)) for width in ("width 16", "width 32")}
    curve = {kind: {"test_loss": [1.0, 0.5, 0.2], "test_accuracy": [0.1, 0.4, 0.9]} for kind in ("finite", "infinite")}
    found = [
        claims.root_mean_square("kernel", "kernel", -0.5, {w: w**-0.5 * (1 + rng.random(20)) for w in (16, 32)}),
        claims.bias_of_mean("mean", {w: rng.standard_normal((20, 3)) for w in (16, 32)}),
    ]
    shown = Shown(
        steps, places, members, np.zeros((3, 5)), np.ones((3, 5)), "3", (0.9, -0.1), found,
        {name: np.full((8, 3), 0.1) for name in members}, dict.fromkeys(members, curve),
    )  # fmt: skip
    made = write_validation_figures(shown, tmp_path)
    assert [path.stem for path in made] == ["members", "training", "width"]
    assert all(is_drawn(path) for path in made)


def test_large_rates(tmp_path):
    rows = [
        {
            "width": 64, "rate": rate, "loss": [1.0, 2.0, 0.1], "curvature": [1.0, 0.8, 0.5], "curvature_start": 1.0,
            "curvature_end_over_start": None if rate > 4 else 1 / rate,
        }
        for rate in (1.0, 3.0, 6.0)
    ]  # fmt: skip
    (made,) = write_validation_figures(Shown((0, 1, 10), rates=rows), tmp_path)
    assert is_drawn(made)
