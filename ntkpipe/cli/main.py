"""The `ntkpipe` command: one subcommand per job, each over a composed or a stored configuration."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ntkpipe import __version__, limits
from ntkpipe.cli import streams
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cluster import supervisor
from ntkpipe.errors import ConfigError, NtkpipeError, RequeueError
from ntkpipe.tasks import stopping
from ntkpipe.tasks.environment import keep_compiled

STORED = ("status", "export", "report", "compare", "verify", "clean")
"""Commands on an existing run or store."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `ntkpipe`; None takes those of this process.

    Returns:
        The exit code; see `ntkpipe.cli.help.EXIT_CODES`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--complete"]:
        from ntkpipe.cli.completing import complete

        return complete(words[1:])
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command == "--version":
        print(__version__)
        return 0
    if command == "completion":
        from ntkpipe.cli.completing import show_script

        return _reported(lambda: show_script(rest))
    if command in ("", "-h", "--help", "help") or (command in COMMANDS and {"-h", "--help"} & set(rest)):
        from ntkpipe.cli.help import show_help

        code = _reported(lambda: show_help(rest if command in ("", "-h", "--help", "help") else [command]))
        return code if command else ConfigError.exit_code
    with _log_on_stderr(), stopping.on_signals():
        return _reported(lambda: _run(command, rest))


def _run(command: str, rest: Sequence[str]) -> int:
    if command in STORED:
        from ntkpipe.cli.stored import run_stored

        return run_stored(command, rest)
    if command == "spectrum":
        from ntkpipe.cli.spectrum import run_spectrum

        return run_spectrum(rest)
    if command == "catapult":
        from ntkpipe.cli.finite import run_catapult

        return run_catapult(rest)
    if command == "predict" and any(word.startswith("data.new=") for word in rest):
        from ntkpipe.cli.new_points import predict_new_points

        return predict_new_points(rest)
    if command in COMMANDS:
        from ntkpipe.cli.compose import run_composed

        return run_composed(command, rest)
    close = difflib.get_close_matches(command, list(COMMANDS), n=1)
    if "=" in command:
        hint = f"give a command first, such as ntkpipe run {command}"
    else:
        hint = f"did you mean ntkpipe {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
    raise ConfigError(f"no command {command!r}: {hint} (ntkpipe help)")


def _reported(work: Callable[[], int]) -> int:
    """Run some work, print its errors as one line, and return the exit code."""
    try:
        return work()
    except RequeueError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return error.exit_code
    except NtkpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; repeat the same command to continue", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Context manager that prints log messages, such as dropped points, as lines like those of the stages."""
    handler = _ToStderr()
    handler.setFormatter(_Lines())
    logger = logging.getLogger("ntkpipe")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`, so that log messages appear above a progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower():<8} {record.getMessage()}"


def entry() -> None:
    """Entry point of the console script."""
    streams.settle()
    limits.hold_threads()
    supervisor.allow_fork()
    keep_compiled()
    code = main()
    sys.stdout.flush()
    if code == RequeueError.exit_code:
        # Everything is closed. Exit handlers of libraries could wait for a lost cluster or change the exit code.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
