"""What other programs leave in a store is no object, and damage to nothing."""

from __future__ import annotations

import pytest

from ntkpipe.storage.foreign import is_foreign_key, is_foreign_name
from ntkpipe.storage.local import LocalStore

FOREIGN = (
    ".DS_Store",
    "._0.0.json",
    ".nfs0000000000000001",
    "desktop.ini",
    "Thumbs.db",
    "lost+found",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "0.0 (1).json",
    "manifest (conflicted copy 2024-01-01 120000).json",
    "manifest (Ann's conflicted copy 2024-01-01).json",
    "00000000.sync-conflict-20240101-120000-ABCDEFG.npz",
    "manifest - Copy.json",
    "manifest.json~",
)
OURS = (
    "zarr.json",
    "0.0.json",
    "discarded.0.1.2",
    "default-1a2b3c4d.json",
    "c",
    "last_used",
    "depth=3",
    "train",
    "größe_2",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_other_programs(name):
    assert is_foreign_name(name)
    assert is_foreign_key(f"gram/x/{name}")
    assert is_foreign_key(f"{name}/x")


@pytest.mark.parametrize("name", OURS)
def test_names_of_ours(name):
    assert not is_foreign_name(name)
    assert not is_foreign_key(f"gram/x/{name}")


def test_own_hidden_folders_hold_whatever_they_hold():
    assert not is_foreign_key(".compiled/x86 (2)/.cache")
    assert is_foreign_key(".compiled-not/x")


def test_a_folder_shows_its_objects_alone(tmp_path):
    store = LocalStore(tmp_path)
    store.put("a/b/0.json", b"{}")
    for name in FOREIGN:
        (tmp_path / "a" / "b" / name).write_bytes(b"\0")
    (tmp_path / ".snapshot" / "a").mkdir(parents=True)
    (tmp_path / ".snapshot" / "a" / "x").write_bytes(b"\0")
    assert list(store.list()) == ["a/b/0.json"]
    assert list(store.sizes("a/")) == [("a/b/0.json", 2)]
    assert store.folders() == ["a"]
    assert store.foreign() == sorted([*(f"a/b/{name}" for name in FOREIGN), ".snapshot"])
    assert store.sweep(older_than=0.0) == []
    assert len(store.foreign()) == len(FOREIGN) + 1
