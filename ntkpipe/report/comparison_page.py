"""Writes the page of a comparison of runs, with its table and its figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from ntkpipe.report.html import FigureFile, document, figures, section, table, write_page


def write_comparison_page(
    cells: Sequence[Sequence[str]],
    texts: int,
    notes: Sequence[str],
    folder: Path,
    drawn: tuple[Path, Path, Callable[[], bytes]] | None,
) -> Path:
    """Write `compare.html` into a folder.

    Args:
        cells: rows of the table. The first row holds the headings.
        texts: number of leading columns that hold text. The other columns hold numbers.
        notes: remarks for the reader.
        folder: an existing folder.
        drawn: the figure as PNG and SVG, and a function that draws it for phones; None without matplotlib.

    Returns:
        Path of the page.
    """
    heads, *lines = cells
    # The results come first, because many settings would push them off a narrow screen.
    order = [texts - 1, *range(texts, len(heads)), *range(1, texts - 1)]
    rows = [(line[:1], [(line[k], "word" if k < texts else "") for k in order]) for line in lines]
    shown = table(heads[:1], [heads[k] for k in order], rows) + "".join(
        f'<p class="note">{escape(note)}</p>' for note in notes
    )
    parts = [
        f"<header><h1>Comparison of {len({line[0] for line in lines})} runs</h1></header>",
        section("Best first", shown),
    ]
    if drawn is not None:
        png, svg, for_phones = drawn
        caption = f"Test {heads[texts]} against training time, at the ridge of each row."
        parts.append(figures([FigureFile("compare", "Along training", caption, png, svg, for_phones)]))
    return write_page(folder / "compare.html", document("Comparison of runs", parts))
