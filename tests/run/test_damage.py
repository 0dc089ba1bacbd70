"""Damaged objects are found, named and made again, wherever a run stands; the result is the same."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from lab import QUICK, Lab

from ntkpipe.storage.checksum import sealed

WORDS = ("predict.times=[10,inf]", "run_dir=a")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its store, to be copied."""
    lab = Lab(tmp_path_factory.mktemp("finished"))
    assert lab.command("run", *QUICK, *WORDS, "solver=krylov") == 0
    return lab.path


@pytest.fixture
def copy(work, finished):
    """The finished run in this test's own folder."""
    shutil.copytree(finished, work.path, dirs_exist_ok=True)
    work.expected = work.predictions("a").fingerprint()
    return work


def flip(path, at=1000):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def swap(path):
    """With another tile of the same kernel and block: both are intact."""
    other = next(p for p in path.parent.parent.glob("*/*") if p != path)
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def delete(path):
    path.unlink()


DAMAGES = {f.__name__: f for f in (flip, truncate, swap, delete)}
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("truncate", "delete")]


def forget(work, *stages):
    for stage in stages:
        (work.path / "a" / "stages" / f"{stage}.json").unlink()
    for path in work.objects("krylov/**/*"):
        path.unlink()


def forget_only(work, *stages):
    for stage in stages:
        (work.path / "a" / "stages" / f"{stage}.json").unlink()


def values(work):
    return work.predictions("a").mean


@pytest.mark.parametrize(
    ("damage", "block"),
    [("flip", "train"), ("truncate", "test"), ("swap", "train"), ("swap", "test"), ("delete", "train")],
)
def test_damaged_tile_before_solve(copy, damage, block):
    """Between gram and solve, and (the test block) in the middle of predict."""
    before = values(copy)
    chunk = copy.chunks("ntk", block)[0]
    forget(copy, "solve", "predict", "report")
    DAMAGES[damage](chunk)
    told = copy.ok("gram", "run_dir=a").err + copy.ok("solve", "run_dir=a").err + copy.ok("predict", "run_dir=a").err
    assert "tile (0, 0)" in told
    assert "recomputed" in told
    np.testing.assert_array_equal(values(copy), before)
    assert "agree with their receipts" in copy.ok("verify", "run_dir=a").out


def test_tile_damaged_in_the_middle_of_predict(copy, monkeypatch):
    from ntkpipe.run import predicting

    before, original, calls = values(copy), predicting.predict_kernel, []

    def spoiling(inputs, solved, *rest):
        if not calls:
            flip(copy.chunks(solved.problem.kernel.source, "test")[-1])
        calls.append(solved.problem.name)
        return original(inputs, solved, *rest)

    monkeypatch.setattr(predicting, "predict_kernel", spoiling)
    forget(copy, "predict", "report")
    found = copy.ok("run", "run_dir=a")
    assert "of test" in found.err
    assert calls == ["ntk", "ntk", "nngp"]
    np.testing.assert_array_equal(values(copy), before)


def test_damaged_receipts(copy):
    before = values(copy)
    flip(copy.receipts("train")[0], 40)
    copy.receipts("test")[0].write_bytes(b"")
    flip(copy.objects("gram/*/receipts/diagonal/train/*.json")[0], 30)
    forget(copy, "solve", "predict", "report")
    found = copy.ok("run", "run_dir=a")
    assert found.err.count("recomputed") == 3
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize("damage", ["flip", "swap"])
def test_verify_repairs_tiles(copy, damage):
    before = values(copy)
    DAMAGES[damage](copy.chunks("nngp", "train")[0])
    named = copy("verify", "run_dir=a", "repair=false")
    assert named.code == 6
    assert "nngp/train/c/0/0" in named.out
    mended = copy.ok("verify", "run_dir=a")
    assert "repaired" in mended.out
    assert copy("verify", "run_dir=a", "repair=false").code == 0
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize("damage", ["flip", *OTHERS])
def test_damaged_images(copy, damage):
    chunk = next(p for p in copy.objects("data/*/train/c/**/*"))
    good = chunk.read_bytes()
    DAMAGES[damage](chunk)
    named = copy("verify", "run_dir=a", "repair=false")
    assert (named.code, "train/c/0" in named.out) == (6, True)
    copy.ok("verify", "run_dir=a")
    assert chunk.read_bytes() == good
    # Met while tiles are computed: the images are written again, and the tiles follow.
    DAMAGES[damage](chunk)
    found = copy.ok("gram", "run_dir=b", *copy.quick, "kernel.depth=1")
    assert "preparing the data again" in found.err
    assert chunk.read_bytes() == good


@pytest.mark.parametrize("pattern", ["data/*/manifest.json", "data/*/labels/*.npz", "data/sources/*.json"])
def test_damaged_records_of_images(copy, pattern):
    before = values(copy)
    for path in copy.objects(pattern):
        flip(path, 20)
    forget(copy, "predict", "report")
    copy.ok("run", "run_dir=a", *copy.quick, *WORDS)
    np.testing.assert_array_equal(values(copy), before)
    assert copy("verify", "run_dir=a").code == 0


def test_damaged_manifest(copy):
    flip(copy.objects("gram/*/manifest.json")[0], 50)
    copy.ok("run", "run_dir=a")
    assert copy("verify", "run_dir=a").code == 0
    assert "damaged manifest" not in copy.ok("clean").out


def test_damaged_predictions(copy):
    before = values(copy)
    chunk = next(p for p in (copy.path / "a" / "predictions.zarr" / "mean").glob("c/**/*") if p.is_file())
    flip(chunk)
    assert copy("export", "run_dir=a", "format=npz", "path=x.npz").code == 6
    assert copy("report", "run_dir=a").code == 6
    assert copy("verify", "run_dir=a", "repair=false").code == 6
    copy.ok("predict", "run_dir=a")
    np.testing.assert_array_equal(values(copy), before)
    flip(chunk)
    found = copy.ok("run", "run_dir=a")
    assert "predicting again" in found.err
    flip(chunk)
    assert "repaired" in copy.ok("verify", "run_dir=a").out
    np.testing.assert_array_equal(values(copy), before)
    shutil.rmtree(copy.path / "a" / "predictions.zarr")
    copy.ok("run", "run_dir=a")
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize("damage", ["flip", *OTHERS])
def test_damaged_basis(copy, damage):
    before = values(copy)
    for path in copy.objects("krylov/**/*"):
        DAMAGES[damage](path)
    forget_only(copy, "predict", "report")
    found = copy.ok("predict", "run_dir=a")
    assert "incomplete" in found.err
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize("damage", ["flip", *OTHERS])
@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_damaged_dense_solution(work, solver, damage):
    words = (*work.quick, "run_dir=a", f"solver={solver}", "predict.times=[inf]")
    for command in ("gram", "solve", "predict"):
        work.ok(command, *words)
    before = values(work)
    damaged = [*work.objects("eigh/**/*"), *(work.path / "a" / "solve").glob("*.npz")]
    for path in damaged:
        DAMAGES[damage](path)
    assert damaged
    forget_only(work, "predict")
    work.ok("predict", *words)
    np.testing.assert_array_equal(values(work), before)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.json", "flip"),
        ("metrics.json", "delete"),
        ("solve/ntk.npz", "truncate"),
        ("solve/ntk.npz", "delete"),
        ("report/report.html", "flip"),
        ("stages/solve.json", "flip"),
        ("stages/predict.json", "truncate"),
    ],
)
def test_damaged_files_of_a_run_are_named_and_made_again(copy, name, damage):
    before, path = copy.predictions("a"), copy.path / "a" / name
    for way in ("verify", "run"):
        DAMAGES[damage](path)
        damaged = path.read_bytes() if path.exists() else b""
        told = copy.ok(way, "run_dir=a", *(("rows=0", "tiles=0") if way == "verify" else ()))
        assert f"a/{name}" in told.out + told.err
        assert path.read_bytes() != damaged
    assert copy("verify", "run_dir=a", "rows=0", "tiles=0").code == 0
    np.testing.assert_array_equal(copy.predictions("a").mean, before.mean)


def test_solutions_of_two_kernels_that_change_places_are_found(copy):
    """Both are whole, but the rows in them were sampled from the other kernel."""
    before = copy.predictions("a")
    one, other = (copy.path / "a" / "solve" / f"{name}.npz" for name in ("ntk", "nngp"))
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    forget_only(copy, "predict", "report")
    assert "differs from what the stage solve wrote" in copy.ok("run", "run_dir=a").err
    np.testing.assert_array_equal(copy.predictions("a").error_bound, before.error_bound)


def test_a_changed_setting_in_the_configuration_is_refused(copy):
    """Valid JSON, a valid configuration, and not the one that was written."""
    path = copy.path / "a" / "run.json"
    assert '"train_size": 60' in path.read_text()
    path.write_text(path.read_text().replace('"train_size": 60', '"train_size": 50'))
    for command in ("status", "predict", "verify"):
        found = copy(command, "run_dir=a")
        assert found.code == 2
        assert "disagrees with its own hash" in found.err


def test_a_configuration_that_is_gone_is_told_from_a_folder_of_something_else(copy):
    (copy.path / "a" / "run.json").unlink()
    for words in (("status", "run_dir=a"), ("run", *copy.quick, *WORDS)):
        found = copy(*words)
        assert found.code == 2
        assert "run.json is missing: move the folder away and run again" in found.err


def test_the_record_of_another_source_is_not_taken(copy):
    first = copy.objects("data/sources/*.json")[0]
    first.write_text(first.read_text().replace(first.stem, "0" * len(first.stem)))
    assert "prepared:" in copy.ok("gram", *copy.quick, "run_dir=b").err
    assert first.stem in first.read_text()


@pytest.mark.parametrize("form", ["parquet", "csv", "npz", "zarr"])
def test_damaged_exports_are_named_and_left_to_their_owner(copy, form):
    copy.ok("export", "run_dir=a", f"format={form}", f"path=out/{form}")
    assert copy("verify", "run_dir=a", "rows=0", "tiles=0", "repair=false").code == 0
    file = copy.path / "out" / form
    flip(file if file.is_file() else file / "mean/c/0/0/0/0/0", 100)
    found = copy("verify", "run_dir=a", "rows=0", "tiles=0")
    assert found.code == 6
    assert f"format={form} path=out/{form} overwrite=true" in found.out
    copy.ok("export", "run_dir=a", f"format={form}", f"path=out/{form}", "overwrite=true")
    assert copy("verify", "run_dir=a", "rows=0", "tiles=0", "repair=false").code == 0


def test_a_damaged_record_of_exports_is_told(copy):
    copy.ok("export", "run_dir=a", "format=npz", "path=out.npz")
    flip(copy.path / "a" / "exports.json", 30)
    assert "a/exports.json is damaged" in copy.ok("verify", "run_dir=a", "rows=0", "tiles=0").out
    assert copy("verify", "run_dir=a", "rows=0", "tiles=0", "repair=false").code == 0


@pytest.mark.parametrize(
    "settings",
    [
        ("solver=cg", "predict.times=[inf]", "predict.ridges=[1e-3]", "solver.checkpoint_every=1"),
        ("solver=cholesky", "predict.times=[inf]", "predict.covariance=diagonal"),
        ("solver=eigh", "predict.covariance=diagonal"),
        ("solver=krylov", "predict.covariance=diagonal"),
    ],
)
def test_nothing_is_damaged_in_a_run_that_nobody_touched(work, settings):
    words = (*work.quick, "run_dir=a", *settings)
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, *words)
    assert list(work.objects(f"{settings[0].partition('=')[2]}/**/*"))
    assert "agree with their receipts" in work.ok("verify", "run_dir=a", "repair=false", "rows=0", "tiles=0").out


@pytest.mark.parametrize("damage", ["flip", "truncate", "swap"])
def test_verify_names_damaged_states_of_solvers(copy, damage):
    before = values(copy)
    bases = copy.objects("krylov/*/*.npz")
    DAMAGES[damage](bases[0])
    named = copy("verify", "run_dir=a", "rows=0", "tiles=0", "repair=false")
    assert (named.code, str(bases[0].relative_to(copy.path / "store")) in named.out) == (6, True)
    copy.ok("verify", "run_dir=a", "rows=0", "tiles=0")
    forget_only(copy, "predict", "report")
    copy.ok("run", "run_dir=a")
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stages/data", b""),
        ("stages/gram", b"{"),
        ("stages/solve", b"[]"),
        ("stages/predict", b"\xff\xfe"),
        ("progress", b"{}"),
    ],
)
def test_damaged_receipts_of_stages(copy, name, content):
    before = values(copy)
    (copy.path / "a" / f"{name}.json").write_bytes(content)
    assert copy("status", "run_dir=a").code in (0, 4)
    copy.ok("run", "run_dir=a")
    np.testing.assert_array_equal(values(copy), before)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format": 99, "config": {}}', b'{"format": 1, "config": {"x": 1}}']
)
def test_damaged_configuration(copy, content):
    (copy.path / "a" / "run.json").write_bytes(content)
    for words in (("status", "run_dir=a"), ("run", "run_dir=a"), ("run", *copy.quick, *WORDS)):
        found = copy(*words)
        assert found.code == 2
        assert "Traceback" not in found.err
    assert json.loads((copy.path / "a" / "stages" / "solve.json").read_text())  # nothing was touched


def test_a_run_of_other_formulas_is_read_but_not_checked_against_these(copy):
    work = copy
    (tiles,) = {path.parts[-4] for path in work.objects("gram/*/receipts/train/*.json")}
    # As an earlier version left it: in a store that is named by its formulas.
    os.rename(work.path / "store/gram" / tiles, work.path / "store/gram" / tiles[::-1])
    receipt = work.path / "a/stages/gram.json"
    record = json.loads(receipt.read_text())
    record.pop("sha256")
    record["store"] = record["store"].replace(tiles, tiles[::-1])
    receipt.write_text(json.dumps(sealed(record)))
    found = work("verify", "run_dir=a", "repair=false")
    assert found.code == 6
    assert "kernel formulas of another version" in found.err
    assert "damaged" not in found.out
    work.ok("status", "run_dir=a")
    work.ok("export", "run_dir=a", "format=csv", "path=x.csv")
