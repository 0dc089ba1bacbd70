"""Small charts as SVG text in the colours of the page. A page can switch between them without drawing them again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 14, 44

CSS = """.chart { display: block; width: 100%; max-height: 34rem; height: auto; }
.chart text { font-size: 11px; fill: var(--soft); text-anchor: middle; }
.chart .name { fill: var(--ink); } .chart .y { text-anchor: end; } .chart .axis { stroke: var(--soft); fill: none; }
.chart .grid { stroke: var(--rule); } .chart .dashed { stroke: var(--soft); stroke-dasharray: 4 3; fill: none; }
.chart .curve { fill: none; stroke-width: 1.8; } .chart .now { stroke: var(--ink); stroke-dasharray: 2 3; }
.chart .cell { fill: var(--accent); } .chart .count { fill: var(--ink); font-size: 10px; } .chart .on { fill: var(--page); }"""


@dataclass(frozen=True)
class Chart:
    """A frame with axes, to which curves and dots are added.

    Args:
        x_name, y_name: labels of the axes.
        x_range, y_range: values at the ends of the axes.
        x_ticks, y_ticks: pairs (value, text) of the ticks.
        says: description of the chart for screen readers.
    """

    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    says: str

    def x(self, value: float) -> float:
        """Return the position of a value in pixels from the left."""
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the position of a value in pixels from the top. Values beyond the axis are moved to its ends."""
        low, high = self.y_range
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def curve(self, xs: Sequence[float], ys: Sequence[float], colour: str, *, dots: bool = True) -> str:
        """Return the SVG of a line through the finite points, with dots."""
        points = [(self.x(a), self.y(b)) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        drawn = f'<polyline class="curve" points="{line}" style="stroke:{colour}"/>' if len(points) > 1 else ""
        return drawn + ("".join(self._dot(a, b, colour, 2.2) for a, b in points) if dots else "")

    def dots(self, xs: Iterable[float], ys: Iterable[float], colour: str, radius: float = 4.0) -> str:
        """Return the SVG of dots at the finite points."""
        pairs = zip(xs, ys, strict=True)
        return "".join(self._dot(self.x(a), self.y(b), colour, radius) for a, b in pairs if math.isfinite(b))

    @staticmethod
    def _dot(x: float, y: float, colour: str, radius: float) -> str:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" style="fill:{colour}"/>'

    def upright(self, value: float) -> str:
        """Return the SVG of a vertical line at this value of the horizontal axis."""
        x = self.x(value)
        return f'<path class="now" d="M{x:.1f} {_TOP} V{HEIGHT - _BOTTOM}"/>'

    def diagonal(self) -> str:
        """Return the SVG of the line on which both values are equal."""
        (a, b), (c, d) = self.x_range, self.y_range
        low, high = max(a, c), min(b, d)
        return f'<path class="dashed" d="M{self.x(low):.1f} {self.y(low):.1f} L{self.x(high):.1f} {self.y(high):.1f}"/>'

    def draw(self, content: str) -> str:
        """Return the whole `svg` element with axes, ticks and the given content."""
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = [f'<path class="axis" d="M{_LEFT} {_TOP} V{bottom} H{right}"/>']
        for value, text in self.x_ticks:
            parts.append(f'<text x="{self.x(value):.1f}" y="{bottom + 16}">{escape(text)}</text>')
        for value, text in self.y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f} H{right}"/>')
            parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{escape(text)}</text>')
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text class="name" x="{(_LEFT + right) / 2:.1f}" y="{HEIGHT - 8}">{escape(self.x_name)}</text>'
            f'<text class="name" x="12" y="{middle:.1f}" transform="rotate(-90 12 {middle:.1f})">{escape(self.y_name)}</text>'
        )
        return _svg(WIDTH, HEIGHT, self.says, "".join(parts) + content)


def matrix(names: Sequence[str], x_name: str, y_name: str, says: str) -> tuple[Callable[[str], str], float, float]:
    """Make a frame for a square matrix whose rows and columns have the same names.

    Args:
        names: names of the rows and of the columns.
        x_name: label of the columns.
        y_name: label of the rows.
        says: description of the matrix for screen readers.

    Returns:
        A function that makes the `svg` element from the SVG of the cells, the edge of a cell in pixels, and the offset
        of the first cell from the left and from the top in pixels.
    """
    classes = len(names)
    edge = min(30.0, 330 / classes)
    left = 30.0 + 6.2 * max(len(name) for name in names)
    size = left + classes * edge + 8
    turned = max(len(name) for name in names) * 6.2 > edge
    labels = []
    for i, name in enumerate(names):
        middle = left + (i + 0.5) * edge
        labels.append(f'<text class="y" x="{left - 5:.1f}" y="{middle + 4:.1f}">{escape(name)}</text>')
        turn = f' transform="rotate(-60 {middle:.1f} {left - 6:.1f})" style="text-anchor:start"' if turned else ""
        labels.append(f'<text x="{middle:.1f}" y="{left - 6:.1f}"{turn}>{escape(name)}</text>')
    centre = left + classes * edge / 2
    labels.append(f'<text class="name" x="{centre:.1f}" y="12">{escape(x_name)}</text>')
    labels.append(
        f'<text class="name" x="11" y="{centre:.1f}" transform="rotate(-90 11 {centre:.1f})">{escape(y_name)}</text>'
    )
    frame = (
        f'<rect x="{left:.1f}" y="{left:.1f}" width="{classes * edge:.1f}" height="{classes * edge:.1f}" class="axis"/>'
    )
    return lambda cells: _svg(size, size, says, "".join(labels) + frame + cells), edge, left


def _svg(width: float, height: float, says: str, content: str) -> str:
    size = f'width="{math.ceil(width)}" height="{math.ceil(height)}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg class="chart" role="img" aria-label="{escape(says)}" {size}>{content}</svg>'
