"""Files of other programs in stores and runs, and runs of other users."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntkpipe.storage.local import LocalStore
from tests.storage.test_foreign import FOREIGN

TIMES = ("predict.kernels=[ntk]", "predict.times=[10,inf]")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below, and its time."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_files_of_other_programs_are_no_damage(work):
    work.ok("run", "run_dir=a", *work.quick, *TIMES)
    left = []
    for folder, _, _ in [*os.walk("store"), *os.walk("a")]:
        for name in FOREIGN:
            left.append(Path(folder, name))
            left[-1].write_bytes(b"\0\1")
    # Conflict copies of what is there, cut short.
    for pattern in ("store/gram/*/receipts/train/*.json", "store/krylov/*/*.npz", "store/data/*/labels/*.npz"):
        for path in list(work.path.glob(pattern)):
            left.append(path.with_name(f"{path.stem}-laptop{path.suffix}"))
            left[-1].write_bytes(path.read_bytes()[:20])
    for words in (("repair=false",), ()):
        found = work.ok("verify", "run_dir=a", *words)
        assert "damaged" not in found.out
        assert not any(name in found.out for name in FOREIGN)
    listed = work.ok("clean").out
    assert "files of other programs" in listed
    assert listed.count(".DS_Store") <= 1
    work.ok("clean", "delete=litter")
    work.ok("report", "run_dir=a")
    assert all(path.exists() for path in left)
    # They may change, and go: neither is damage of the report.
    for path in left:
        path.unlink()
    assert "damaged" not in work.ok("verify", "run_dir=a", "repair=false", "tiles=0", "rows=0").out
    # A Gram store that was deleted is gone, whatever is left in its folder.
    (name,) = LocalStore("store").folders("gram")
    Path("store/gram", name, ".DS_Store").write_bytes(b"\0")
    work.ok("clean", f"delete={name}")
    assert f"  {name}  " not in work.ok("clean").out


def test_a_folder_with_nothing_but_files_of_other_programs_is_empty(work):
    Path("new").mkdir()
    for name in FOREIGN:
        Path("new", name).write_bytes(b"\0")
    work.ok("gram", "run_dir=new", *work.quick)
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("mine")
    assert work("gram", "run_dir=mine", *work.quick).code == 2


def test_clean_refuses_what_is_no_store(work):
    work.ok("gram", "run_dir=a", *work.quick)
    Path("data").mkdir()
    Path("data", "mine.txt").write_text("mine")
    for url, said in (("nowhere", "nothing is there"), (".", "it holds "), ("a", "it holds "), ("data", "mine.txt")):
        for words in ((), ("delete=unfinished",), ("delete=litter",), ("delete=solves",)):
            found = work("clean", f"store.url={url}", *words)
            assert (found.code, said in found.err) == (2, True), found.err
    assert not Path("nowhere").exists()
    Path("empty").mkdir()
    assert "it is empty" in work("clean", "store.url=empty").err
    for url in ("store", "store/", f"file://{work.path}/store", "./store/../store"):
        assert "Gram stores" in work.ok("clean", f"store.url={url}").out


@contextlib.contextmanager
def somebody_else(theirs: Path, mine: Path) -> Iterator[None]:
    """Commands may read the folder `theirs` and write to `mine` alone."""
    subprocess.run(["chmod", "-R", "a+rX,a-w", str(theirs)], check=True)
    root = os.geteuid() == 0
    if root:  # who may write anywhere
        os.chown(mine, 65534, 65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        subprocess.run(["chmod", "-R", "u+w", str(theirs)], check=True)


@pytest.fixture
def folders(work) -> Iterator[tuple[Path, Path]]:
    """A folder with the run `a`, and another one, which is the present folder; everybody may enter both."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        theirs, mine = home / "theirs", home / "mine"
        theirs.mkdir()
        mine.mkdir()
        os.chdir(theirs)
        work.ok("run", "run_dir=a", *work.quick, *TIMES)
        os.chdir(mine)
        yield theirs, mine
        os.chdir(work.path)


def test_somebody_elses_run_is_read_without_a_write(work, folders):
    theirs, mine = folders
    run = f"run_dir={theirs}/a"
    reading = (
        ("status", run),
        ("verify", run, "repair=false"),
        ("export", run, "format=csv", "path=out.csv"),
        ("report", run, "path=page"),
        ("clean", f"store.url={theirs}/store"),
    )
    for words in reading:  # imports what the other user may not find
        work.ok(*words)
    shutil.rmtree("page")
    Path("out.csv").unlink()
    shutil.rmtree(theirs / "a" / ".leases")
    before = contents(theirs)
    with somebody_else(theirs, mine):
        for words in reading:
            work.ok(*words)
        # What does write says what can be done instead, and leaves nothing half done.
        for words in (("verify", run), ("report", run)):
            found = work(*words)
            assert (found.code, "repair=false" in found.err) == (6, True), found.err
        found = work("export", run, "format=csv")
        assert (found.code, "choose another path" in found.err) == (2, True), found.err
    assert Path("out.csv").stat().st_size > 0
    assert Path("page", "report.html").exists()
    assert contents(theirs) == before


def test_a_run_that_is_at_work_is_not_verified(work):
    work.ok("gram", "run_dir=a", *work.quick)
    with LocalStore("a").lease("run", holder="a test"):
        assert "running" in work("status", "run_dir=a").out
        found = work("verify", "run_dir=a", "repair=false")
        assert (found.code, "a test" in found.err) == (5, True)
    assert "not running" in work("status", "run_dir=a").out


def test_status_leaves_no_trace(work):
    work.ok("gram", "run_dir=a", *work.quick)
    shutil.rmtree("a/.leases")
    before = contents(work.path)
    assert work("status", "run_dir=a").code == 4
    assert contents(work.path) == before
    assert json.loads(Path("a/stages/gram.json").read_text())["stage"] == "gram"
