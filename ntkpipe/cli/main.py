"""The `ntkpipe` command: one subcommand per job, each over a composed or a stored configuration."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ntkpipe import __version__, limits
from ntkpipe.cli import streams
from ntkpipe.cluster import supervisor
from ntkpipe.errors import ConfigError, NtkpipeError, RequeueError
from ntkpipe.tasks import stopping
from ntkpipe.tasks.environment import keep_compiled

COMPOSED = {
    "run": "all stages: images in, predictions, figures and a report out",
    "plan": "tiles, flops, bytes, memory and projected time of a run, here or on a cluster; computes nothing",
    "calibrate": "measure this machine for plans; takes a minute",
    "describe": "the kernel's layers, or its spec as a file: [image_shape=[32,32,3]] [format=table|json|yaml]",
    "phase": "signals through the layers: [format=text|json], or a figure: phase.w_std=[0.5,3,60] phase.b_std=[0,0.7,40] [path=FOLDER]",
    "gram": "the Gram tiles",
    "solve": "the solver's stage, on stored tiles",
    "predict": "predictions and metrics, from a finished solve",
    "launch": "a file for a scheduler, with this configuration: cluster/launch=slurm|ray|kuberay|cloud [submit=true]",
}
STORED = {
    "status": "what is done, what is left, rate and time remaining: run_dir=DIR or store.url=URL [run=NAME] [watch=true]",
    "export": "predictions as a file: run_dir=DIR format=parquet|csv|npz|zarr path=FILE",
    "report": "figures and one HTML page: run_dir=DIR [path=FOLDER]",
    "verify": "check every stored object, recompute random tiles and residuals, mend: run_dir=DIR [repair=false] [tiles=3] [rows=16]",
    "clean": "list Gram stores and litter, and reclaim them: store.url=DIR [delete=KEY|unfinished|solves|compiled|litter]",
}
ALONE = {
    "catapult": "two linear layers at large rates: [width=512] [rate=2.5] [f0=0.8] [lambda0=2] [target=0] [format=json]",
}
EXIT_CODES = """\
exit codes
  0  done
  1  an error of ntkpipe's own (a bug: please report it)
  2  bad configuration
  3  bad data
  4  incomplete: something needed is not computed yet
  5  held by another run
  6  a stored object is missing, damaged or made for something else
  7  numerical failure
  8  does not fit: memory, disk or device
  9  predicted, but the figures or the page could not be made: ntkpipe report run_dir=DIR makes them again
  75  told to stop (SIGTERM, SIGUSR1), or the cluster's head is lost: start the same command again
  130  interrupted; the same command goes on where it stopped"""


def usage() -> str:
    """The help text."""
    rows = "\n".join(f"  {name:<8} {text}" for name, text in {**COMPOSED, **STORED, **ALONE}.items())
    return (
        f"ntkpipe {__version__}: exact predictions of infinitely wide neural networks\n\n"
        f"usage: ntkpipe COMMAND [group=choice ...] [setting=value ...]\n\ncommands\n{rows}\n\n"
        "  ntkpipe run --help     every setting and its value\n"
        "  ntkpipe run --multirun kernel.depth=1,3,5     a sweep; jobs go to run_dir/<what varies>\n\n" + EXIT_CODES
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `ntkpipe`; None takes the process's own.

    Returns:
        The exit code, see `EXIT_CODES`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-sc" in words or "--shell-completion" in words:
        from ntkpipe.cli.compose import complete

        return complete(words)
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if command else ConfigError.exit_code
    if command == "--version":
        print(__version__)
        return 0
    with _log_on_stderr(), stopping.on_signals():
        return _run(command, rest)


def _run(command: str, rest: Sequence[str]) -> int:
    try:
        if command in COMPOSED:
            from ntkpipe.cli.compose import run_composed

            return run_composed(command, rest)
        if command in STORED:
            from ntkpipe.cli.stored import run_stored

            return run_stored(command, rest)
        if command in ALONE:
            from ntkpipe.cli.finite import run_catapult

            return run_catapult(rest)
        known = {**COMPOSED, **STORED, **ALONE}
        close = difflib.get_close_matches(command, list(known), n=1)
        if "=" in command:
            hint = f"a command comes first, such as ntkpipe run {command}"
        else:
            hint = f"did you mean ntkpipe {close[0]}?" if close else f"ntkpipe has {', '.join(known)}"
        raise ConfigError(f"no command {command!r}: {hint} (ntkpipe help)")
    except RequeueError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return error.exit_code
    except NtkpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing finished is lost, the same command goes on", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what the rooms log (dropped images, downloads, replaced workers) as lines like those of the stages."""
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
    """Writes to what `sys.stderr` is at the moment: a line of progress that is updated in place stays below what is logged."""

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
        # Everything is closed. What libraries do at exit may wait for a cluster that is gone, and change the exit code.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
