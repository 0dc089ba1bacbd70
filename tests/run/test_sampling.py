"""`ntkpipe sample`: from end to end, stopped at any piece, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

WORDS = (
    *("cluster=serial", "data=digits", "data.train_size=12", "data.test_size=6", "kernel=fcn", "kernel.depth=1"),
    *("finite.width=64", "sample.count=24", "sample.piece=6", "sample.noise=0.2", "sample.warmup=12", "sample.thin=2"),
)


def samples(work, name):
    (folder,) = (work.path / name / "sample").iterdir()
    with np.load(folder / "samples.npz") as archive:
        return folder, {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("method", ["importance", "pcn"])
def test_a_run_that_was_stopped_gives_what_an_undisturbed_one_does(work, blank, method):
    words = (*WORDS, f"sample.method={method}", "sample.chains=2")
    said = work.ok("sample", *words, "run_dir=a").out
    assert "effective" in said
    assert ("R-hat" in said) == (method == "pcn")
    assert ("KL" in said) == (method == "importance")
    folder, first = samples(work, "a")
    assert {file.suffix for file in folder.glob("sample*")} == {".npz", ".json", ".png", ".svg"}
    assert not list(folder.glob("*.start.npy"))
    pieces = sorted(folder.glob(f"{method}-*.npz"))
    assert len(pieces) == (4 if method == "importance" else 2 * (2 + 2))
    # One piece was lost, one is damaged: both are made again, the others stay.
    kept = {piece: piece.stat().st_mtime_ns for piece in pieces}
    pieces[0].unlink()
    content = bytearray(pieces[-1].read_bytes())
    content[len(content) // 2] ^= 1
    pieces[-1].write_bytes(content)
    work.ok("sample", *words, "run_dir=a")
    _, again = samples(work, "a")
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert all(piece.stat().st_mtime_ns == kept[piece] for piece in pieces[1:-1])
    assert "24 of" not in work.ok("sample", *words, "run_dir=a").err


def test_numbers_beside_the_infinite_posterior(work, blank):
    found = json.loads(work.ok("sample", *WORDS, "run_dir=a", "format=json", "finite.width=512").out)
    assert found["width"] == 512
    assert found["method"] == "importance"
    assert found["effective_share"] > 0.2
    assert found["kl_to_prior"] > 0
    assert found["apart"]["means_in_deviations"] < 0.5
    assert found["apart"]["deviations_ratio"] == pytest.approx(1.0, abs=0.15)
    assert set(found["finite"]) == {"mse", "nll", "accuracy"}
    assert any("width / 4 / 10 outputs = 12" in note for note in found["notes"])
    # Other settings are other samples, in a folder of their own.
    work.ok("sample", *WORDS, "run_dir=a", "finite.width=512", "sample.seed=1")
    assert len(list((work.path / "a/sample").iterdir())) == 2


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("sample.noise=0", "sample.noise above 0"),
        ("sample.method=gibbs", "is not one of auto"),
        ("sample.count=2", "must be at least 4"),
        ("finite.width=0", "width=0 must be at least 1"),
        ("format=yaml", "is not one of table, json"),
        ("kernel=rbf", "no finite form"),
        ("sample.burn=3", "sample.burn"),
    ],
)
def test_what_is_refused(work, word, text):
    found = work(
        "sample", *(one for one in WORDS if not one.startswith("kernel.") or not word.startswith("kernel")), word
    )
    assert found.code == 2
    assert text in found.err
