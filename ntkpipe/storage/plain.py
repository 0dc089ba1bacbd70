"""JSON has no word for infinity and for what is no number: ours are `inf`, `-inf`, and `null` or `nan`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def json_ready(value: Any, *, nan: str | None = None) -> Any:
    """Nested plain values of which any JSON can be made: lists for tuples, words for numbers that are not finite.

    Args:
        value: nested mappings, lists and tuples of text, numbers, truth and None.
        nan: what stands for what is no number: null, or `nan` where `with_numbers` is to bring it back.
    """
    if isinstance(value, Mapping):
        return {key: json_ready(item, nan=nan) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item, nan=nan) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return nan if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def with_numbers(value: Any) -> Any:
    """Nested values as they were before `json_ready`: its words are numbers again."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value
