"""Building blocks of HTML pages. A page has one script and no outside resources, and every text is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ntkpipe.report import chart
from ntkpipe.report.style import DPI, GREY, INK, PALE
from ntkpipe.storage.replace import replace_text

# Width of a figure in pixels on a phone whose screen is 400 pixels wide.
ON_PHONES = 340

# Largest SVG in bytes that a page shows. Larger ones, such as a confusion matrix of 100 classes, exceed the PNG's size.
LARGEST_SVG = 400_000

# Style of the page's figures in dark mode. The files beside the page stay unchanged, so that papers can use them.
_INK_IN_THE_DARK = {INK: "#e8e8e8", GREY: "#a6a6a6", PALE: "#3a3d41"}
# Open markers are filled with the background. Texts on dark cells stay white.
_DARK = (
    "@media screen and (prefers-color-scheme: dark) { #figure_1 > [id^=patch] > path, [id^=axes] > [id^=patch]:first-of-type > path"
    " { fill: #1f2226 !important }"
    + "".join(
        f' [style*="{what}: {light.lower()}"] {{ {what}: {dark} !important }}'
        for light, dark in _INK_IN_THE_DARK.items()
        for what in ("fill", "stroke")
    )
    + ' [id^=line2d] [style*="fill: #ffffff"] { fill: #1f2226 !important } }'
)

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --rule: #dcdcdc; --page: #fff; --card: #f6f7f8; --figure: #fff;
  --accent: #0072b2; --warn: #fff3e6; --warn-rule: #d55e00; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a6a6a6; --rule: #3a3d41; --page: #16181b;
  --card: #1f2226; --figure: #1f2226; --accent: #56b4e9; --warn: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 96rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
p.lead, figcaption, .note { color: var(--soft); } figcaption, .note { font-size: .9rem; max-width: 46rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.3rem 0; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem 1rem; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .tiles span { color: var(--soft);
  font-size: .85rem; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-rule); padding: .5rem 1rem; border-radius: 4px; }
.warnings ul { margin: .2rem 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; scrollbar-width: thin; max-width: 100%; background:
  linear-gradient(to right, var(--page) 30%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 30%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--rule), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--rule), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th[scope=row], td.text, td.word, th.text { text-align: left; } td.text { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
td.best { font-weight: 700; color: var(--accent); }
td.chosen { text-decoration: underline; text-underline-offset: .2em; }
.side { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; align-items: flex-start; }
.side > * { max-width: 100%; } .side > section { flex: 1 1 24rem; }
figure { margin: 0 0 1.8rem; }
.side > figure[style] { max-width: min(100%, var(--width)); } figure h3 { font-size: 1rem; margin: 0 0 .4rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: 6px; padding: .5rem; } figure img.drawn { background: var(--figure); }
@media screen and (min-width: 84rem) and (max-width: 92rem) {
  .side > figure[style] { max-width: min(40rem, var(--width)); } }
@media screen and (max-width: 40rem) { figure .scroll > img:not(.drawn) { max-width: none; } }
figcaption { margin-top: .4rem; }
details { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .4rem .9rem;
  margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; } code { font-size: .85rem; overflow-wrap: anywhere; }
.slider { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .8rem; font-weight: 600; }
.slider[hidden] { display: none; } .slider input { flex: 1 1 14rem; max-width: 34rem; accent-color: var(--accent); height: 1.8rem; }
.times .side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.times figure { max-width: 34rem; } .told { min-height: 1.6rem; margin: .3rem 0 .6rem; }
.told p { margin: 0; font-variant-numeric: tabular-nums; } [data-frame][hidden] { display: none; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #ccc; --page: #fff; --card: #fff; --figure: #fff;
  --accent: #0072b2; --warn: #fff; } body { max-width: none; padding: 0; font-size: 12px; }
  details::details-content { content-visibility: visible; block-size: auto; } details > * { display: block; }
  .slider { display: none; } [data-frame] { display: none !important; } [data-last] { display: inline !important; }
  .scroll { overflow: visible; background: none; } th, td { padding: .15rem .4rem; white-space: normal; }
  figure, tr { break-inside: avoid; } h2, h3, caption, thead, summary { break-after: avoid; }
  tbody tr:nth-child(-n + 3) { break-before: avoid; }
  .side > figure[style] { max-width: 85%; }
  .times .side { grid-template-columns: repeat(3, 1fr); gap: 1rem; } .settings { columns: 2; column-gap: 2rem; }
  .settings table { width: 100%; table-layout: fixed; font-size: 10px; } .settings thead th:first-child { width: 60%; }
  .settings th, td.text { min-width: 0; overflow-wrap: anywhere; } }
"""


@dataclass(frozen=True)
class FigureFile:
    """A saved figure: its files, a heading, and a caption, which is also the alternative text of the picture."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    for_phones: Callable[[], bytes] | None = None  # draws it as SVG, narrower, with panels below each other


# The script of the slider. The page contains all times, and the script shows one and hides the others. In print, the
# style sheet shows the last time.
SCRIPT = """
for (const slider of document.querySelectorAll('.slider input')) {
  const part = slider.closest('.times'), texts = slider.dataset.texts.split('|');
  const show = () => {
    for (const one of part.querySelectorAll('[data-frame]')) one.toggleAttribute('hidden', one.dataset.frame !== slider.value);
    slider.setAttribute('aria-valuetext', texts[slider.value]);
  };
  slider.addEventListener('input', show);
  slider.parentElement.hidden = false;
}
"""


def document(title: str, body: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: title as plain text.
        body: parts of the body as HTML, in which texts are escaped.
    """
    # The policy forbids other scripts and outside resources, in case a text is not escaped.
    ours = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{ours}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{chart.CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page atomically and return its path."""
    replace_text(path, text)
    return path


def table(
    heads: Sequence[str],
    columns: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Sequence[tuple[str, str]]]],
    title: str = "",
) -> str:
    """Return a table as HTML. Each row has its heads and its cells (text, CSS class). Every text is escaped."""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f'<th scope="col" class="text">{escape(text)}</th>' for text in heads)
    rows, body = list(rows), []
    for j, text in enumerate(columns):
        worded = bool(rows) and all(cells[j][1] in ("text", "word") for _, cells in rows)
        head += (
            f'<th scope="col" class="text">{escape(text)}</th>' if worded else f'<th scope="col">{escape(text)}</th>'
        )
    for row_heads, cells in rows:
        line = "".join(f'<th scope="row">{escape(text)}</th>' for text in row_heads)
        for text, kind in cells:
            line += f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"
        body.append(f"<tr>{line}</tr>")
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def section(title: str, content: str) -> str:
    """Return a section of the page with a heading; empty if it has no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def figures(shown: Sequence[FigureFile]) -> str:
    """Return figures side by side. They are inlined as images, so that they cannot run code or clash."""
    return f'<div class="side">{"".join(_figure(figure) for figure in shown)}</div>' if shown else ""


def _figure(figure: FigureFile) -> str:
    png = figure.png.read_bytes()
    # Bytes 16 to 20 of a PNG are its width. Figures are shown at their printed size, so that all letters have the same
    # size.
    width = int.from_bytes(png[16:20], "big") * 96 // DPI
    data, kind, drawn = _with_a_dark_look(figure.svg.read_bytes()), "image/svg+xml", ' class="drawn"'
    if len(data) > LARGEST_SVG:
        data, kind, drawn = png, "image/png", ""
    caption = escape(figure.caption)
    image = f'<img{drawn} src="{_inlined(data, kind)}" width="{width}" alt="{caption}">'
    if figure.for_phones is not None and drawn and width > 1.25 * ON_PHONES:
        narrow = _inlined(_with_a_dark_look(figure.for_phones()), "image/svg+xml")
        image = f'<picture><source media="screen and (max-width: 40rem)" srcset="{narrow}" width="{ON_PHONES}">{image}</picture>'
    return (
        f'<figure style="--width: {max(width, ON_PHONES) + 18}px"><h3>{escape(figure.title)}</h3>'
        f'<div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'
    )


def _inlined(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _with_a_dark_look(svg: bytes) -> bytes:
    """Return the figure with a style that draws light lines on a dark background in dark mode."""
    return svg.replace(b"</style>", f"{_DARK}</style>".encode(), 1)
