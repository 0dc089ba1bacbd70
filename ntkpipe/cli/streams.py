"""Standard streams whose failure never ends a computation."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_unread: set[int] = set()


class _Forgiving(io.FileIO):
    """A file descriptor that may fail (closed pipe, lost terminal, full disk) and then drops the text."""

    def write(self, data: Any) -> int | None:
        """Write all of `data`, or drop it if that fails."""
        if self.fileno() not in _unread:
            try:
                return super().write(data)
            except OSError:
                _unread.add(self.fileno())
        return memoryview(data).nbytes


def settle() -> None:
    """Make writes to the standard streams of this process never fail.

    Use this only in a process that runs a single command. A closed stream is replaced by an empty one, so that files
    that are opened later do not take its descriptor. A character that the stream's encoding lacks is escaped.
    """
    for number, name in enumerate(_NAMES):
        _occupy(number)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin":
            setattr(sys, name, _forgiving(stream))


def unread() -> bool:
    """Return whether the reader of the standard output has closed it."""
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
    except (OSError, ValueError, AttributeError):  # an embedding program has replaced the stream
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
