from __future__ import annotations

import errno
import multiprocessing
import os
import time

import pytest

from ntkpipe.errors import ConfigError, HeldError, ResourceError, StoreError
from ntkpipe.storage import local
from ntkpipe.storage.local import LocalStore
from tests.conformance.stores import StoreConformance


class TestLocalStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalStore(tmp_path / "not made yet")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def files_below(path):
    return sorted(os.path.relpath(os.path.join(d, f), path) for d, _, names in os.walk(path) for f in names)


def test_nothing_is_made_before_the_first_write(store):
    assert list(store.list()) == []
    assert store.folders() == []
    assert store.sweep() == []
    assert store.free_bytes() > 0
    assert not os.path.exists(store.url)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a folder"):
        LocalStore(tmp_path / "file")


def test_a_relative_path_holds_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LocalStore("here")
    store.put("k", b"v")
    monkeypatch.chdir("/")
    assert store.get("k") == b"v"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_says_what_to_do_and_leaves_nothing(store, monkeypatch, code, overwrite):
    store.put("a/old", b"old")
    write = os.write
    calls = []

    def full(fd, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        return write(fd, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceError, match=r"6 bytes .*ntkpipe clean.*store\.url"):
        store.put("a/old" if overwrite else "a/new", b"abcdef", overwrite=overwrite)
    assert files_below(store.url) == ["a/old"]
    assert store.get("a/old") == b"old"


def test_an_object_that_another_node_replaced_is_read_again(store, monkeypatch):
    store.put("k", b"v")
    read, tried = local._read, []

    def stale(path):
        tried.append(path)
        if len(tried) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(local, "_read", stale)
    assert store.get("k") == b"v"


def test_a_link_whose_answer_got_lost_is_ours(store, monkeypatch):
    link = os.link

    def repeated(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", repeated)
    assert store.put("k", b"v") is True
    assert files_below(store.url) == ["k"]


def test_short_writes_are_continued(store, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
    store.put("k", [b"abcde", b"fg"])
    assert store.get("k") == b"abcdefg"


def test_a_file_system_without_links_is_refused(store, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="no hard links"):
        store.put("k", b"v")
    assert files_below(store.url) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(store):
    store.put("k", b"v")
    os.chmod(store.url, 0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot access .*Permission denied"):
            store.put("new", b"v")
    finally:
        os.chmod(store.url, 0o700)


def test_a_key_below_an_object_is_an_error_of_the_store(store):
    store.put("k", b"v")
    with pytest.raises(StoreError, match="k/below"):
        store.put("k/below", b"v")
    with pytest.raises(StoreError):
        store.get("k/below")
    assert not store.exists("k/below")
    store.delete("k/below")


def test_sweep_takes_old_litter_and_empty_folders_under_the_prefix(store):
    store.put("a/kept", b"v")
    store.put("b/gone", b"v")
    store.delete("b/gone")
    old, young = (os.path.join(store.url, f"a/kept.{name}.partial") for name in ("0", "1"))
    elsewhere = os.path.join(store.url, "b/x.0.partial")
    for path in (old, young, elsewhere):
        with open(path, "wb") as file:
            file.write(b"half")
    then = time.time() - 7200
    os.utime(old, (then, then))
    os.utime(elsewhere, (then, then))
    assert list(store.list()) == ["a/kept"]
    assert store.sweep("a/") == ["a/kept.0.partial"]
    assert files_below(store.url) == ["a/kept", "a/kept.1.partial", "b/x.0.partial"]
    assert store.sweep(older_than=0.0) == ["a/kept.1.partial", "b/x.0.partial"]
    assert os.listdir(store.url) == ["a"]


def _wait(ready, stop):
    ready.set()
    stop.wait(30)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_forked_child_does_not_keep_the_lease(store):
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()
    with store.lease("run", holder="parent"):
        child = context.Process(target=_wait, args=(ready, stop))
        child.start()
        assert ready.wait(30)
        with pytest.raises(HeldError), store.lease("run", holder="second"):
            pass  # the child's copy is closed, the parent's lock stands
    try:
        with store.lease("run", holder="next"):
            assert child.is_alive()
    finally:
        stop.set()
        child.join(30)


def test_a_lease_whose_note_is_damaged_still_excludes(store):
    with store.lease("run", holder="x"):
        with open(os.path.join(store.url, ".leases/run.lock"), "w") as file:
            file.write("[1, 2")
        with pytest.raises(HeldError, match="held by another process"), store.lease("run", holder="y"):
            pass
