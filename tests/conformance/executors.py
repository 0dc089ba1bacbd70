"""What every executor must do. A backend subclasses `ExecutorConformance` and provides the `executor` fixture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.errors import CorruptionError, DataError
from ntkpipe.tasks import faults
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.graph import BlockedError, Task


class ExecutorConformance:
    """Tests of the promises in `ntkpipe.tasks.executor`, for any backend."""

    def test_every_task_gives_one_result_with_its_value(self, executor: Executor) -> None:
        results = list(executor.run(Task(("echo", k), faults.echo, (k * k,)) for k in range(20)))
        assert {r.key: r.value for r in results} == {("echo", k): k * k for k in range(20)}
        assert len(results) == 20
        assert all(r.ok and r.attempts == 1 for r in results)

    def test_an_empty_graph_gives_nothing(self, executor: Executor) -> None:
        assert list(executor.run([])) == []

    def test_a_task_runs_after_those_it_names(self, executor: Executor, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        graph = [
            Task("slow", faults.stamp, (log, "slow", 0.2)),
            Task("free", faults.stamp, (log, "free")),
            Task("next", faults.stamp, (log, "next"), after=("slow",)),
            Task("last", faults.stamp, (log, "last"), after=("next", "free")),
        ]
        assert all(r.ok for r in executor.run(graph))
        lines = Path(log).read_text().split()
        assert sorted(lines) == ["free", "last", "next", "slow"]
        assert lines.index("slow") < lines.index("next") < lines.index("last")

    def test_a_long_chain_does_not_deadlock(self, executor: Executor) -> None:
        n = 8 * executor.workers
        graph = [Task(k, faults.echo, (k,), after=(k - 1,) if k else ()) for k in range(n)]
        assert [r.key for r in executor.run(graph)] == list(range(n))

    def test_tasks_after_a_failure_are_blocked_and_name_it(self, executor: Executor) -> None:
        graph = [
            Task("bad", faults.fail, (DataError("row 3 holds NaN"),)),
            Task("child", faults.echo, (1,), after=("bad",)),
            Task("grandchild", faults.echo, (1,), after=("child",)),
            Task("other", faults.echo, (2,)),
        ]
        results = {r.key: r for r in executor.run(graph)}
        assert results["other"].value == 2
        assert isinstance(results["bad"].error, DataError)
        for key, cause in (("child", "'bad'"), ("grandchild", "'child'")):
            error = results[key].error
            assert isinstance(error, BlockedError)
            assert cause in str(error)
            assert results[key].attempts == 0
        assert "row 3 holds NaN" in str(results["child"].error)

    @pytest.mark.parametrize("after", ["later", "never", "self"])
    def test_a_dependency_that_is_not_earlier_is_named(self, executor: Executor, after: str) -> None:
        graph = [Task("self", faults.echo, (1,), after=(after,)), Task("later", faults.echo, (2,))]
        results = {r.key: r for r in executor.run(graph)}
        assert isinstance(results["self"].error, BlockedError)
        assert repr(after) in str(results["self"].error)
        assert results["later"].value == 2

    def test_two_tasks_of_one_key_are_refused(self, executor: Executor) -> None:
        with pytest.raises(ValueError, match="'same'"):
            list(executor.run([Task("same", faults.echo, (1,)), Task("same", faults.echo, (2,))]))

    @pytest.mark.parametrize(
        "error", [DataError("a"), CorruptionError("tile (3, 1)"), ValueError("b", 3), KeyError("c")]
    )
    def test_errors_come_back_as_they_were_raised(self, executor: Executor, error: Exception) -> None:
        (result,) = executor.run([Task("bad", faults.fail, (error,))])
        assert result.error is not None
        assert type(result.error) is type(error)
        assert result.error.args == error.args
        assert result.attempts == 1

    def test_an_error_that_cannot_travel_is_still_an_error(self, executor: Executor) -> None:
        results = {r.key: r for r in executor.run([Task("bad", faults.fail_awkwardly), Task("ok", faults.echo, (1,))])}
        assert results["ok"].value == 1
        assert not results["bad"].ok
        assert "awkward" in str(results["bad"].error)

    def test_the_graph_is_consumed_lazily(self, executor: Executor) -> None:
        taken = 0

        def graph() -> Iterator[Task]:
            nonlocal taken
            for k in range(10**9):
                taken += 1
                yield Task(k, faults.echo, (k,))

        results = executor.run(graph())
        assert taken == 0
        for done in range(1, 30):
            next(results)
            assert taken - done <= 4 * executor.workers
        results.close()
        assert taken < 30 + 4 * executor.workers

    def test_waiting_tasks_are_bounded_too(self, executor: Executor) -> None:
        taken = 0

        def graph() -> Iterator[Task]:
            nonlocal taken
            yield Task("root", faults.sleep, (0.3,))
            for k in range(1000):
                taken += 1
                yield Task(k, faults.echo, (k,), after=("root",))

        results = executor.run(graph())
        assert next(results).key == "root"
        assert taken <= 4 * executor.workers
        results.close()

    def test_closing_early_leaves_a_working_executor(self, executor: Executor, tmp_path: Path) -> None:
        log = tmp_path / "log"
        results = executor.run(Task(k, faults.stamp, (str(log), str(k), 0.05)) for k in range(200))
        next(results)
        results.close()
        time.sleep(0.3)
        assert [r.value for r in executor.run([Task("x", faults.echo, (1,))])] == [1]
        # Those that had begun may end, however late.
        assert len(log.read_text().split()) <= 4 * executor.workers

    def test_an_error_of_the_graph_itself_reaches_the_caller(self, executor: Executor) -> None:
        def graph() -> Iterator[Task]:
            yield Task(0, faults.echo, (0,))
            raise DataError("the plan is wrong")

        with pytest.raises(DataError, match="plan is wrong"):
            list(executor.run(graph()))

    def test_a_pool_keeps_its_states_apart_and_in_order(self, executor: Executor) -> None:
        pool = executor.pool(faults.Counter, [(100,), (200,), (300,)])
        try:
            assert pool.size == 3
            assert pool.broadcast("add", 1) == [101, 201, 301]
            assert pool.call(1, "add", 10) == 211
            assert pool.broadcast("add", 0) == [101, 211, 301]
        finally:
            pool.close()

    def test_a_pool_carries_arrays_exactly(self, executor: Executor) -> None:
        array = np.random.default_rng(0).standard_normal((200, 100))  # 160 kB: past what travels inside a call
        pool = executor.pool(faults.Counter, [(1,), (2,)])
        try:
            for factor, result in zip((1, 2), pool.broadcast("scaled", array), strict=True):
                np.testing.assert_array_equal(result, array * factor)
            np.testing.assert_array_equal(pool.call(1, "scaled", array[:3]), 2 * array[:3])
        finally:
            pool.close()

    def test_a_pool_sums_in_the_order_of_its_workers(self, executor: Executor) -> None:
        array = np.random.default_rng(0).standard_normal((200, 100))
        pool = executor.pool(faults.Counter, [(10**16,), (3,), (-(10**16),)])
        try:
            total = pool.total("scaled", array)
            np.testing.assert_array_equal(total, array * 1e16 + array * 3 - array * 1e16)
            total += 1  # nobody else has it
            np.testing.assert_array_equal(pool.total("scaled", array) + 1, total)
        finally:
            pool.close()

    def test_a_pools_errors_come_back_as_they_were_raised(self, executor: Executor) -> None:
        pool = executor.pool(faults.Counter, [(1,), (2,)])
        try:
            with pytest.raises(CorruptionError, match=r"tile \(3, 1\)"):
                pool.call(0, "fail", CorruptionError("tile (3, 1)"))
            with pytest.raises(DataError, match="all"):
                pool.broadcast("fail", DataError("all"))
            with pytest.raises(AttributeError, match="no_such"):
                pool.call(0, "no_such")
            with pytest.raises(IndexError, match="worker 2"):
                pool.call(2, "add", 1)
            assert pool.broadcast("add", 0) == [1, 2]  # states survive errors
        finally:
            pool.close()

    def test_a_factory_that_fails_is_reported_at_once(self, executor: Executor) -> None:
        with pytest.raises(DataError, match="no rows"):
            executor.pool(faults.broken_factory, [(DataError("no rows"),)])

    def test_a_closed_pool_says_so(self, executor: Executor) -> None:
        pool = executor.pool(faults.Counter, [(1,)])
        pool.close()
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            pool.call(0, "add", 1)
        with pytest.raises(RuntimeError, match="closed"):
            pool.broadcast("add", 1)
