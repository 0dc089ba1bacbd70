"""Draws an architecture as a diagram: one SVG from its list of layers, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ntkpipe.kernels.parameters import LAYERS

# Lengths are in pixels. A letter of 12 px is 6.6 px wide on average, and a letter of 10.5 px is 5.7 px wide.
_LINE, _DETAIL, _PAD, _GAP, _BETWEEN, _FRAME = 6.9, 5.9, 10, 16, 26, 14
_JOIN, _MARGIN, _WIDEST = 11, 12, 40
# Longest repeated sequence of layers that is searched for, because the search is quadratic.
_LONGEST_PERIOD = 64

# Parameters that do not affect a kernel at infinite width, and parameters that are drawn in another way.
_HIDDEN = (
    "features", "n_heads", "n_chan_out", "n_chan_key", "n_chan_val", "linear_scaling", "parameterization", "filter", "window",
    "branches", "layers", "times",
)  # fmt: skip
_JOINS = {"residual_sum": ("+", "sum of the branches"), "fan_in_product": ("×", "product of the branches"),
          "fan_in_concat": ("‖", "concatenation of the branches")}  # fmt: skip
_CLASSES = {"dense": "weights", "conv": "weights", "conv_transpose": "weights", "conv_local": "weights",
            "global_self_attention": "weights", "flatten": "shape", "avg_pool": "shape", "sum_pool": "shape",
            "global_avg_pool": "shape", "global_sum_pool": "shape", "resize": "shape"}  # fmt: skip

CSS = """.network { --line: #5c5c5c; --text: #1b1b1b; --weights: #dcecf7; --map: #fbe9dd; --shape: #ececec; --edge: #8a8a8a; }
@media screen and (prefers-color-scheme: dark) {
  .network { --line: #a6a6a6; --text: #e8e8e8; --weights: #17364a; --map: #4a2c17; --shape: #33373c;
  --edge: #6d7278; } }
.network text { font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--text); text-anchor: middle; }
.network .detail { font-size: 10.5px; fill: var(--line); } .network .times { font-weight: 600; text-anchor: start; }
.network rect { stroke: var(--edge); } .network .weights { fill: var(--weights); } .network .map { fill: var(--map); }
.network .shape { fill: var(--shape); } .network .end { fill: none; stroke: none; } .network .frame { fill: none; stroke-dasharray: 4 3; }
.network path { stroke: var(--line); fill: none; } .network circle { stroke: var(--line); fill: var(--shape); }"""


@dataclass(frozen=True)
class _Box:
    """One layer."""

    kind: str
    title: str
    detail: str = ""

    @property
    def _shown(self) -> str:
        return self.detail if len(self.detail) <= _WIDEST else self.detail[: _WIDEST - 1].rstrip(" ,") + "…"

    @property
    def size(self) -> tuple[float, float]:
        width = max(_LINE * len(self.title), _DETAIL * len(self._shown), 64) + 2 * _PAD
        return width, 38 if self.detail else 24

    def draw(self, x: float, y: float) -> str:
        width, height = self.size
        text = f'<text x="{x:.1f}" y="{y + 16:.1f}">{escape(self.title)}</text>'
        if self.detail:
            text += f'<text class="detail" x="{x:.1f}" y="{y + 31:.1f}">{escape(self._shown)}'
            text += f"<title>{escape(self.detail)}</title></text>"
        shape = f'<rect class="{self.kind}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="5"/>'
        return shape + text


@dataclass(frozen=True)
class _Chain:
    """Layers in sequence. A chain without layers is the identity."""

    parts: tuple[Any, ...]

    @property
    def size(self) -> tuple[float, float]:
        sizes = [part.size for part in self.parts]
        height = sum(h for _, h in sizes) + _GAP * max(len(sizes) - 1, 0)
        return max((w for w, _ in sizes), default=24), height

    def draw(self, x: float, y: float) -> str:
        drawn = []
        for position, part in enumerate(self.parts):
            if position:
                drawn.append(_line(x, y, x, y + _GAP))
                y += _GAP
            drawn.append(part.draw(x, y))
            y += part.size[1]
        return "".join(drawn)


@dataclass(frozen=True)
class _Repeated:
    """A chain that repeats several times, drawn once in a frame."""

    chain: _Chain
    times: int

    @property
    def size(self) -> tuple[float, float]:
        width, height = self.chain.size
        # The number is right of the frame. The left has as much room, so that the chain stays in the middle.
        return width + 2 * _FRAME + 2 * (_LINE * len(self._label) + 6), height + 2 * _FRAME

    @property
    def _label(self) -> str:
        return f"× {self.times:,}"

    def draw(self, x: float, y: float) -> str:
        width, height = self.chain.size[0] + 2 * _FRAME, self.size[1]
        frame = f'<rect class="frame" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8"/>'
        label = f'<text class="times" x="{x + width / 2 + 6:.1f}" y="{y + height / 2 + 4:.1f}">{self._label}</text>'
        ends = _line(x, y, x, y + _FRAME) + _line(x, y + height - _FRAME, x, y + height)
        return frame + label + ends + self.chain.draw(x, y + _FRAME)


@dataclass(frozen=True)
class _Branches:
    """Parallel chains and the sign that joins them."""

    sign: str
    says: str
    branches: tuple[_Chain, ...]

    @property
    def size(self) -> tuple[float, float]:
        sizes = [branch.size for branch in self.branches]
        width = sum(w for w, _ in sizes) + _BETWEEN * (len(sizes) - 1)
        return width, max(h for _, h in sizes) + 2 * _GAP + 2 * _JOIN

    def draw(self, x: float, y: float) -> str:
        width, height = self.size
        inner = height - 2 * _GAP - 2 * _JOIN
        top, bottom = y + _GAP, y + _GAP + inner
        join = bottom + _GAP + _JOIN
        drawn, left = [], x - width / 2
        for branch in self.branches:
            w, h = branch.size
            centre = left + w / 2
            start = top + (inner - h) / 2
            drawn.append(f'<path d="M{x:.1f} {y:.1f} C{x:.1f} {top:.1f} {centre:.1f} {y:.1f} {centre:.1f} {top:.1f}"/>')
            drawn.append(_line(centre, top, centre, start) + _line(centre, start + h, centre, bottom))
            drawn.append(branch.draw(centre, start) if branch.parts else "")
            end = join - _JOIN
            drawn.append(
                f'<path d="M{centre:.1f} {bottom:.1f} C{centre:.1f} {end:.1f} {x:.1f} {bottom:.1f} {x:.1f} {end:.1f}"/>'
            )
            left += w + _BETWEEN
        drawn.append(f'<circle cx="{x:.1f}" cy="{join:.1f}" r="{_JOIN}"><title>{escape(self.says)}</title></circle>')
        drawn.append(f'<text x="{x:.1f}" y="{join + 4:.1f}">{escape(self.sign)}</text>')
        return "".join(drawn)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}"/>' if (x1, y1) != (x2, y2) else ""


def network_svg(spec: Sequence[Mapping[str, Any]], image_shape: Sequence[int] | None = None) -> str:
    """Draw a diagram of an architecture, from its inputs at the top to its outputs at the bottom.

    Layers that repeat in a row are drawn once, in a frame with the number of repetitions.

    Args:
        spec: the layers in canonical form.
        image_shape: shape of a point, written at the top; None leaves it out.

    Returns:
        One `svg` element with its own style, at its natural size.
    """
    shape = "" if image_shape is None else " × ".join(map(str, image_shape))
    chain = _Chain((_Box("end", "input", shape), *_chain(spec).parts, _Box("end", "output")))
    width, height = (size + 2 * _MARGIN for size in chain.size)
    says = escape(f"Diagram of the network: {_said(spec)}")
    return (
        f'<svg class="network" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{says}" width="{math.ceil(width)}" '
        f'height="{math.ceil(height)}" viewBox="0 0 {math.ceil(width)} {math.ceil(height)}"><style>{CSS}</style>'
        f"{chain.draw(width / 2, _MARGIN)}</svg>"
    )


def _chain(spec: Sequence[Mapping[str, Any]]) -> _Chain:
    return _Chain(tuple(_repetitions([_part(layer) for layer in spec])))


def _part(layer: Mapping[str, Any]) -> Any:
    op = layer["op"]
    if op == "repeat":
        return _Repeated(_chain(layer["layers"]), layer["times"])
    if "branches" in layer:
        sign, says = _JOINS.get(op, ("·", op))
        return _Branches(sign, says, tuple(_chain(branch) for branch in layer["branches"]))
    return _Box(_CLASSES.get(op, "map"), _title(layer), _detail(layer))


def _title(layer: Mapping[str, Any]) -> str:
    extent = layer.get("filter") or layer.get("window")
    return layer["op"].replace("_", " ") + (f" {'×'.join(map(str, extent))}" if extent else "")


def _detail(layer: Mapping[str, Any]) -> str:
    """Return a text with those parameters of a layer that affect the kernel and differ from their defaults."""
    left_out = (*_HIDDEN, *(["strides"] if layer.get("strides") == layer.get("window") else []))
    stated = [
        f"{one.name} {_value(layer[one.name])}"
        for one in LAYERS[layer["op"]]
        if one.name not in left_out
        and layer.get(one.name) is not None
        and (one.required or layer[one.name] != one.default)
    ]
    return ", ".join(stated)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)


def _repetitions(parts: list[Any]) -> list[Any]:
    """Replace equal sequences that follow each other by `_Repeated`.

    At every position the sequence that saves the most layers is chosen.
    """
    made, at = [], 0
    while at < len(parts):
        best = (0, 1, 1)  # layers saved, period, count
        for period in range(1, min((len(parts) - at) // 2, _LONGEST_PERIOD) + 1):
            stretch, count = parts[at : at + period], 1
            while parts[at + count * period : at + (count + 1) * period] == stretch:
                count += 1
            best = max(best, (period * (count - 1), -period, count))
        _, period, count = best[0], abs(best[1]), best[2]
        if count > 1:
            made.append(_Repeated(_Chain(tuple(_repetitions(parts[at : at + period]))), count))
        else:
            made.append(parts[at])
        at += period * count
    return made


def _said(spec: Sequence[Mapping[str, Any]]) -> str:
    """Return a description of the layers for screen readers."""
    count = sum(1 for _ in _walk(spec))
    first = ", ".join(layer["op"].replace("_", " ") for layer in spec[:12])
    return f"{count} layers, {first}{', and so on' if len(spec) > 12 else ''}"


def _walk(spec: Sequence[Mapping[str, Any]]) -> Any:
    for layer in spec:
        yield layer
        for branch in layer.get("branches", [layer["layers"]] if "layers" in layer else []):
            yield from _walk(branch)
