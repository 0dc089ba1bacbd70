"""Drawing, whatever surrounds it: a notebook's back end, somebody's style, a matplotlib that does not work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from ntkpipe.errors import NtkpipeError, ReportError

_BACK_END = "MPLBACKEND"


@contextlib.contextmanager
def drawing(again: str) -> Iterator[None]:
    """Import what draws, and draw, in the block: nothing else of this package imports matplotlib.

    Args:
        again: the command that draws once more, for the message.

    Raises:
        ReportError: for whatever goes wrong in the block. What is drawn was finished and stored before.
    """
    try:
        with _without_back_end():
            yield
    except NtkpipeError:
        raise
    except Exception as error:  # of matplotlib, its fonts, its settings, a full disk: of many kinds
        text = " ".join(str(error).split()) or "no reason given"
        raise ReportError(
            f"the figures and the page could not be made ({type(error).__name__}: {text[:300]}). Everything that they show is "
            f"finished and stored. Mend that, then draw again: {again}"
        ) from error


@contextlib.contextmanager
def _without_back_end() -> Iterator[None]:
    """Let matplotlib be imported without the back end that the environment names, of which this process may know nothing.

    Figures are saved through canvases of their own, so that no back end is needed.
    """
    named = os.environ.pop(_BACK_END, None) if "matplotlib" not in sys.modules else None
    try:
        yield
    finally:
        if named is not None:
            os.environ[_BACK_END] = named
            if (matplotlib := sys.modules.get("matplotlib")) is not None:
                # As if the caller had imported it, who may draw too.
                with contextlib.suppress(ValueError, AttributeError):
                    matplotlib.rcParams["backend"] = named
