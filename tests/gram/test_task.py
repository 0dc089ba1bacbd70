from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkpipe.errors import DataError, IncompleteError, ResourceError
from ntkpipe.gram import stage
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.progress import Progress
from ntkpipe.gram.stage import compute_gram
from ntkpipe.gram.task import GramJob, Output, diagonal_task, tile_task
from ntkpipe.gram.worker import Evaluation
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.kernels.zoo import fcn
from ntkpipe.planning.tiles import plan_gram
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.graph import LostWorkerError, Task, TaskResult
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.identity import GramIdentity, Symmetry
from ntkpipe.tiles.layout import KERNELS, Block, Kernel
from ntkpipe.tiles.store import GramStore

SPEC = fcn(2, w_std=2**0.5, b_std=0.1)
N_TRAIN, N_TEST, EDGE = 50, 20, 16
IDENTITY = GramIdentity(
    data="0" * 64,
    architecture=Architecture.from_spec(SPEC).fingerprint,
    formula_version=str(FORMULA_VERSION),
    dtype="float64",
    stored_dtype="float64",
    edge=EDGE,
    n_train=N_TRAIN,
    n_test=N_TEST,
    spec=SPEC,
)


@dataclass(frozen=True)
class SeededImages:
    """Prepared images made from a seed; training row `spoilt`, if any, is NaN."""

    seed: int = 0
    spoilt: int = -1

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        n = N_TRAIN if block == "train" else N_TEST
        x = np.random.default_rng((self.seed, n)).standard_normal((n, 4, 4, 2))
        if block == "train" and self.spoilt >= 0:
            x[self.spoilt] = np.nan
        return x[start:stop]


@pytest.fixture
def gram(tmp_path: Path) -> GramStore:
    return GramStore.create_or_open(open_store(str(tmp_path / "store")), IDENTITY)


def plan(**kwargs: Any) -> GramPlan:
    options: dict[str, Any] = {
        "n_train": N_TRAIN,
        "n_test": N_TEST,
        "spec": SPEC,
        "cost": pair_cost(SPEC, (4, 4, 2)),
        "edge": EDGE,
    }
    return plan_gram(**{**options, "kernel_dtype": "float64", "store_dtype": "float64", **kwargs})


def dense(gram: GramStore, kernel: Kernel, block: Block) -> np.ndarray:
    matrix = gram.matrix(kernel, block)
    out = np.full((matrix.grid.rows, matrix.grid.cols), np.nan)
    for t in matrix.grid:
        out[t.row_start : t.row_stop, t.col_start : t.col_stop] = matrix.read(t.i, t.j)
    return out


def job(gram: GramStore, images: Any = None) -> GramJob:
    return GramJob((Output(gram, tuple(SPEC)),), images or SeededImages())


def missing(gram: GramStore, block: Block) -> list[tuple[int, int]]:
    return [(t.i, t.j) for t in gram.missing(block)]


def test_the_stage_computes_the_whole_matrix(gram: GramStore) -> None:
    report = compute_gram(SerialExecutor(), job(gram), plan())
    assert (report.computed, report.reused) == (10 + 8, 0)
    assert report.pairs == plan().pairs
    x, x_test = SeededImages().read("train", 0, N_TRAIN), SeededImages().read("test", 0, N_TEST)
    arch = Architecture.from_spec(SPEC)
    train, test, diagonal = arch(x), arch(x_test, x), arch.diagonal(x_test)
    lower = np.tril(np.ones((N_TRAIN, N_TRAIN), bool))
    # Two orders of summation of 32 products and 2 maps with derivatives of order one: some tens of rounding errors.
    bound = 100 * np.finfo(float).eps
    for kernel in KERNELS:
        whole = np.asarray(getattr(train, kernel))
        scale = np.abs(whole).max()
        assert np.abs(dense(gram, kernel, "train") - whole)[lower].max() <= bound * scale
        assert np.abs(dense(gram, kernel, "test") - np.asarray(getattr(test, kernel))).max() <= bound * scale
        assert np.abs(gram.read_diagonal("test", kernel) - np.asarray(getattr(diagonal, kernel))).max() <= bound * scale
        assert np.abs(gram.read_diagonal("train", kernel) - np.diagonal(whole)).max() <= bound * scale


def test_a_second_time_computes_nothing(gram: GramStore, monkeypatch) -> None:
    compute_gram(SerialExecutor(), job(gram), plan())
    monkeypatch.setattr(Evaluation, "tile", None)
    monkeypatch.setattr(Evaluation, "diagonal", None)
    report = compute_gram(SerialExecutor(), job(gram), plan())
    assert (report.computed, report.reused) == (0, 18)


def test_only_what_is_missing_is_computed(gram: GramStore) -> None:
    compute_gram(SerialExecutor(), job(gram), plan())
    before = dense(gram, "ntk", "train")
    gram.discard("train", 2, 1)
    gram.discard("test", 1, 3)
    gram.discard("diagonal/train", 1, 0)
    report = compute_gram(SerialExecutor(), job(gram), plan())
    assert (report.computed, report.reused) == (2, 16)
    np.testing.assert_allclose(dense(gram, "ntk", "train"), before, rtol=1e-14)
    assert not gram.missing_diagonal("train")


def test_a_subset_computes_its_tiles_and_the_whole_adds_the_rest(gram: GramStore) -> None:
    part = compute_gram(SerialExecutor(), job(gram), plan(train_rows=20, test_rows=10))
    assert (part.computed, part.reused) == (3 + 2, 0)
    assert np.isfinite(gram.matrix("ntk", "train", 20).read(1, 1)).all()
    whole = compute_gram(SerialExecutor(), job(gram), plan())
    assert (whole.computed, whole.reused) == (13, 5)


def test_a_task_skips_what_another_writer_has_finished(gram: GramStore) -> None:
    first = tile_task(job(gram), "train", [(1, 0), (1, 1)])
    second = tile_task(job(gram), "train", [(1, 0), (1, 1), (2, 0)])
    assert [r.outcome for r in first] == ["computed"] * 2
    assert sorted(r.outcome for r in second) == ["computed", "found", "found"]
    assert all(r.pairs == EDGE * EDGE for r in first)


def test_every_reported_tile_has_its_receipt_and_provenance(gram: GramStore) -> None:
    for record in tile_task(job(gram), "test", [(0, 0), (0, 1), (1, 3)]):
        receipt = gram.receipt("test", record.i, record.j)
        assert receipt is not None
        assert receipt.seconds == record.seconds
        assert {"ntkpipe", "jax", "numpy", "python"} <= set(receipt.provenance)
    diagonal_task(job(gram), "test", [0, 1])
    assert gram.receipt("diagonal/test", 1, 0) is not None


def test_a_damaged_receipt_proves_nothing(gram: GramStore) -> None:
    tile_task(job(gram), "train", [(0, 0)])
    gram.objects.put(gram.layout.receipt_key("train", 0, 0), b"{}", overwrite=True)
    (record,) = tile_task(job(gram), "train", [(0, 0)])
    assert record.outcome == "computed"
    assert gram.receipt("train", 0, 0) is not None


def test_writing_overlaps_the_next_tile_and_never_piles_up(gram: GramStore, monkeypatch) -> None:
    events: list[str] = []
    compute, write = Evaluation.tile, GramStore.write_tile

    def watched_compute(*args: Any, **kwargs: Any) -> Any:
        events.append("compute")
        return compute(*args, **kwargs)

    def watched_write(self: GramStore, block: Any, i: int, j: int, *args: Any, **kwargs: Any) -> Any:
        import time

        events.append("begin")
        time.sleep(0.05)  # longer than a tile takes, so that the next one is computed meanwhile
        receipt = write(self, block, i, j, *args, **kwargs)
        events.append("end")
        return receipt

    tile_task(job(gram), "train", [(0, 0)])  # compiles
    monkeypatch.setattr(Evaluation, "tile", watched_compute)
    monkeypatch.setattr(GramStore, "write_tile", watched_write)
    tile_task(job(gram), "train", [(3, j) for j in range(4)])
    alive = most = 0
    for event in events:
        alive += {"compute": 1, "begin": 0, "end": -1}[event]
        most = max(most, alive)
    assert most == 2  # one being computed, one being written
    assert events[:2] == ["compute", "begin"]
    assert events[2] == "compute"  # before the first write ended
    assert events[-1] == "end"


def test_the_next_tile_is_read_while_one_is_computed_and_nothing_is_read_twice(gram: GramStore, monkeypatch) -> None:
    reads: list[int] = []
    grown = threading.Condition()

    class LoggedImages(SeededImages):
        def read(self, block: str, start: int, stop: int) -> np.ndarray:
            with grown:
                reads.append(start // EDGE)
                grown.notify()
            return super().read(block, start, stop)

    # What has been read once a tile is computed; the last blocks are ragged.
    wanted, seen = [(3, 0, 1), (3, 0, 1, 2), (3, 0, 1, 2), (3, 0, 1, 2)], []
    compute = Evaluation.tile

    def slow(*args: Any, **kwargs: Any) -> list[dict[str, np.ndarray]]:
        with grown:
            assert grown.wait_for(lambda: len(reads) >= len(wanted[len(seen)]), timeout=60), "the next tile is not read"
            seen.append(tuple(reads))
        return compute(*args, **kwargs)

    monkeypatch.setattr(Evaluation, "tile", slow)
    records = tile_task(job(gram, LoggedImages(seed=7)), "train", [(3, 0), (3, 1), (3, 2), (3, 3)])
    assert [r.outcome for r in records] == ["computed"] * 4
    assert seen == wanted


def test_a_bad_tile_is_named_at_the_end_and_the_others_are_stored(gram: GramStore) -> None:
    with pytest.raises(IncompleteError, match=r"could not be computed") as caught:
        compute_gram(SerialExecutor(), job(gram, SeededImages(spoilt=20)), plan())
    text = str(caught.value)
    assert "tile (1, 0) of train" in text
    assert "data.drop_invalid=true" in text
    # Row and column 1 of tiles fail, everything else is there.
    assert missing(gram, "train") == [(1, 0), (1, 1), (2, 1), (3, 1)]
    assert missing(gram, "test") == [(0, 1), (1, 1)]
    assert gram.missing_diagonal("train") == [1]


def test_a_full_disk_stops_at_once(gram: GramStore, monkeypatch) -> None:
    calls = []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        raise ResourceError("the disk is full")

    monkeypatch.setattr(GramStore, "write_tile", full)
    with pytest.raises(ResourceError, match="full"):
        compute_gram(SerialExecutor(), job(gram), plan())
    assert len(calls) <= 2


def test_a_programming_error_is_not_hidden(gram: GramStore, monkeypatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(Evaluation, "tile", broken)
    with pytest.raises(TypeError, match="unexpected"):
        compute_gram(SerialExecutor(), job(gram), plan())


def test_a_tile_that_does_not_fit_says_what_to_set(gram: GramStore, monkeypatch) -> None:
    def greedy(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Evaluation, "tile", greedy)
    with pytest.raises(ResourceError, match=r"grid\.edge"):
        compute_gram(SerialExecutor(), job(gram), plan())


class LossyExecutor(SerialExecutor):
    """Loses the worker of the second task for good."""

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        def spoilt() -> Iterator[Task]:
            for k, t in enumerate(graph):
                yield replace(t, function=self._lose, args=(t.key,)) if k == 1 else t

        yield from super().run(spoilt())

    @staticmethod
    def _lose(key: object) -> None:
        raise LostWorkerError(f"the worker of {key} died 4 times")


def test_a_task_that_loses_its_workers_fails_its_tiles_only(gram: GramStore) -> None:
    with pytest.raises(IncompleteError, match="died 4 times"):
        compute_gram(LossyExecutor(), job(gram), plan())
    left = missing(gram, "train")
    assert left
    assert len({i for i, _ in left}) == 1  # one task, which never reaches into the next row
    assert missing(gram, "test") == []


def test_progress_is_told_from_the_start_to_the_end(gram: GramStore, monkeypatch) -> None:
    monkeypatch.setattr(stage, "_REPORT_SECONDS", 0.0)
    told: list[dict[str, Any]] = []

    def listen(progress: Progress) -> None:
        told.append(progress.record())

    compute_gram(SerialExecutor(), job(gram), plan(train_rows=20, test_rows=10), listen)
    assert [told[0]["done"], told[-1]["done"], told[-1]["total"]] == [0, 5, 5]
    assert told[-1]["eta"] == 0.0
    assert all(a["done"] <= b["done"] for a, b in pairwise(told))
    told.clear()
    compute_gram(SerialExecutor(), job(gram), plan(), listen)
    assert (told[0]["done"], told[-1]["done"], told[-1]["pairs"]) == (5, 18, plan().pairs)


def test_a_plan_of_another_grid_is_refused(gram: GramStore) -> None:
    with pytest.raises(ValueError, match="plan is for"):
        compute_gram(SerialExecutor(), job(gram), plan(edge=8))
    with pytest.raises(ValueError, match="dtype"):
        compute_gram(SerialExecutor(), job(gram), plan(kernel_dtype="float32", store_dtype="float32"))


def test_failures_of_images_are_those_of_their_tiles(gram: GramStore) -> None:
    class Unreadable(SeededImages):
        def read(self, block: str, start: int, stop: int) -> np.ndarray:
            if block == "test":
                raise DataError("chunk 3 of the images is damaged")
            return super().read(block, start, stop)

    with pytest.raises(IncompleteError, match="chunk 3 of the images"):
        compute_gram(SerialExecutor(), job(gram, Unreadable()), plan())
    assert missing(gram, "train") == []


# ---- several stores


def stores(gram: GramStore, *wanted: tuple[int, Symmetry]) -> GramJob:
    """A job with stores for (depth, symmetry) beside that of `gram`."""
    outputs = []
    for depth, symmetry in wanted:
        spec = fcn(depth, w_std=2**0.5, b_std=0.1)
        architecture = Architecture.from_spec(spec).fingerprint
        identity = replace(gram.identity, architecture=architecture, symmetry=symmetry, spec=spec)
        outputs.append(Output(GramStore.create_or_open(gram.objects, identity), tuple(spec)))
    return GramJob(tuple(outputs), SeededImages())


def test_even_and_odd_parts_come_from_one_evaluation(gram: GramStore, monkeypatch) -> None:
    calls = []
    tile = Evaluation.tile

    def counted(self: Evaluation, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return tile(self, *args, **kwargs)

    monkeypatch.setattr(Evaluation, "tile", counted)
    both = stores(gram, (2, "even"), (2, "odd"))
    report = compute_gram(SerialExecutor(), both, plan(stores=("even", "odd"), evaluations=2))
    assert (report.computed, len(calls)) == (18, 18)
    arch = Architecture.from_spec(SPEC)
    x, x_test = SeededImages().read("train", 0, N_TRAIN), SeededImages().read("test", 0, N_TEST)
    bound = 100 * np.finfo(float).eps
    flipped = np.ascontiguousarray(x[:, :, ::-1])
    for kernel in KERNELS:
        for block, rows in (("train", x), ("test", x_test)):
            plain = np.asarray(getattr(arch(x) if block == "train" else arch(rows, x), kernel))
            mirror = np.asarray(getattr(arch(rows, flipped), kernel))
            lower = np.tril(np.ones(plain.shape, bool)) if block == "train" else np.ones(plain.shape, bool)
            scale = np.abs(plain).max()
            for output, sign in zip(both.outputs, (1, -1), strict=True):
                error = np.abs(dense(output.gram, kernel, block) - (plain + sign * mirror))
                assert error[lower].max() <= bound * scale
                # Its own diagonal, and beside it that of the kernel itself.
                own = np.asarray(getattr(arch.diagonal(rows), kernel))
                across = np.diagonal(np.asarray(getattr(arch(rows, np.ascontiguousarray(rows[:, :, ::-1])), kernel)))
                found = output.gram.read_diagonal(block, kernel)
                assert np.abs(found - (own + sign * across)).max() <= bound * scale
                assert np.abs(output.gram.read_diagonal(block, kernel, plain=True) - own).max() <= bound * scale
            first = both.outputs[0].gram.matrix(kernel, "train").read(0, 0)
            np.testing.assert_array_equal(first, first.T)


def test_several_depths_come_from_one_evaluation_and_equal_each_alone(gram: GramStore, tmp_path: Path) -> None:
    compute_gram(SerialExecutor(), stores(gram, (1, "none"), (3, "none"), (2, "none")), plan())
    other = GramStore.create_or_open(open_store(str(tmp_path / "other")), gram.identity)
    for depth in (1, 2, 3):
        alone, shared = stores(other, (depth, "none")), stores(gram, (depth, "none"))
        compute_gram(SerialExecutor(), alone, plan())
        assert compute_gram(SerialExecutor(), shared, plan()).computed == 0
        for kernel in KERNELS:
            one, two = (dense(job.outputs[0].gram, kernel, "test") for job in (alone, shared))
            assert np.abs(one - two).max() <= 100 * np.finfo(float).eps * np.abs(one).max()


def test_only_the_stores_that_lack_a_tile_are_written(gram: GramStore) -> None:
    compute_gram(SerialExecutor(), stores(gram, (2, "even")), plan(evaluations=2))
    both = stores(gram, (2, "even"), (2, "odd"))
    both.outputs[0].gram.discard("test", 1, 1)
    before = {key: gram.objects.get(key) for key in gram.objects.list(f"gram/{both.outputs[0].gram.name}/receipts/")}
    report = compute_gram(SerialExecutor(), both, plan(evaluations=2))
    assert (report.computed, report.reused) == (18, 0)  # each was missing in the odd store
    after = {key: gram.objects.get(key) for key in gram.objects.list(f"gram/{both.outputs[0].gram.name}/receipts/")}
    assert {key for key in after if after[key] != before.get(key)} == set(after) - set(before)
    assert len(set(after) - set(before)) == 1
    both.outputs[1].gram.discard("train", 2, 0)
    both.outputs[0].gram.discard("train", 1, 1)
    assert [(t.i, t.j) for t in both.missing("train", both.grid("train"))] == [(1, 1), (2, 0)]
    assert compute_gram(SerialExecutor(), both, plan(evaluations=2)).computed == 2


def test_one_store_that_refuses_a_tile_does_not_keep_it_from_the_others(gram: GramStore, monkeypatch) -> None:
    both = stores(gram, (1, "none"), (2, "none"))
    write = GramStore.write_tile

    def picky(self: GramStore, *args: Any, **kwargs: Any) -> Any:
        if self.name == both.outputs[0].gram.name:
            raise DataError("this kernel overflows")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(GramStore, "write_tile", picky)
    with pytest.raises(IncompleteError, match="this kernel overflows"):
        compute_gram(SerialExecutor(), both, plan())
    assert missing(both.outputs[1].gram, "train") == []
    assert len(missing(both.outputs[0].gram, "train")) == 10


def test_stores_of_other_images_do_not_share_a_job(gram: GramStore) -> None:
    other = GramStore.create_or_open(gram.objects, replace(gram.identity, data="1" * 64))
    with pytest.raises(ValueError, match="differ in more than the kernel"):
        GramJob((Output(gram, tuple(SPEC)), Output(other, tuple(SPEC))), SeededImages())
