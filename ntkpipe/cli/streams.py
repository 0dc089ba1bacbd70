"""The standard streams of a command: whatever becomes of them, they end no computation."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_unread: set[int] = set()


class _Forgiving(io.FileIO):
    """A descriptor whose reader may go: a closed pipe, a terminal that is gone, a full disk. What is written then is lost."""

    def write(self, data: Any) -> int | None:
        """Write, or lose, all of `data`."""
        if self.fileno() not in _unread:
            try:
                return super().write(data)
            except OSError:
                _unread.add(self.fileno())
        return memoryview(data).nbytes


def settle() -> None:
    """Make the standard streams of this process such that writing to them never fails. For a process that is a command alone.

    A stream that was closed reads and writes nothing: files that are opened later must not take its place. A character that the
    stream's encoding lacks is written as an escape.
    """
    for number, name in enumerate(_NAMES):
        _occupy(number)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin":
            setattr(sys, name, _forgiving(stream))


def unread() -> bool:
    """Whether who read the standard output does so no more."""
    return 1 in _unread


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)


def _forgiving(stream: Any) -> Any:
    try:
        stream.flush()
        raw = _Forgiving(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # of an embedding program
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
