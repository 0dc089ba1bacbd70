from __future__ import annotations

import json
import threading
import time
import uuid

import pytest

from ntkpipe.errors import StoreError
from ntkpipe.storage.board import Board, is_running, read_board, read_boards, run_key
from ntkpipe.storage.memory import MemoryStore


@pytest.fixture
def store():
    return MemoryStore(uuid.uuid4().hex)


def test_the_last_word_is_written_and_the_rest_now_and_then(store, tmp_path):
    with Board(store, tmp_path / "my run", every=0.05) as board:
        for k in range(200):
            board.tell(stage="gram", done=k)
            time.sleep(0.001)
        board.tell(stage="gram", done=200, final=True)
    found = read_board(store, run_key(tmp_path / "my run"))
    assert (found["stage"], found["done"], found["final"]) == ("gram", 200, True)
    assert found["run_dir"] == str(tmp_path / "my run")
    assert 2 <= found["count"] <= 20  # of 201
    assert board.key.startswith("runs/my-run-")
    assert dict(read_boards(store)) == {board.key: found}
    assert not is_running(store, board.key)


def test_telling_never_waits_for_the_store(store, tmp_path, monkeypatch):
    gate, written = threading.Event(), []
    monkeypatch.setattr(MemoryStore, "put", lambda *_, **__: written.append(gate.wait(30)))
    with Board(store, tmp_path) as board:
        for k in range(10):
            board.tell(done=k)
        assert written == []
        gate.set()


def test_a_store_that_is_away_does_not_end_the_run(store, tmp_path, monkeypatch):
    def away(*_, **__):
        raise StoreError("away")

    with monkeypatch.context() as patch, Board(store, tmp_path, every=0.01) as board:
        patch.setattr(MemoryStore, "put", away)
        board.tell(done=1)
        time.sleep(0.05)
        patch.undo()
        board.tell(done=2)
    assert read_board(store, board.key)["done"] == 2


def test_what_is_absent_or_damaged_is_no_news(store):
    assert read_board(store, run_key("x")) is None
    for bad in (b"", b"[1]", b'{"a": '):
        store.put(run_key("x"), bad, overwrite=True)
        assert read_board(store, run_key("x")) is None


def test_a_run_that_rewrites_its_object_is_running(store, tmp_path):
    with Board(store, tmp_path, every=0.05) as board:
        board.tell(done=0)
        while read_board(store, board.key) is None:
            time.sleep(0.01)
        timer = threading.Timer(0.2, lambda: board.tell(done=1))
        timer.start()
        assert is_running(store, board.key, patience=100)
        timer.join()
    store.put(board.key, json.dumps({"count": 1, "every": 0.02}).encode(), overwrite=True)
    assert not is_running(store, board.key)
