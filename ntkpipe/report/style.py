"""Defines the style of the figures (palette, fonts, names) and saves them."""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # pages without figures import this module too, and matplotlib may not be installed
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe and Ito's palette, whose colours are distinguishable with every common colour blindness.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"
KERNEL_COLOURS = {"ntk": BLUE, "nngp": VERMILLION, "ntkgp": GREEN}
KERNEL_MARKERS = {"ntk": "o", "nngp": "s", "ntkgp": "^"}
KERNEL_NAMES = {"ntk": "NTK", "nngp": "NNGP", "ntkgp": "NTK-GP"}
LINE_STYLES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.2, 1.4)),
    (0, (6, 2, 1.2, 2)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)

PAGE_WIDTH = 7.0  # in inches, the text width of a two-column paper
PHONE_WIDTH = 3.3  # in inches, the width of a figure on a phone whose screen is 400 pixels wide
DPI = 200

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # letters look the same on machines that lack the font
    "svg.hashsalt": "ntkpipe",  # equal figures have equal bytes
}


def kernel_colour(kernel: str, position: int = 0) -> str:
    """Return the colour of a kernel, which is the same in every figure."""
    return KERNEL_COLOURS.get(kernel, PALETTE[(3 + position) % len(PALETTE)])


def tint(colour: str, position: int) -> Any:
    """Return a lighter shade for the ridges after the first, so that curves that coincide stay visible."""
    from matplotlib.colors import to_rgb

    white = (0.0, 0.38, 0.55)[min(position, 2)]
    return tuple((1 - white) * channel + white for channel in to_rgb(colour))


def kernel_name(kernel: str) -> str:
    """Return the name of a kernel in texts."""
    return KERNEL_NAMES.get(kernel, kernel)


def number(value: float) -> str:
    """Return a time, ridge or bound as short text, such as `0`, `0.001`, `1e-5`, `14230` or `∞`."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 1e4 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{'-' if m[1] == '-' else ''}{m[2]}", f"{value:.4g}")


def entry_name(kernel: str, time: float, ridge: float) -> str:
    """Return the name of an entry, such as `NTK, t = ∞, ridge 0`."""
    return f"{kernel_name(kernel)}, t = {number(time)}, ridge {number(ridge)}"


def short(text: str, length: int = 16) -> str:
    """Return a text from a data set on one line, without control characters, cut to `length` characters."""
    clean = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    clean = " ".join(clean.split()) or "?"
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"


def literal(text: Text) -> Text:
    """Make matplotlib show a text literally, because dollar signs in a class name would start a formula."""
    text.set_parse_math(False)
    return text


def log_subdivisions(low: float, high: float) -> np.ndarray:
    """Return log10 of 2, 3, ... 9 times each power of ten, between `low` and `high` (both log10)."""
    decades = np.arange(math.floor(low), math.ceil(high) + 1)
    ticks = (decades[:, None] + np.log10(np.arange(2, 10))).ravel()
    return ticks[(ticks >= low) & (ticks <= high)]


_MARGIN = 0.06  # in inches, around a figure
_for_phones: ContextVar[bool] = ContextVar("for_phones", default=False)


def is_for_phones() -> bool:
    """Return whether a figure is being drawn for phones."""
    return _for_phones.get()


def width_of(inches: float) -> float:
    """Return the width of a figure in inches. While a figure is drawn for phones, it is at most a phone's width."""
    return min(inches, PHONE_WIDTH) if is_for_phones() else inches


def columns_of_legend(entries: int, most: int) -> int:
    """Return the number of columns of a legend below a figure: at most `most`, or two on a phone."""
    return min(entries, 2 if is_for_phones() else most)


def row_of_panels(
    count: int, height: float, *, width: float = PAGE_WIDTH, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side, or below each other while it is drawn for phones.

    Args:
        count: number of panels.
        height: height of a panel in inches.
        width: width of the figure in inches.
        ratios: ratios of the panels' widths; None makes them equal.

    Returns:
        The figure and its panels.
    """
    from matplotlib.figure import Figure

    if is_for_phones():
        figure = Figure(figsize=(width_of(width), count * min(height, 2.7)), layout="constrained")
        return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, width_ratios=ratios)[0])


def render(draw: Callable[[], Figure], folder: Path, name: str) -> tuple[Path, Path]:
    """Draw a figure in the house style and save it as `name.png` (200 dpi) and `name.svg`.

    Returns:
        Paths of the PNG and of the SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    _save(draw, png=png, svg=svg)
    return png, svg


def render_for_phones(draw: Callable[[], Figure]) -> bytes:
    """Draw the figure as an SVG as narrow as a phone, in which `row_of_panels` stacks the panels."""
    held, before = io.BytesIO(), _for_phones.set(True)
    try:
        _save(draw, svg=held)
    finally:
        _for_phones.reset(before)
    return held.getvalue()


def _save(draw: Callable[[], Figure], *, svg: Path | io.BytesIO, png: Path | None = None) -> None:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's matplotlibrc is ignored, because it may require TeX or any style
        matplotlib.rcParams.update(STYLE)
        # Class names may use letters that the font lacks. Boxes in a figure must not fail a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = draw()
        figure.set_dpi(DPI)
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)  # once for both files, and without drawing the figure for it
        figure.set_layout_engine(None)  # the text "none" would draw every file twice
        # The tight box keeps long class names from being cut off.
        box = figure.get_tightbbox().padded(_MARGIN)
        options: dict[str, Any] = {"dpi": DPI, "bbox_inches": box}
        if png is not None:
            figure.savefig(png, metadata={"Software": None}, **options)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, **options)
