"""Readable text for counts, bytes and seconds."""

from __future__ import annotations


def counted(count: int, one: str, several: str | None = None) -> str:
    """A readable count: `1 time`, `2 times`, `1,000 times`."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def human_bytes(count: float) -> str:
    """A readable number of bytes, such as `16.8 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def human_seconds(seconds: float) -> str:
    """A readable duration, such as `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
