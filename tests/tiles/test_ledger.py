from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkpipe.errors import CorruptionError, IncompleteError
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tiles.audit import repair, verify
from ntkpipe.tiles.ledger import Ledger
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.segment import Segment
from ntkpipe.tiles.store import GramStore
from tests.corruption import forget


def receipts(n, gram="g", block="train"):
    return [
        Receipt(
            gram,
            block,
            i,
            i % 3,
            {"nngp": i * 7919 % 2**32, "ntk": 2**32 - 1 - i},
            seconds=i / 3,
            provenance={"jax": str(i % 2)},
        )
        for i in range(n)
    ]


def tail(gram, label="train"):
    return sorted(gram.objects.list(gram.layout.key(f"receipts/{label}/")))


def segments(gram, label="train"):
    return [k for k in gram.objects.list(gram.layout.key(f"segments/{label}/")) if k.endswith(".json")]


def missing(gram, block="train"):
    return [(t.i, t.j) for t in gram.missing(block)]


# ---- segments


def test_a_segment_gives_back_its_receipts():
    packed = receipts(20)
    segment = Segment.of(packed)
    again = Segment.from_bytes(segment.to_bytes(), "s", "g", "train")
    assert [again.receipt(k) for k in range(20)] == packed
    assert again.to_bytes() == segment.to_bytes()


def test_every_flipped_bit_and_every_cut_of_a_segment_is_seen():
    data = Segment.of(receipts(2)).to_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(data), 400, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CorruptionError, match="segment of receipts s"):
            Segment.from_bytes(bytes(flipped), "s", "g", "train")
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(CorruptionError):
            Segment.from_bytes(data[:cut], "s", "g", "train")
    for gram, label in (("other", "train"), ("g", "test")):
        with pytest.raises(CorruptionError, match="another store or block"):
            Segment.from_bytes(data, "s", gram, label)


def test_a_thousand_receipts_are_some_tens_of_kilobytes():
    assert len(Segment.of(receipts(1000)).to_bytes()) < 60_000


# ---- compacting


def test_nothing_changes_but_the_number_of_objects(full, problem):
    before = {t: full.receipt("train", *t) for t in [(t.i, t.j) for t in full.grid("train")]}
    assert full.compact(2) == 3 + 3 + 1 + 1  # 6 and 6 tiles; of 3 and 2 parts of diagonals a pair each
    assert tail(full) == []
    assert len(segments(full)) == 3
    forget(full)
    assert missing(full) == []
    assert {t: full.receipt("train", *t) for t in before} == before
    assert list(verify(full)) == []
    assert full.compact(2) == 0
    for kernel in ("nngp", "ntk"):
        for t in full.grid("test"):
            assert np.array_equal(full.matrix(kernel, "test").read(t.i, t.j), problem.tile("test", t.i, t.j)[kernel])


def test_fewer_than_a_segment_stay_in_the_tail(full):
    assert full.compact(4) == 1 + 1
    assert len(tail(full)) == 2
    assert missing(full) == []


def test_another_process_sees_segments(full, problem, tmp_path):
    full.compact(2)
    (tmp_path / "gram.bin").write_bytes(pickle.dumps(full))
    code = (
        "import pickle, sys; g = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(len(list(g.missing('train'))), float(g.matrix('ntk', 'train').read(1, 0).sum()))\n"
        "print([x for x in ('zarr', 'jax', 'obstore') if x in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gram.bin")], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [f"0 {float(problem.tile('train', 1, 0)['ntk'].sum())}", "[]"]


def test_killed_between_segment_and_deletion_nothing_is_lost(full, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(full.objects), "delete_all", killed)
        with pytest.raises(KeyboardInterrupt):
            full.ledger("train").compact(3)
    forget(full)
    assert (len(tail(full)), len(segments(full))) == (6, 1)
    assert missing(full) == []
    assert list(verify(full)) == []
    full.compact(3)
    assert (len(tail(full)), len(segments(full))) == (0, 2)
    assert list(verify(full)) == []


def test_two_compactors_at_once_agree(make):
    problem = make(n_train=40, n_test=1, edge=4)
    gram = problem.fill(GramStore.create_or_open(MemoryStore(os.urandom(8).hex()), problem.identity))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: gram.ledger("train").compact(size), (3, 4, 5, 3)))
    forget(gram)
    assert missing(gram) == []
    assert list(verify(gram)) == []


def test_a_reader_between_the_two_steps_of_a_compaction_misses_nothing(full, monkeypatch):
    ledger = full.ledger("train")
    ledger.done()
    look = Ledger._tail

    def then_compacted(self):
        found = look(self)
        monkeypatch.setattr(Ledger, "_tail", look)
        self.compact(2)
        return found

    monkeypatch.setattr(Ledger, "_tail", then_compacted)
    assert ledger.done().all()


# ---- discarding


def test_a_tile_in_a_segment_is_discarded_and_computed_again(full, problem):
    full.compact(2)
    full.discard("train", 1, 0)
    assert missing(full) == [(1, 0)]
    with pytest.raises(IncompleteError):
        full.matrix("ntk", "train").read(1, 0)
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in problem.tile("train", 1, 0).items()}
    receipt = full.write_tile("train", 1, 0, nudged)
    assert receipt.generation == 1
    assert np.array_equal(full.matrix("ntk", "train").read(1, 0), nudged["ntk"])
    assert list(verify(full)) == []
    full.compact(1)
    forget(full)
    assert full.receipt("train", 1, 0) == receipt
    assert np.array_equal(full.matrix("ntk", "train").read(1, 0), nudged["ntk"])
    assert list(verify(full)) == []
    full.discard("train", 1, 0)
    assert full.write_tile("train", 1, 0, nudged).generation == 2


def test_a_receipt_that_is_packed_while_its_tile_is_discarded_stays_void(full, problem, monkeypatch):
    pack = Segment.of.__func__

    def discarded_first(cls, packed):
        monkeypatch.setattr(Segment, "of", classmethod(pack))
        full.discard("train", 1, 0)
        full.write_tile("train", 1, 0, problem.tile("train", 1, 0))
        return pack(cls, packed)

    monkeypatch.setattr(Segment, "of", classmethod(discarded_first))
    full.ledger("train").compact(6)
    forget(full)
    assert full.receipt("train", 1, 0).generation == 1
    assert list(verify(full)) == []
    full.objects.delete(full.layout.receipt_key("train", 1, 0, 1))
    assert missing(full) == [(1, 0)]  # the packed receipt of the discarded tile does not come back


def test_a_late_receipt_of_a_discarded_tile_does_not_count(full):
    data = full.objects.get(full.layout.receipt_key("train", 1, 0))
    full.discard("train", 1, 0)
    full.objects.put(full.layout.receipt_key("train", 1, 0), data)  # of a process that was suspended
    assert missing(full) == [(1, 0)]
    assert all(problem.is_harmless for problem in verify(full))


def test_a_process_that_knows_old_segments_reads_the_tile_computed_since(full, problem, tmp_path):
    full.compact(2)
    matrix = full.matrix("ntk", "train")
    matrix.read(1, 0)
    code = (
        "import pickle, sys\n"
        "gram, tile = pickle.load(open(sys.argv[1], 'rb'))\n"
        "gram.discard('train', 1, 0); gram.write_tile('train', 1, 0, tile); gram.compact(1)"
    )
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in problem.tile("train", 1, 0).items()}
    (tmp_path / "job.bin").write_bytes(pickle.dumps((full, nudged)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "job.bin")], check=True)
    assert np.array_equal(matrix.read(1, 0), nudged["ntk"])


def test_a_damaged_segment_is_named_and_its_tiles_are_computed_again(full, problem):
    full.compact(6)
    (key,) = segments(full)
    data = bytearray(full.objects.get(key))
    data[40] ^= 1
    full.objects.put(key, data, overwrite=True)
    forget(full)
    assert len(missing(full)) == 6
    (found,) = [p for p in verify(full) if not p.is_harmless]
    assert (found.kind, found.key, found.label) == ("segment", key, "train")
    assert repair(full, [found]) == []
    problem.fill(full)
    assert list(verify(full)) == []
    full.compact(6)
    assert segments(full) != []
    assert list(verify(full)) == []


def test_writing_a_tile_whose_receipt_is_packed_and_wrong_replaces_it(full, problem):
    full.compact(2)
    for kernel in ("nngp", "ntk"):
        full.objects.delete(full.layout.chunk_key(kernel, "train", 1, 0))
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in problem.tile("train", 1, 0).items()}
    assert full.write_tile("train", 1, 0, nudged).generation == 1
    assert np.array_equal(full.matrix("ntk", "train").read(1, 0), nudged["ntk"])
    assert full.write_tile("train", 1, 0, nudged).generation == 1
    assert list(verify(full)) == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 5), st.integers(0, 3)),
            st.tuples(st.just("discard"), st.integers(0, 5)),
            st.tuples(st.just("compact"), st.integers(1, 3)),
            st.tuples(st.just("half"), st.integers(1, 3)),
            st.tuples(st.just("forget")),
        ),
        max_size=25,
    )
)
def test_any_order_of_steps_leaves_what_was_written_last(make, steps):
    problem = make(n_train=10, n_test=0, edge=4)
    objects = MemoryStore(os.urandom(8).hex())
    gram = GramStore.create_or_open(objects, problem.identity)
    tiles = [(t.i, t.j) for t in gram.grid("train")]
    model = {}
    for step in steps:
        if step[0] == "write":
            t = tiles[step[1]]
            values = {k: v + np.float32(step[2]) for k, v in problem.tile("train", *t).items()}
            gram.write_tile("train", *t, values)
            model.setdefault(t, values)
            # A tile that is there is only replaced by one that differs by more than rounding.
            if not np.array_equal(gram.matrix("ntk", "train").read(*t), model[t]["ntk"]):
                model[t] = values
        elif step[0] == "discard":
            gram.discard("train", *tiles[step[1]])
            model.pop(tiles[step[1]], None)
        elif step[0] == "compact":
            gram.compact(step[1])
        elif step[0] == "half":  # killed before it deleted the tail
            kept = {key: objects.get(key) for key in tail(gram)}
            gram.compact(step[1])
            for key, data in kept.items():
                objects.put(key, data)
        else:
            forget(gram)
        assert set(tiles) - set(missing(gram)) == set(model)
    for t, values in model.items():
        for kernel in ("nngp", "ntk"):
            assert np.array_equal(gram.matrix(kernel, "train").read(*t), values[kernel])
    assert all(p.is_harmless for p in verify(gram))


def test_resuming_asks_for_segments_and_not_for_receipts(full, monkeypatch):
    full.compact(2)
    forgotten = []
    for label in full.layout.labels:
        forgotten.append(label)
        full.ledger(label).reread()
    got = []
    get = type(full.objects).get
    monkeypatch.setattr(type(full.objects), "get", lambda self, key: got.append(key) or get(self, key))
    full.ledger("train").reread()
    assert missing(full) == []
    assert sorted(got) == segments(full)
    assert missing(full) == []
    assert len(got) == 3  # each is read once


KEEP_PACKING = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    gram = pickle.load(file)
print("ready", flush=True)
while True:
    for size in (2, 3, 5):
        gram.ledger("train").compact(size)
"""


def test_compactors_that_are_killed_while_tiles_are_written_and_discarded_lose_nothing(make, tmp_path):
    problem = make(n_train=120, n_test=1, edge=8)
    gram = GramStore.create_or_open(LocalStore(tmp_path / "store"), problem.identity)
    (tmp_path / "job.bin").write_bytes(pickle.dumps(gram))
    tiles = [(t.i, t.j) for t in gram.grid("train")]
    for round_ in range(3):
        processes = [
            subprocess.Popen([sys.executable, "-c", KEEP_PACKING, str(tmp_path / "job.bin")], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        try:
            assert all(p.stdout is not None and p.stdout.readline() == b"ready\n" for p in processes)
            for t in tiles[round_::3]:
                gram.write_tile("train", *t, problem.tile("train", *t))
            for t in tiles[round_::9]:
                gram.discard("train", *t)
                gram.write_tile("train", *t, problem.tile("train", *t))
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    forget(gram)
    assert missing(gram) == []
    assert all(p.is_harmless for p in verify(gram))
    assert len(segments(gram)) > 1
    for t in tiles:
        assert np.array_equal(gram.matrix("ntk", "train").read(*t), problem.tile("train", *t)["ntk"])
