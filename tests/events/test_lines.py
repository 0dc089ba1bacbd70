"""Events as lines: plain, in a terminal, in a notebook."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import types

from ntkpipe.events import event as events
from ntkpipe.events import lines
from ntkpipe.events.event import Event, Kind, Paced, teller, to_all


def test_progress_is_passed_on_every_few_seconds_and_all_else_at_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: clock[0])
    seen: list[Event] = []
    emit = Paced(seen.append, every=2.0)
    tell = teller(emit, "solve")
    for second in range(6):
        clock[0] = float(second)
        tell(f"step {second}", step=second)
    assert [one.text for one in seen] == ["step 0", "step 2", "step 4"]
    assert [one.elapsed for one in seen] == [0.0, 2.0, 4.0]
    tell("now", force=True)
    emit(Event(Kind.WARNING, "", "careful"))
    emit(Event(Kind.STAGE_BEGUN, "solve"))
    tell("again")
    assert [one.text for one in seen[3:]] == ["now", "careful", "", "again"]


def test_several_listeners_are_told_in_their_order():
    told: list[str] = []
    to_all(lambda e: told.append(f"a {e.text}"), lambda e: told.append(f"b {e.text}"))(Event(Kind.NOTE, text="x"))
    assert told == ["a x", "b x"]


def test_lines_have_the_stage_in_front_and_are_not_repeated():
    told: list[str] = []
    show = lines.Lines(told.append)
    show(Event(Kind.STAGE_BEGUN, "gram"))
    for text in ("1 of 2", "1 of 2", "2 of 2"):
        show(Event(Kind.TILES_DONE, "gram", text))
    show(Event(Kind.WARNING, "", "odd"))
    show(Event(Kind.STAGE_STOPPED, "gram", "told elsewhere"))
    show(Event(Kind.NOTE, "", "raw"))
    assert told == ["gram     1 of 2", "gram     2 of 2", "warning  odd", "raw"]


def test_a_pipe_gets_plain_lines(monkeypatch):
    told: list[str] = []
    monkeypatch.setenv("TERM", "xterm")
    show = lines.for_people(told.append, io.StringIO())
    show(Event(Kind.TILES_DONE, "gram", "1 of 2", {"done": 1, "total": 2}))
    assert told == ["gram     1 of 2"]


_IN_A_TERMINAL = """
import sys
from ntkpipe.events.event import Event, Kind
from ntkpipe.events.lines import for_people
show = for_people(lambda line: print(line, file=sys.stderr))
show(Event(Kind.STAGE_BEGUN, "gram"))
import time
for k in range(3):
    show(Event(Kind.TILES_DONE, "gram", f"{k} of 3 tiles", {"done": k, "total": 3}))
    if k == 1:
        show(Event(Kind.WARNING, "", "a plain line"))
    time.sleep(0.25)
show(Event(Kind.STAGE_DONE, "gram"))
show(Event(Kind.NOTE, "gram", "3 tiles computed"))
print("result")
"""


def test_a_terminal_gets_one_line_that_is_updated_in_place():
    # The standard output is a pipe: nothing of the progress may go there.
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_TERMINAL], stderr=follower, stdout=subprocess.PIPE, env=env, text=True
    )
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while more := os.read(leader, 4096):
            seen += more
    os.close(leader)
    assert process.stdout is not None
    assert process.stdout.read() == "result\n"
    process.stdout.close()
    assert process.wait() == 0
    shown = _screen(seen.decode())
    assert shown == ["warning  a plain line", "gram     3 tiles computed"]
    for k in range(3):
        assert f"{k} of 3 tiles" in seen.decode()


def _screen(text: str) -> list[str]:
    """What a terminal shows in the end: carriage returns, erased lines and moves upwards are followed."""
    rows, row, col = [""], 0, 0
    k = 0
    while k < len(text):
        if text[k] == "\x1b":
            end = k + 2
            while not text[end].isalpha():
                end += 1
            number, what = text[k + 2 : end], text[end]
            if what == "A":
                row -= int(number or 1)
            elif what == "K":
                rows[row] = "" if number == "2" else rows[row][:col]
            k = end + 1
            continue
        if text[k] == "\r":
            col = 0
        elif text[k] == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        else:
            rows[row] = rows[row][:col].ljust(col) + text[k] + rows[row][col + 1 :]
            col += 1
        k += 1
    return [line.rstrip() for line in rows if line.strip()]


def test_a_notebook_gets_a_bar_of_text(monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, data, raw):
            assert raw
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        assert raw
        assert display_id
        shown.append(data["text/plain"])
        return Handle()

    package = types.ModuleType("IPython")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    show = lines.listener_of(None)
    assert isinstance(show, lines.LiveLine)
    show._paced._every = 0.0
    show(Event(Kind.TILES_DONE, "gram", "1 of 2", {"done": 1, "total": 2}))
    show(Event(Kind.PROGRESS, "gram", "no amount"))
    show(Event(Kind.TILES_DONE, "gram", "2 of 2", {"done": 2, "total": 2}, prompt=True))
    show(Event(Kind.STAGE_DONE, "gram", "2 tiles"))
    show(Event(Kind.PROGRESS, "solve", "a step"))
    half, whole = "█" * 10, "█" * 20
    assert shown[:3] == [f"gram     {half}{'░' * 10} 1 of 2", "gram     no amount", f"gram     {whole} 2 of 2"]
    assert shown[-2:] == ["gram     2 tiles", "gram     2 tiles\nsolve    a step"]


def test_a_terminal_that_cannot_move_gets_plain_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert not isinstance(lines.for_people(print, Terminal()), lines.LiveLine)
