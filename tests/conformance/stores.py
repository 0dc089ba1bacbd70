"""What every object store must do. A backend's tests subclass `StoreConformance` and give a `store` fixture."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkpipe.errors import HeldError
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.storage.statistics import Requests
from ntkpipe.storage.store import MissingObjectError, open_store

PUT_RACE = """
import sys
from ntkpipe.storage.store import open_store
store, mine = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
won = [store.put(f"race/{k}", [mine.encode() * 1000, b"end"]) for k in range(50)]
print("".join("1" if w else "0" for w in won), flush=True)
"""

KEEP_WRITING = """
import sys
from ntkpipe.storage.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
for k in range(10**6):
    store.put(f"killed/{k % 7}", [bytes([k % 7]) * 3_000_000], overwrite=True)
"""

HOLD = """
import sys, time
from ntkpipe.storage.store import open_store
with open_store(sys.argv[1]).lease("run", holder={"what": "a long run"}):
    print("ready", flush=True)
    time.sleep(60)
"""


def start(script: str, *args: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str], text: str | None = None) -> str:
    return process.communicate(text, timeout=60)[0]


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


class StoreConformance:
    """Set `between_processes = False` for a store that only one process sees, and `lease_outlives` where a killed holder's
    lease is free only so many seconds later."""

    between_processes = True
    counts_requests = False
    lease_outlives = 0.0
    more_than_a_page = 20

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError

    def test_get_returns_what_was_put(self, store):
        data = np.arange(12, dtype="<f4").reshape(3, 4)
        assert store.put("a/b/c", data)
        assert store.get("a/b/c") == data.tobytes()
        assert store.size("a/b/c") == data.nbytes
        assert store.exists("a/b/c")

    def test_parts_are_written_one_after_the_other(self, store):
        parts = [b"head", np.arange(3, dtype=np.int64), b"", memoryview(bytearray(b"tail")), np.empty((0, 3))]
        store.put("parts", parts)
        assert store.get("parts") == b"head" + np.arange(3, dtype=np.int64).tobytes() + b"tail"

    def test_an_object_may_be_empty(self, store):
        assert store.put("nothing", b"")
        assert store.get("nothing") == b""
        assert list(store.list()) == ["nothing"]

    def test_an_array_that_would_need_a_copy_is_refused(self, store):
        with pytest.raises(ValueError, match="C-contiguous"):
            store.put("t", np.zeros((3, 4)).T)
        assert list(store.list()) == []

    def test_put_if_absent_keeps_the_first(self, store):
        assert store.put("k", b"first") is True
        assert store.put("k", b"second") is False
        assert store.get("k") == b"first"

    def test_overwrite_replaces(self, store):
        store.put("k", b"first, and longer")
        assert store.put("k", b"second", overwrite=True) is True
        assert store.get("k") == b"second"

    def test_a_missing_object_is_named(self, store):
        for look in (store.get, store.size):
            with pytest.raises(MissingObjectError, match="no/such") as caught:
                look("no/such")
            assert isinstance(caught.value, KeyError)
            assert "\\" not in str(caught.value)  # a sentence, not KeyError's repr
        assert not store.exists("no/such")

    def test_delete_is_final_and_forgiving(self, store):
        store.put("k", b"1")
        store.delete("k")
        store.delete("k")
        store.delete("never/there")
        assert not store.exists("k")
        assert store.put("k", b"2")

    def test_list_is_sorted_and_filters_by_prefix(self, store):
        for key in ("b/2", "a/10", "a/9", "a/1/x", "ab", "a.b"):
            store.put(key, b"")
        assert list(store.list()) == sorted(["b/2", "a/10", "a/9", "a/1/x", "ab", "a.b"])
        assert list(store.list("a/")) == ["a/1/x", "a/10", "a/9"]
        assert list(store.list("a/1")) == ["a/1/x", "a/10"]
        assert list(store.list("none/")) == []

    def test_folders_are_the_next_level_only(self, store):
        for key in ("g/one/x", "g/one/y/z", "g/two/x", "g/file", "top"):
            store.put(key, b"")
        assert store.folders("g") == ["one", "two"]
        assert store.folders("g/") == ["one", "two"]
        assert store.folders() == ["g"]
        assert store.folders("none") == []

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/abs",
            "../up",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            ".leases/x",
            "x.partial",
            "a\\b",
            "nul\0",
            "a/.b",
            "a (1)",
            "b~",
        ],
    )
    def test_keys_that_could_escape_or_collide_are_refused(self, store, key):
        for call in (store.get, store.size, store.exists, store.delete, lambda k: store.put(k, b"x")):
            with pytest.raises(ValueError, match="not an object key"):
                call(key)

    def test_handles_survive_pickling_and_their_url(self, store):
        store.put("k", b"v")
        copy = pickle.loads(pickle.dumps(store))
        assert copy.get("k") == b"v"
        assert open_store(store.url).get("k") == b"v"
        assert len(pickle.dumps(store)) < 1000

    @settings(
        deadline=None,
        max_examples=20,
        derandomize=True,
        # Each example empties the store first, and each backend's class runs this for itself.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        steps=st.lists(
            st.tuples(st.sampled_from(["put", "replace", "delete"]), st.sampled_from("abc"), st.binary(max_size=5)),
            max_size=20,
        )
    )
    def test_it_behaves_as_a_dictionary(self, store, steps):
        for key in list(store.list()):
            store.delete(key)
        model: dict[str, bytes] = {}
        for action, key, data in steps:
            if action == "delete":
                store.delete(key)
                model.pop(key, None)
            elif action == "replace":
                assert store.put(key, data, overwrite=True)
                model[key] = data
            else:
                assert store.put(key, data) == (key not in model)
                model.setdefault(key, data)
        assert {key: store.get(key) for key in store.list()} == model

    def test_of_many_threads_one_wins(self, store):
        with ThreadPoolExecutor(8) as pool:
            for k in range(20):
                won = list(pool.map(lambda t, k=k: store.put(f"r/{k}", bytes([t]) * 10_000), range(8)))
                assert sum(won) == 1
                assert store.get(f"r/{k}") == bytes([won.index(True)]) * 10_000

    def test_a_lease_excludes_and_says_who(self, store):
        with store.lease("run", holder={"what": "computing tiles"}):
            said = r"process \d+ on .* since .*computing tiles"
            with pytest.raises(HeldError, match=said), store.lease("run", holder="me too"):
                pass
            with store.lease("other", holder="something else"):
                pass
            assert list(store.list()) == []
        with store.lease("run", holder="again"):
            pass

    def test_who_holds_a_lease_is_told_without_a_write(self, store):
        assert store.holder("run") is None
        with store.lease("run", holder={"what": "computing tiles"}):
            assert re.search(r"run in .* is held by process \d+ on .* since .*computing tiles", store.holder("run"))
            assert store.holder("other") is None
        assert store.holder("run") is None
        assert store.foreign() == []

    def test_a_lease_ends_with_its_block_even_when_that_raises(self, store):
        with pytest.raises(RuntimeError, match="stop"), store.lease("run", holder="x"):
            raise RuntimeError("stop")
        with store.lease("run", holder="y"):
            pass

    def test_of_many_processes_one_wins(self, store):
        if not self.between_processes:
            pytest.skip("one process only")
        processes = [start(PUT_RACE, store.url, name) for name in "abcd"]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        wins = [finish(process) for process in processes]
        for k in range(50):
            winner = [name for name, won in zip("abcd", wins, strict=True) if won[k] == "1"]
            assert len(winner) == 1
            assert store.get(f"race/{k}") == winner[0].encode() * 1000 + b"end"
        assert len(list(store.list("race/"))) == 50

    def test_a_killed_writer_leaves_whole_objects_and_litter_only(self, store):
        if not self.between_processes:
            pytest.skip("one process only")
        for delay in (0.02, 0.05, 0.11):
            process = start(KEEP_WRITING, store.url)
            time.sleep(delay)
            kill(process)
            for key in store.list("killed/"):
                assert store.get(key) == bytes([int(key.rpartition("/")[2])]) * 3_000_000
        assert all(key.removeprefix("killed/").isdigit() for key in store.list())
        assert store.sweep(older_than=3600.0) == []  # it may belong to a living writer
        store.sweep(older_than=0.0)
        assert store.sweep(older_than=0.0) == []

    def test_the_lease_of_a_killed_process_becomes_free(self, store):
        if not self.between_processes:
            pytest.skip("one process only")
        process = start(HOLD, store.url)
        with pytest.raises(HeldError, match=f"process {process.pid} .*a long run"), store.lease("run", holder="x"):
            pass
        kill(process)
        if self.lease_outlives:
            time.sleep(self.lease_outlives)
        with store.lease("run", holder="x"):
            pass

    def test_a_held_lease_is_not_lost(self, store):
        with store.lease("run", holder="x") as lease:
            lease.check()
            assert not lease.lost

    def test_ranges(self, store):
        store.put("k", b"0123456789")
        assert store.get_range("k", 0, 10) == b"0123456789"
        assert store.get_range("k", 3, 5) == b"34"
        assert store.get_range("k", 8, 99) == b"89"
        assert store.get_range("k", 4, 4) == b""
        with pytest.raises(MissingObjectError, match="no/such"):
            store.get_range("no/such", 0, 1)
        for start_, stop in ((-1, 3), (5, 4)):
            with pytest.raises(ValueError, match="range"):
                store.get_range("k", start_, stop)

    def test_sizes_come_with_a_listing(self, store):
        for key, n in (("a/1", 3), ("a/2", 0), ("b", 7)):
            store.put(key, b"x" * n)
        assert list(store.sizes()) == [("a/1", 3), ("a/2", 0), ("b", 7)]
        assert list(store.sizes("a/")) == [("a/1", 3), ("a/2", 0)]

    def test_a_listing_of_more_than_a_page_is_whole(self, store):
        keys = [f"page/{k:04d}" for k in range(self.more_than_a_page)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert list(store.list("page/")) == keys

    def test_counts_are_of_this_store(self, store):
        before = store.statistics()
        store.put("k", b"12345")
        store.get("k")
        after = store.statistics()
        assert bool(after.requests) == self.counts_requests
        if self.counts_requests:
            assert after.kinds["put"].requests > before.kinds.get("put", Requests()).requests
            assert after.bytes_read - before.bytes_read >= 5
            assert after.bytes_written - before.bytes_written >= 5
