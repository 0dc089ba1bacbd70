from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.cli.main import main


def test_what_the_rooms_log_reaches_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 2, 2, 1))
    x[3, 0, 0, 0] = np.nan
    y = np.arange(12) % 2
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    words = [
        "plan",
        "data=npz",
        f"data.path={tmp_path / 'data.npz'}",
        "data.drop_invalid=true",
        f"store.url={tmp_path}/s",
    ]
    assert main(words) == 0
    assert "warning  dropped 1 of 12 images" in capsys.readouterr().err


def test_a_command_leaves_logging_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ntkpipe.some.room")
    before = list(logging.getLogger("ntkpipe").handlers)
    assert main(["plan", "data=synthetic", f"store.url={tmp_path}/s"]) == 0
    assert logging.getLogger("ntkpipe").handlers == before
    logger.warning("still heard")
    assert "still heard" in caplog.text
