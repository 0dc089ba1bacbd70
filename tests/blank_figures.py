"""Figures that are composed but not drawn: nine tenths of a small run's time is matplotlib's, whose pictures have tests of their own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

_DRAWING = {name: getattr(Figure, name) for name in ("savefig", "draw_without_rendering", "get_tightbbox")}


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Within it, this process saves every figure as one white point, PNG or SVG; what leads to it is the product's own."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(png, "PNG")
    blanks = {".png": png.getvalue(), ".svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'}

    def save(figure: Figure, path: Path | io.BytesIO, **options: Any) -> None:
        if isinstance(path, io.BytesIO):
            path.write(blanks[f".{options['format']}"])
        else:
            path.write_bytes(blanks[path.suffix])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        # Layout is half of drawing.
        patch.setattr(Figure, "draw_without_rendering", lambda figure: None)
        patch.setattr(Figure, "get_tightbbox", lambda figure: figure.bbox_inches)
        yield


@contextlib.contextmanager
def drawn_figures() -> Iterator[None]:
    """Within it, they are drawn again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in _DRAWING.items():
            patch.setattr(Figure, name, method)
        yield


@pytest.fixture(scope="module", autouse=True)
def blank() -> Iterator[None]:
    """For rooms that import it: runs in this process draw nothing, unless a test asks for `drawn`."""
    with blank_figures():
        yield


@pytest.fixture
def drawn() -> Iterator[None]:
    """Figures are drawn in this test."""
    with drawn_figures():
        yield
