"""Listeners that show events as lines of text, or as one line that is updated in place in a terminal or a notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from ntkpipe.events.event import PROGRESS, Emit, Event, Kind, Paced, silent

Echo = Callable[[str], None]

_BAR = 20  # characters


class Lines:
    """A listener that prints events with a text as lines `stage text`. It does not repeat equal progress.

    Args:
        echo: receives the lines.
    """

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._last: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Print an event."""
        if event.kind is Kind.STAGE_BEGUN:
            self._last.pop(event.stage, None)
        if event.kind is Kind.STAGE_STOPPED or not event.text:
            return  # the error is printed elsewhere
        if event.kind in PROGRESS:
            if self._last.get(event.stage) == event.text:
                return
            self._last[event.stage] = event.text
        self._echo(line_of(event))


def line_of(event: Event) -> str:
    """An event as one line of text."""
    head = "warning" if event.kind is Kind.WARNING else event.stage
    return f"{head:<8} {event.text}" if head else event.text


def plain_lines(echo: Echo) -> Emit:
    """A listener that prints plain lines for a pipe or a log file, with progress every few seconds."""
    return Paced(Lines(echo))


class Surface(Protocol):
    """A display of one line that can be updated in place."""

    def show(self, stage: str, text: str, done: float | None, total: float | None) -> None:
        """Replace the shown progress; `done` and `total` are None if the amount of work is unknown."""
        ...

    def close(self) -> None:
        """Remove the line, if there is one."""
        ...


class LiveLine:
    """A listener that shows progress as one line, updated in place, with a bar if the amount of work is known.

    Other events are plain lines above it. The line is removed when its stage ends.

    Args:
        surface: shows the line.
        echo: receives the plain lines.
        every: seconds between two updates.
    """

    def __init__(self, surface: Surface, echo: Echo, every: float = 0.2) -> None:
        self._surface, self._lines = surface, Lines(echo)
        self._paced = Paced(self._show, every)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._paced(event)

    def _show(self, event: Event) -> None:
        done, total = event.facts.get("done"), event.facts.get("total")
        known = isinstance(done, (int, float)) and isinstance(total, (int, float)) and total > 0
        if event.kind in PROGRESS and (known or not event.prompt):
            self._surface.show(event.stage, event.text, done if known else None, total if known else None)
            return
        if event.kind in (Kind.STAGE_BEGUN, Kind.STAGE_DONE, Kind.STAGE_STOPPED, Kind.RUN_DONE):
            self._surface.close()
        self._lines(event)


class TerminalLine:
    """A `Surface` in the last line of a terminal. Lines that are printed to `sys.stderr` appear above it.

    Args:
        file: the terminal.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._bar: Any = None
        self._task: Any = None

    def show(self, stage: str, text: str, done: float | None, total: float | None) -> None:
        """See `Surface.show`."""
        if self._bar is None:
            self._bar = _rich_bar(self._file)
            self._bar.start()
            self._task = self._bar.add_task("", total=None, stage=stage, text=text)
        self._bar.update(self._task, stage=stage, text=text, total=total, completed=done or 0)
        self._bar.refresh()

    def close(self) -> None:
        """See `Surface.close`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rich_bar(file: TextIO) -> Any:
    """The progress bar of rich, with our columns."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Stage(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.fields['stage']:<8}", no_wrap=True)

    class Said(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["text"], overflow="ellipsis", no_wrap=True)

    class Bar(BarColumn):
        def render(self, task: Task) -> Any:
            return Text("") if task.total is None else super().render(task)

    return Progress(
        Stage(),
        Bar(bar_width=_BAR),
        Said(table_column=Column(ratio=1, no_wrap=True)),
        console=Console(file=file, force_terminal=True),
        auto_refresh=False,  # no extra thread in a process that forks
        transient=True,
        expand=True,
        redirect_stdout=False,  # standard output may be a file
    )


class NotebookLine:
    """A `Surface` in one output of a notebook cell: printed lines, and below them a line that is updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._told: list[str] = []

    def echo(self, line: str) -> None:
        """Add a permanent line."""
        self._told.append(line)
        self._put()

    def show(self, stage: str, text: str, done: float | None, total: float | None) -> None:
        """See `Surface.show`."""
        bar = ""
        if done is not None and total:
            full = round(_BAR * min(done / total, 1.0))
            bar = "█" * full + "░" * (_BAR - full) + " "
        self._put(f"{stage:<8} {bar}{text}")

    def close(self) -> None:
        """See `Surface.close`."""
        if self._handle is not None and self._told:
            self._put()

    def _put(self, *line: str) -> None:
        text = "\n".join([*self._told, *line])
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        if self._handle is None:
            self._handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)


def for_people(echo: Echo, terminal: TextIO | None = None) -> Emit:
    """The listener for this process: a line that is updated in place in a terminal, otherwise plain lines.

    Args:
        echo: receives plain lines.
        terminal: the stream that the user reads; None is the standard error.
    """
    surface = _terminal(sys.stderr if terminal is None else terminal)
    return plain_lines(echo) if surface is None else LiveLine(surface, echo)


Progress = bool | Emit | None
"""The progress of a call from Python.

False shows nothing. True prints lines. None shows a line that is updated in place, but only in a terminal or a notebook. A
function receives every `Event`."""


def listener_of(progress: Progress) -> Emit:
    """The listener of a call from Python."""
    if callable(progress):
        return progress
    if progress is False:
        return silent
    if _is_notebook():
        cell = NotebookLine()
        return LiveLine(cell, cell.echo)
    if (surface := _terminal(sys.stderr)) is not None:
        return LiveLine(surface, _to_stderr)
    return plain_lines(_to_stderr) if progress else silent


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminal(terminal: TextIO) -> Surface | None:
    """The display for updates in place; None if there is none."""
    return TerminalLine(terminal) if terminal.isatty() and os.environ.get("TERM", "dumb") != "dumb" else None


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
