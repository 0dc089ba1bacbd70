"""Paths are taken as they are typed, and every job of a sweep has a folder of its own."""

from __future__ import annotations

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ntkpipe.cli.typed import as_typed
from ntkpipe.errors import ConfigError

NAMES = (
    "2024",
    "007",
    "2024-01-01",
    "1e3",
    "1_000",
    "0x10",
    "1.50",
    "true",
    "No",
    "inf",
    "nan",
    "a b",
    "x (1).npz",
    "[x]",
    "{x: 1}",
    "größe",
    "数",
    "a=b",
    "s/data.path=a,kernel.depth=1",
    "it's",
    "back\\slash",
    "a#b",
    "a&b",
    "s3://bucket/x",
    "file:///a/b",
    "./runs/default",
    "/abs/2024",
)


def values(word: str) -> list[object]:
    override = OverridesParser.create().parse_override(word)
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["run_dir", "store.url", "data.path", "kernel.train", "++kernel.path"])
def test_a_path_is_what_was_typed(key, name):
    assert values(as_typed(f"{key}={name}")) == [name]
    assert as_typed(as_typed(f"{key}={name}")) == as_typed(f"{key}={name}")


def test_null_is_a_folder_and_no_file():
    assert values(as_typed("run_dir=null")) == values(as_typed("store.url=null")) == ["null"]
    assert values(as_typed("data.path=null")) == [None]


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert values(as_typed("run_dir=~/x")) == ["/home/me/x"]
    assert values(as_typed("data.path=~/a.npz,~/b.npz")) == ["/home/me/a.npz", "/home/me/b.npz"]


def test_values_of_a_sweep_are_taken_one_by_one():
    assert as_typed("data.path=2024,a.npz") == "data.path='2024',a.npz"
    for word in (
        "data.path=choice(a,b)",
        "data.path='a,b'",
        "kernel.depth=1,2",
        "kernel.depth=007",
        "--multirun",
        "~kernel",
    ):
        assert as_typed(word) == word


def test_a_run_in_a_folder_that_is_a_number(command, tmp_path):
    for name in ("2024", "007", "null", "true", "2024-01-01"):
        code, _, err = command(
            "gram", f"run_dir={name}", "cluster=serial", "data=synthetic", "data.n_train=20", "data.n_test=5"
        )
        assert code == 0, err
        assert (tmp_path / name / "run.json").exists()
    assert sorted(os.listdir(tmp_path)) == ["007", "2024", "2024-01-01", "null", "store", "true"]
    assert command("status", "run_dir=007")[0] == 4


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("kernel.activation=rellu", "rellu"),
        ("store.url=http://x", "give a folder"),
        ("store.name=a/b", "store.name"),
        ("run_dir=", "run_dir"),
    ],
)
def test_a_misspelt_setting_is_told_before_a_folder_that_is_taken(command, word, said):
    words = ("cluster=serial", "data=synthetic", "data.n_train=20", "data.n_test=5", "run_dir=a")
    assert command("gram", *words)[0] == 0
    code, _, err = command("gram", *words, "kernel.depth=1", word)
    assert (code, said in err, "another configuration" in err) == (ConfigError.exit_code, True, False), err
