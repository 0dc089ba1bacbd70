"""Files are replaced whole or not at all."""

from __future__ import annotations

import pytest

from ntkpipe.storage.replace import replace_text, replacing


def test_text_takes_the_place_of_what_was_there(tmp_path):
    target = tmp_path / "a.json"
    replace_text(target, "one")
    replace_text(target, "zwölf")
    assert target.read_text(encoding="utf-8") == "zwölf"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail() -> None:
        with replacing(target) as partial:
            partial.write_bytes(b"half of the n")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_nothing_is_there_before_the_end(tmp_path):
    target = tmp_path / "a.bin"
    with replacing(target) as partial:
        partial.write_bytes(b"new")
        assert not target.exists()
        assert partial.parent == target.parent
    assert target.read_bytes() == b"new"
