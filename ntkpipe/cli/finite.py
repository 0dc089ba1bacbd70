"""Commands about finite networks that need neither data nor a run: `ntkpipe catapult`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from ntkpipe.cli.arguments import number, settings, whole
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.errors import ConfigError
from ntkpipe.finite.two_layers import catapult


def run_catapult(arguments: Sequence[str]) -> int:
    """Train the two-layer model, print the result, and return the exit code.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """
    values = settings(arguments, COMMANDS["catapult"].defaults(), "catapult")
    form = values.pop("format")
    if form not in ("table", "json"):
        raise ConfigError(f"format={form} is not one of table, json")
    width, max_steps = (whole(name, values[name]) for name in ("width", "max_steps"))
    reals = {name: number(name, values[name]) for name in ("rate", "f0", "lambda0", "target")}
    made = dataclasses.asdict(catapult(width=width, max_steps=max_steps, **reals))
    if form == "json":
        # JSON has no infinity, so null stands for a value that grew without bound.
        print(json.dumps({name: None if value == math.inf else value for name, value in made.items()}))
    else:
        for name, value in made.items():
            print(f"{name:<12}{value:.10g}" if isinstance(value, float) else f"{name:<12}{value}")
    return 0
