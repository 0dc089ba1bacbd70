"""A command in a child of its own process: it ends as the child does, and says what the child could not say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing waits for a driver"),
]

ROOT = Path(__file__).resolve().parents[2]
BEFORE = """
import os, signal, sys, time
from ntkpipe.cluster import supervisor
from ntkpipe.tasks import stopping
print("before", end=" ")
supervisor.allow_fork()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has a job in the background ignore it
with stopping.on_signals():
    supervisor.fork_driver()
    supervisor.fork_driver()
"""


def start(*lines: str) -> subprocess.Popen[str]:
    """A command that divides and then does this."""
    return subprocess.Popen(
        [sys.executable, "-c", BEFORE + "".join(f"    {line}\n" for line in lines)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(*lines: str) -> tuple[int, str, str]:
    process = start(*lines)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def there() -> Iterator[str]:
    """Somebody answers here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gone() -> str:
    """Nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("code", [0, 1, 8, 75])
def test_codes_and_words_are_those_of_the_child(code: int, there: str) -> None:
    assert ended(f"supervisor.note('{there}')", "print('said')", f"sys.exit({code})") == (code, "before said\n", "")


@pytest.mark.parametrize("end", ["os._exit(1)", "os.abort()"])
def test_an_end_without_a_word_asks_for_another_start_if_the_cluster_is_gone(end: str, there: str, gone: str) -> None:
    code, _, err = ended(f"supervisor.note('{there}', '{gone}')", end)
    assert code == 75
    assert err.startswith("stopped: ")
    assert gone in err
    assert there not in err
    assert "start" in err.lower()


def test_an_end_without_a_word_is_what_it_is_otherwise(there: str, gone: str) -> None:
    assert ended("os._exit(1)")[0] == 1  # nothing was joined
    assert ended(f"supervisor.note('{there}')", "os.abort()")[0] == -signal.SIGABRT
    code, _, err = ended(f"supervisor.note('{gone}')", "sys.exit(8)")  # it has had its say
    assert (code, err) == (8, "")
    assert ended(f"supervisor.note('{gone}')", "os.kill(os.getpid(), signal.SIGKILL)")[0] == -signal.SIGKILL


def waiting(process: subprocess.Popen[str]) -> psutil.Process:
    """The child, once it waits."""
    assert process.stdout is not None
    assert process.stdout.readline() == "before ready\n"
    (child,) = psutil.Process(process.pid).children()
    return child


FOREVER = ("print('ready', flush=True)", "for _ in range(1000): stopping.check() or time.sleep(0.1)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_the_child(number: signal.Signals) -> None:
    process = start(*FOREVER)
    waiting(process)
    process.send_signal(number)
    _, err = process.communicate()
    assert ("KeyboardInterrupt" if number == signal.SIGINT else f"this run received {number.name}") in err


def test_the_child_does_not_outlive_the_process_that_waits() -> None:
    process = start(*FOREVER)
    child = waiting(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # the child holds the other end of its output
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_nothing_divides_but_a_command_and_that_once() -> None:
    code = "import os; from ntkpipe.cluster import supervisor; pid = os.getpid(); supervisor.fork_driver(); print(pid == os.getpid())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    process = start(*FOREVER)
    assert not waiting(process).children()
    process.terminate()
    process.communicate()
