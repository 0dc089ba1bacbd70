"""The trials of a search for the numbers of a kernel: the ranges that they are from, their results and the file that stores them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.dynamics.criteria import Score
from ntkpipe.errors import ConfigError
from ntkpipe.storage.checksum import content_hash, digest
from ntkpipe.storage.plain import json_ready

Values = dict[str, float]


@dataclass(frozen=True)
class Range:
    """The values that a parameter may take.

    Args:
        low, high: bounds of a number, searched on a logarithmic scale if both are positive.
        options: a list of values, instead of bounds.
    """

    low: float = 0.0
    high: float = 0.0
    options: tuple[float, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether the search uses a logarithmic scale."""
        return self.low > 0

    @staticmethod
    def of(name: str, values: Sequence[float], *, whole: bool = False) -> Range:
        """Return a range from two numbers; whole numbers and longer lists become options.

        Raises:
            ConfigError: if there are fewer than two values, or no valid range.
        """
        found = tuple(float(value) for value in values)
        if len(set(found)) < 2 or not all(math.isfinite(value) for value in found):
            raise ConfigError(f"{name}={list(values)} must hold two numbers, low and high, or a list of values to try")
        if whole and any(value != int(value) for value in found):
            raise ConfigError(f"{name}={list(values)} must hold whole numbers")
        if whole or len(found) > 2:
            return Range(options=tuple(sorted(set(found))))
        low, high = sorted(found)
        return Range(low, high)


@dataclass(frozen=True)
class Trial:
    """One tried kernel.

    Args:
        values: values of the parameters.
        score: score of the kernel.
    """

    values: Values
    score: Score

    def record(self) -> dict[str, Any]:
        """Return the trial as plain values for JSON."""
        s = self.score
        curve = [float(value) for value in s.curve]
        return {"values": self.values, "value": s.value, "ridge": s.ridge, "accuracy": s.accuracy, "by_ridge": curve}


def as_given(values: Values, ranges: Mapping[str, Range]) -> Values:
    """Return the values, with options that are whole numbers (such as depths) as int."""
    whole = {name for name, value in values.items() if name in ranges and ranges[name].options and value == int(value)}
    return {name: int(value) if name in whole else value for name, value in values.items()}


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Args:
        trials: all trials, best first.
        by: the criterion.
        points: number of points in the criterion.
        ranges: ranges of the parameters.
    """

    trials: tuple[Trial, ...]
    by: str
    points: int
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def best(self) -> Values:
        """The chosen values, in the form that the function that makes the network takes."""
        return as_given(self.trials[0].values, self.ranges)

    def at_the_end(self) -> list[str]:
        """Return the names of parameters whose best value lies at an end of their range: a better one may lie beyond it.

        Zero is no end, because parameters cannot be negative. A list of two values is a choice, not a range.
        """
        found = []
        for name, one in self.ranges.items():
            ends = (one.low, one.high) if not one.options else (min(one.options), max(one.options))
            value = self.trials[0].values[name]
            if len(one.options) != 2 and any(end > 0 and math.isclose(value, end, rel_tol=1e-9) for end in ends):
                found.append(name)
        return found

    @property
    def ridge(self) -> float:
        """The chosen ridge, relative to the mean of the diagonal."""
        return self.trials[0].score.ridge

    def table(self, count: int = 10) -> list[str]:
        """Return the lines of a table, best trial first."""
        names = list(self.ranges)
        what = {"likelihood": "-log evidence", "loo": "loo mse", "held_out": "held-out mse"}[self.by]
        known = any(one.score.accuracy is not None for one in self.trials)
        head = f"{'':>4}" + "".join(f"{name:>14}" for name in [*names, "ridge", what, *(["accuracy"] if known else [])])
        lines = [head]
        for k, one in enumerate(self.trials[:count]):
            numbers = [one.values[name] for name in names] + [one.score.ridge]
            row = "".join(f"{value:>14.5g}" for value in numbers) + f"{one.score.value:>14.6g}"
            row += f"{one.score.accuracy:>14.4f}" if one.score.accuracy is not None else ""
            lines.append(f"{k + 1:>4}{row}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return json_ready(
            {
                "by": self.by,
                "points": self.points,
                "best": self.trials[0].record(),
                "trials": [{k: v for k, v in one.record().items() if k != "by_ridge"} for one in self.trials],
            }
        )

    def __repr__(self) -> str:
        return "\n".join(self.table())


class Kept:
    """Trials of earlier calls.

    Args:
        path: file with one trial per line; None keeps the trials in memory only.
        about: everything that determines a trial besides its values and the targets, JSON-ready.
        targets: (m, c) targets of the points.
        kernel: returns a JSON-ready description of the kernel of some values; None if `about` and the values determine it.
    """

    def __init__(
        self, path: Path | None, about: Any, targets: np.ndarray, kernel: Callable[[Values], Any] | None = None
    ) -> None:
        values = np.ascontiguousarray(targets, dtype="<f8")
        self._path, self._about = path, digest([about, list(values.shape), content_hash(values.tobytes())])
        self._kernel = kernel
        self._found: dict[str, Trial] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    one = json.loads(line)
                    curve = np.array([_number(value) for value in one["by_ridge"]])
                    found = Score(_number(one["value"]), float(one["ridge"]), curve, one["accuracy"])
                    self._found[one["key"]] = Trial({str(k): float(v) for k, v in one["values"].items()}, found)
                except (ValueError, KeyError, TypeError):
                    continue  # damaged by a kill: the trial is repeated

    def get(self, values: Values) -> Trial | None:
        """Return the stored trial of these values, or None."""
        return self._found.get(self._key(values))

    def add(self, trial: Trial) -> None:
        """Store a trial."""
        key = self._key(trial.values)
        self._found[key] = trial
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(json_ready({"key": key, **trial.record()}), allow_nan=False) + "\n")

    def _key(self, values: Values) -> str:
        kernel = None if self._path is None or self._kernel is None else self._kernel(values)
        named = {name: repr(value) for name, value in sorted(values.items())}
        return digest({"about": self._about, "values": named, "kernel": kernel})


def _number(value: Any) -> float:
    return math.inf if value is None or value == "inf" else float(value)
