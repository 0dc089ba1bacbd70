"""Pages of HTML: no script, nothing loaded from elsewhere, every text escaped. What all pages are made of."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ntkpipe.report.figures import FigureFile
from ntkpipe.report.style import DPI, GREY, INK, PALE
from ntkpipe.storage.replace import replace_text

# Above this an SVG (of a confusion matrix of 100 classes, say) makes the page heavier than the PNG at 200 dpi does.
LARGEST_SVG = 400_000

# How a figure in the page looks on a dark page; the files beside the page stay as they are drawn, for papers.
_INK_IN_THE_DARK = {INK: "#e8e8e8", GREY: "#a6a6a6", PALE: "#3a3d41"}
_DARK = (
    "@media (prefers-color-scheme: dark) { #figure_1 > [id^=patch] > path, [id^=axes] > [id^=patch]:first-of-type > path"
    " { fill: #1f2226 !important }"
    + "".join(
        f' [style*="{what}: {light.lower()}"] {{ {what}: {dark} !important }}'
        for light, dark in _INK_IN_THE_DARK.items()
        for what in ("fill", "stroke")
    )
    + " }"
)

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --rule: #dcdcdc; --page: #fff; --card: #f6f7f8; --figure: #fff;
  --accent: #0072b2; --warn: #fff3e6; --warn-rule: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a6a6a6; --rule: #3a3d41; --page: #16181b;
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
th[scope=row], td.text, th.text { text-align: left; } td.text { white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; } td.best { font-weight: 700; color: var(--accent); }
td.chosen { text-decoration: underline; text-underline-offset: .2em; }
.side { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; align-items: flex-start; }
.side > * { max-width: 100%; } figure { margin: 0 0 1.8rem; } figure h3 { font-size: 1rem; margin: 0 0 .4rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: 6px; padding: .5rem; } figure img.drawn { background: var(--figure); }
@media (max-width: 40rem) { figure .scroll img { max-width: none; } }
figcaption { margin-top: .4rem; }
details { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .4rem .9rem;
  margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; } code { font-size: .85rem; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #ccc; --page: #fff; --card: #fff; --figure: #fff;
  --accent: #0072b2; --warn: #fff; } body { max-width: none; padding: 0; font-size: 12px; }
  details::details-content { content-visibility: visible; block-size: auto; } details > * { display: block; }
  .scroll { overflow: visible; background: none; } th, td { padding: .15rem .4rem; white-space: normal; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML, escaped.
    """
    # The policy forbids scripts and every outside resource, should an escape ever be missed.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page atomically; returns its path."""
    replace_text(path, text)
    return path


def table(
    heads: Sequence[str],
    columns: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Sequence[tuple[str, str]]]],
    title: str = "",
) -> str:
    """A table; each row has its heads and its cells (text, CSS class). Escapes every text."""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f'<th scope="col" class="text">{escape(text)}</th>' for text in heads)
    head += "".join(f'<th scope="col">{escape(text)}</th>' for text in columns)
    body = []
    for row_heads, cells in rows:
        line = "".join(f'<th scope="row">{escape(text)}</th>' for text in row_heads)
        for text, kind in cells:
            line += f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"
        body.append(f"<tr>{line}</tr>")
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def section(title: str, content: str) -> str:
    """A part of the page under a heading; nothing where there is no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def figures(shown: Sequence[FigureFile]) -> str:
    """Figures side by side, inlined as images, so that nothing in them can run or clash."""
    return f'<div class="side">{"".join(_figure(figure) for figure in shown)}</div>' if shown else ""


def _figure(figure: FigureFile) -> str:
    png = figure.png.read_bytes()
    # Bytes 16 to 20 of a PNG are its width: shown at its printed size, so that letters are equally large everywhere.
    width = int.from_bytes(png[16:20], "big") * 96 // DPI
    data, kind, drawn = _with_a_dark_look(figure.svg.read_bytes()), "image/svg+xml", ' class="drawn"'
    if len(data) > LARGEST_SVG:
        data, kind, drawn = png, "image/png", ""
    source = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    caption = escape(figure.caption)
    return (
        f'<figure style="max-width:min(100%, {max(width, 340) + 18}px)"><h3>{escape(figure.title)}</h3><div class="scroll">'
        f'<img{drawn} src="{source}" width="{width}" alt="{caption}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _with_a_dark_look(svg: bytes) -> bytes:
    """The figure with light lines and letters on a dark ground where the reader prefers that."""
    return svg.replace(b"</style>", f"{_DARK}</style>".encode(), 1)
