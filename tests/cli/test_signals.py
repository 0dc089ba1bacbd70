"""A run that is told to stop ends soon, with a code that asks for another start, and goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntkpipe.errors import RequeueError
from ntkpipe.tasks import faults, stopping
from ntkpipe.tasks.graph import Task
from ntkpipe.tasks.serial import SerialExecutor

ROOT = Path(__file__).resolve().parents[2]
# 2,016 tiles: some ten seconds.
GRAM = ("data=digits", "data.train_size=1000", "data.test_size=50", "grid.edge=16", "cluster.workers=1")


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ntkpipe", "gram", *GRAM, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "cluster"),
    [
        (signal.SIGTERM, "serial"),
        pytest.param(
            signal.SIGTERM, "local", marks=[pytest.mark.ray, pytest.mark.slow]
        ),  # Ray sets a handler of its own for this one
        pytest.param(signal.SIGUSR1, "local", marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
)
def test_a_signal_stops_a_run_which_goes_on_from_there(tmp_path: Path, number: signal.Signals, cluster: str) -> None:
    run = start(tmp_path, f"cluster={cluster}")
    while len(receipts := list(tmp_path.glob("store/gram/*/receipts/train/*"))) < 30:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(number)
    _, err = run.communicate()
    assert run.returncode == RequeueError.exit_code == 75, err
    assert f"this run received {number.name}" in err  # which a process that is ended after its grace does not say
    assert len(receipts) <= len(list(tmp_path.glob("store/gram/*/receipts/train/*"))) < 2016


def test_a_run_without_safe_points_ends_all_the_same(tmp_path: Path) -> None:
    code = (
        "import time; from ntkpipe.tasks import stopping; stopping.GRACE_SECONDS = 0.2\n"
        "with stopping.on_signals():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75


def test_safe_points_lie_between_tasks_and_between_calls() -> None:
    executor = SerialExecutor()
    pool = executor.pool(faults.Counter, [(1,)])
    results = executor.run(Task(k, faults.echo, (k,)) for k in range(3))
    assert next(results).value == 0
    stopping.ask("a test")
    try:
        with pytest.raises(RequeueError, match="a test"):
            next(results)
        with pytest.raises(RequeueError):
            pool.call(0, "add", 1)
    finally:
        stopping.forget()
    assert pool.call(0, "add", 0) == 1


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping.on_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with stopping.keeping_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_another_handler_is_there_stops_the_run_all_the_same() -> None:
    def leave() -> None:  # as Ray's handler does, from anywhere in its start
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with stopping.on_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with pytest.raises(RequeueError, match="SIGTERM"), stopping.keeping_handlers():
            leave()
        assert signal.getsignal(signal.SIGTERM) is ours
    with pytest.raises(SystemExit), stopping.keeping_handlers():  # nobody has asked for handlers: Ray's way
        leave()
