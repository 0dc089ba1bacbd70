"""Makes the summary of a run for its page: settings, data, hardware, versions, and the time of every stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ntkpipe.report.html import table

OWN_PLACE = ("title", "warnings", "signals", "max_learning_rate", "timings")
SECTIONS = ("data", "kernel", "hardware", "versions", "config")


def timings(seconds_of: Any) -> str:
    """Return a table of the time of every stage; empty if unknown."""
    if not isinstance(seconds_of, Mapping) or not seconds_of:
        return ""
    total = sum(seconds_of.values())
    rows = [
        ([str(stage)], [(_duration(seconds), ""), (f"{seconds / total:.0%}" if total > 0 else "–", "")])
        for stage, seconds in [*seconds_of.items(), ("total", total)]
    ]
    return table(["stage"], ["time", "share"], rows)


def facts(summary: Mapping[str, Any]) -> str:
    """Return tables of configuration, data, kernel, hardware, versions and all other entries of the summary."""
    names = [name for name in SECTIONS if name in summary]
    names += [name for name in summary if name not in (*SECTIONS, *OWN_PLACE)]
    parts = []
    for name in names:
        rows = [([path], [(text, "text")]) for path, text in _flatten(summary[name], "")]
        if rows:
            heading = escape(name.replace("_", " ").capitalize())
            parts.append(
                f"<details><summary>{heading}</summary>"
                f'<div class="settings">{table(["setting"], ["value"], rows)}</div></details>'
            )
    return "".join(parts)


def _flatten(value: Any, path: str) -> Iterable[tuple[str, str]]:
    """Yield nested values as (dotted path, text). A list of plain values, or a layer, stays on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for index, item in enumerate(value):
            yield f"{path}[{index}]" if path else str(index), plain(item)
    else:
        yield path, plain(value)


def plain(value: Any) -> str:
    """Return the value of a setting as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return str(value)


def _duration(seconds: float) -> str:
    """Return a duration as text, such as `0.42 s`, `2 min 53 s` or `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
