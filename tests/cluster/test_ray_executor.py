from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.config import ClusterConfig
from ntkpipe.errors import DataError
from ntkpipe.tasks import faults
from ntkpipe.tasks.graph import LostWorkerError, Task
from tests.conformance.executors import ExecutorConformance

pytestmark = pytest.mark.ray


class TestRayExecutor(ExecutorConformance):
    @pytest.fixture
    def executor(self, session):
        return session


def test_workers_reuse_their_processes_and_hold_to_their_threads(session) -> None:
    pids = {r.value for r in session.run(Task(k, faults.process_id) for k in range(20))}
    assert len(pids) <= 2
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        (result,) = session.run([Task(name, faults.environment, (name,))])
        assert result.value == "1"


def test_two_workers_compute_at_the_same_time(session, tmp_path: Path) -> None:
    results = session.run(Task(k, faults.meet, (str(tmp_path), str(k), 2)) for k in range(2))
    assert [r.value for r in results] == [True, True]


def test_a_task_whose_worker_died_is_tried_again(session, tmp_path: Path) -> None:
    graph = [Task("victim", faults.die_until, (str(tmp_path), 2, "survived"))]
    graph += [Task(k, faults.echo, (k,)) for k in range(5)]
    results = {r.key: r for r in session.run(graph)}
    assert results["victim"].value == "survived"
    assert results["victim"].attempts == 3
    assert all(results[k].value == k for k in range(5))


def test_a_task_that_always_kills_its_worker_is_given_up(session) -> None:
    results = {r.key: r for r in session.run([Task("bad", faults.die), Task("ok", faults.echo, (1,))])}
    assert results["ok"].value == 1
    assert isinstance(results["bad"].error, LostWorkerError)
    assert "died 3 times" in str(results["bad"].error)
    assert results["bad"].attempts == 3


def test_a_straggler_gets_one_second_copy_and_the_first_result_counts(session, tmp_path: Path) -> None:
    from ntkpipe.cluster.capacity import FixedCapacity
    from ntkpipe.cluster.ray_executor import RayExecutor

    executor = RayExecutor(FixedCapacity(2), speculate=True)
    graph = [Task("slow", faults.straggle, (str(tmp_path), 600.0, "done"))]
    graph += [Task(k, faults.sleep, (0.05, k)) for k in range(6)]
    results = {r.key: r for r in executor.run(graph)}
    assert results["slow"].value == "done"
    assert (results["slow"].attempts, results["slow"].speculative) == (1, 1)
    assert all(results[k].value == k for k in range(6))


def test_no_second_copies_unless_asked_for(session) -> None:
    results = list(session.run([Task("slow", faults.sleep, (3.0,)), Task("quick", faults.echo, (1,))]))
    assert all(r.speculative == 0 for r in results)


def test_an_error_carries_the_workers_traceback(session) -> None:
    (result,) = session.run([Task("bad", faults.fail, (DataError("x"),))])
    assert any("faults.py" in note for note in result.error.__notes__)


def test_a_dead_pool_worker_is_replaced_and_the_call_repeated(session, tmp_path: Path) -> None:
    pool = session.pool(faults.Counter, [(10,), (20,)])
    try:
        before = pool.broadcast("process_id")
        assert pool.broadcast("add", 1) == [11, 21]
        assert pool.call(1, "die_until", str(tmp_path), 1) == 20  # made anew by its factory
        assert pool.broadcast("add", 0) == [11, 20]
        after = pool.broadcast("process_id")
        assert after[0] == before[0]
        assert after[1] != before[1]
    finally:
        pool.close()


def test_a_broadcast_survives_the_death_of_a_worker(session, tmp_path: Path) -> None:
    pool = session.pool(faults.Counter, [(10,), (20,)])
    try:
        assert pool.broadcast("die_until", str(tmp_path), 1) == [10, 20]
        array = np.ones((300, 100))
        assert pool.broadcast("sum_of", array) == [30010.0, 30020.0]
    finally:
        pool.close()


def test_a_pool_worker_that_dies_every_time_is_given_up(session, tmp_path: Path) -> None:
    pool = session.pool(faults.Counter, [(1,)])
    try:
        with pytest.raises(LostWorkerError, match="died 3 times"):
            pool.call(0, "die_until", str(tmp_path), 10)
    finally:
        pool.close()


def test_a_pool_does_not_starve_tasks(session) -> None:
    pool = session.pool(faults.Counter, [(k,) for k in range(3)])
    try:
        assert [r.value for r in session.run([Task("x", faults.echo, (1,))])] == [1]
    finally:
        pool.close()


def test_an_inner_session_shares_ray_and_leaves_it_running(session) -> None:
    import ray

    from ntkpipe.cluster.session import open_executor

    with open_executor(ClusterConfig(workers=1)) as inner:
        pool = inner.pool(faults.Counter, [(1,)])
        assert [r.value for r in inner.run([Task("x", faults.echo, (1,))])] == [1]
    assert ray.is_initialized()
    with pytest.raises(RuntimeError, match="closed"):
        pool.call(0, "add", 1)
    assert [r.value for r in session.run([Task("x", faults.echo, (1,))])] == [1]


def test_hundreds_of_small_tasks_take_little_time(session) -> None:
    start = time.process_time()
    assert sum(r.value for r in session.run(Task(k, faults.echo, (1,)) for k in range(500))) == 500
    assert time.process_time() - start < 5  # of the driver: the machine may have other work
