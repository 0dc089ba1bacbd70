"""Replaces infinity and NaN, which JSON lacks, by the words `inf`, `-inf`, and `null` or `nan`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def json_ready(value: Any, *, nan: str | None = None) -> Any:
    """Convert nested plain values to valid JSON: tuples become lists, and non-finite numbers become words.

    Args:
        value: nested mappings, lists and tuples of text, numbers, truth values and None.
        nan: the replacement of NaN. None gives null; the text `nan` lets `with_numbers` restore it.
    """
    if isinstance(value, Mapping):
        return {key: json_ready(item, nan=nan) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item, nan=nan) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return nan if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def with_numbers(value: Any) -> Any:
    """Invert `json_ready`: the words become numbers again."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value
