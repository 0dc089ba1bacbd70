"""Appearance of the figures: palette, fonts, names, and how a figure is saved."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

# Okabe and Ito's palette, distinguishable with every common colour blindness.
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

PAGE_WIDTH = 7.0  # inches: the text width of a two-column paper
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
    "svg.fonttype": "path",  # the same letters on machines that lack the font
    "svg.hashsalt": "ntkpipe",  # the same bytes for the same figure
}


def kernel_colour(kernel: str, position: int = 0) -> str:
    """A kernel's colour, the same in every figure."""
    return KERNEL_COLOURS.get(kernel, PALETTE[(3 + position) % len(PALETTE)])


def tint(colour: str, position: int) -> Any:
    """A lighter shade for the ridges after the first: curves that coincide are then seen through one another."""
    white = (0.0, 0.38, 0.55)[min(position, 2)]
    return tuple((1 - white) * channel + white for channel in to_rgb(colour))


def kernel_name(kernel: str) -> str:
    """How a kernel is written in text."""
    return KERNEL_NAMES.get(kernel, kernel)


def number(value: float) -> str:
    """A time, ridge or bound as short text: `0`, `0.001`, `1e-5`, `14230`, `∞`."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 1e4 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{'-' if m[1] == '-' else ''}{m[2]}", f"{value:.4g}")


def entry_name(kernel: str, time: float, ridge: float) -> str:
    """Which prediction is meant, such as `NTK, t = ∞, ridge 0`."""
    return f"{kernel_name(kernel)}, t = {number(time)}, ridge {number(ridge)}"


def short(text: str, length: int = 16) -> str:
    """Text from a data set on one line, without control characters, cut to `length`."""
    clean = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    clean = " ".join(clean.split()) or "?"
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"


def literal(text: Text) -> Text:
    """Show a text as it is: a class name may hold dollar signs, which would start a formula."""
    text.set_parse_math(False)
    return text


def log_subdivisions(low: float, high: float) -> np.ndarray:
    """log10 of 2, 3, ... 9 times each power of ten, between `low` and `high` (both log10)."""
    decades = np.arange(math.floor(low), math.ceil(high) + 1)
    ticks = (decades[:, None] + np.log10(np.arange(2, 10))).ravel()
    return ticks[(ticks >= low) & (ticks <= high)]


_MARGIN = 0.06  # inches around a figure


def render(draw: Callable[[], Figure], folder: Path, name: str) -> tuple[Path, Path]:
    """Draw a figure in the house style and save it as `name.png` (200 dpi) and `name.svg`.

    Returns:
        Paths of the PNG and of the SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # of a matplotlibrc nothing counts: it may ask for TeX, or for any style
        matplotlib.rcParams.update(STYLE)
        # Class names may use letters that the font lacks: boxes in a figure are no reason to fail a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = draw()
        figure.set_dpi(DPI)
        figure.draw_without_rendering()  # lays it out, once for both files
        figure.set_layout_engine(None)  # "none" would have every file drawn twice
        # Tight: no long class name is cut off, whatever the layout made of it.
        box = figure.get_tightbbox().padded(_MARGIN)
        options: dict[str, Any] = {"dpi": DPI, "bbox_inches": box}
        figure.savefig(png, metadata={"Software": None}, **options)
        figure.savefig(svg, metadata={"Date": None, "Creator": None}, **options)
    return png, svg
