"""Makes drawing independent of the environment: a notebook's back end, a user's style, or a broken matplotlib."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from ntkpipe.errors import NtkpipeError, ReportError
from ntkpipe.extras import install, is_installed

_BACK_END = "MPLBACKEND"


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return is_installed("matplotlib")


def without_figures(again: str) -> str:
    """Return the message for an environment without matplotlib.

    Args:
        again: the command that draws the figures.
    """
    return f"no figures are drawn without matplotlib: {install('report')}, then {again}"


@contextlib.contextmanager
def drawing(again: str) -> Iterator[None]:
    """Guard all imports of drawing code and all drawing. Only code inside such blocks imports matplotlib.

    Args:
        again: the command that repeats the drawing, for the message.

    Raises:
        ReportError: if anything in the block fails. The data for the figures is already stored.
    """
    try:
        with _without_back_end():
            yield
    except NtkpipeError:
        raise
    except Exception as error:  # many kinds of errors are possible: matplotlib, fonts, settings, a full disk
        text = " ".join(str(error).split()) or "no reason given"
        raise ReportError(
            f"the figures and the report could not be drawn ({type(error).__name__}: {text[:300]}). All results are "
            f"stored. Fix the cause, then draw them with: {again}"
        ) from error


@contextlib.contextmanager
def _without_back_end() -> Iterator[None]:
    """Import matplotlib without the back end that the environment names, which may be unavailable in this process.

    Figures are saved through their own canvases and need no back end.
    """
    named = os.environ.pop(_BACK_END, None) if "matplotlib" not in sys.modules else None
    try:
        yield
    finally:
        if named is not None:
            os.environ[_BACK_END] = named
            if (matplotlib := sys.modules.get("matplotlib")) is not None:
                # The caller may draw too, and gets the back end that the environment names.
                with contextlib.suppress(ValueError, AttributeError):
                    matplotlib.rcParams["backend"] = named
