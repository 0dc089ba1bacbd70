from __future__ import annotations

import json
import math

from ntkpipe.storage.plain import json_ready, with_numbers

VALUES = {"a": math.inf, "b": [-math.inf, 0.5, {"c": math.nan}], "d": (1, True, None, "text"), "e": {}}


def test_any_numbers_make_json_and_come_back():
    text = json.dumps(json_ready(VALUES, nan="nan"), allow_nan=False)
    back = with_numbers(json.loads(text))
    assert math.isnan(back["b"][2].pop("c"))
    assert back == {"a": math.inf, "b": [-math.inf, 0.5, {}], "d": [1, True, None, "text"], "e": {}}


def test_what_is_no_number_is_null_unless_it_is_to_come_back():
    assert json_ready([math.nan, math.inf]) == [None, "inf"]
