"""Choosing numbers of a kernel by how well it suits a part of the training points: a search whose trials are kept and found again."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ntkpipe.data.points import Dataset
from ntkpipe.dynamics.criteria import CRITERIA, Score, score
from ntkpipe.errors import ConfigError
from ntkpipe.events.event import Tell, tell_nobody
from ntkpipe.gram.worker import compute_tile
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.combined import Combination
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text

DEFAULT_RIDGES = tuple(float(r) for r in np.geomspace(1e-8, 1.0, 33))
"""Relative ridges that every trial compares, where no others are given; they cost next to nothing."""

MOST_POINTS = 5000
"""Of which a dense decomposition per trial is reasonable."""

Values = dict[str, float]
Gradient = Callable[[Values], tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], tuple[str, ...]] | None]
"""From the values of a trial's options to a cost with its gradient in the logarithms of the parameters that are named, `ridge` last;
None where there is none."""


@dataclass(frozen=True)
class Range:
    """What a parameter may be.

    Args:
        low, high: of a number in between, chosen on a logarithmic scale if both are positive.
        options: of one of these, instead.
    """

    low: float = 0.0
    high: float = 0.0
    options: tuple[float, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether it is searched on a logarithmic scale."""
        return self.low > 0

    @staticmethod
    def of(name: str, values: Sequence[float], *, whole: bool = False) -> Range:
        """Two numbers are a range, more (or whole numbers) are options.

        Raises:
            ConfigError: if there are fewer than two, or they are no range.
        """
        found = tuple(float(value) for value in values)
        if len(set(found)) < 2 or not all(math.isfinite(value) for value in found):
            raise ConfigError(f"{name}={list(values)} must hold two numbers, low and high, or a few to choose from")
        if whole or len(found) > 2:
            return Range(options=tuple(sorted(set(found))))
        low, high = sorted(found)
        return Range(low, high)


@dataclass(frozen=True)
class Trial:
    """One kernel that was tried.

    Args:
        values: of the parameters.
        score: what it is worth.
    """

    values: Values
    score: Score

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        s = self.score
        curve = [float(value) for value in s.curve]
        return {"values": self.values, "value": s.value, "ridge": s.ridge, "accuracy": s.accuracy, "by_ridge": curve}


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Args:
        trials: all, the best first.
        by: the criterion.
        points: that it was asked of.
        ranges: of the parameters.
    """

    trials: tuple[Trial, ...]
    by: str
    points: int
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def best(self) -> Values:
        """The chosen values."""
        return self.trials[0].values

    @property
    def ridge(self) -> float:
        """The chosen ridge, relative to the mean of the diagonal."""
        return self.trials[0].score.ridge

    def table(self, count: int = 10) -> list[str]:
        """Lines for people, the best trial first."""
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
        """JSON-ready."""
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
    """Trials of earlier calls, in a file of a line each; None keeps them in memory alone.

    Args:
        path: of the file.
        about: of everything that decides a trial but its values.
    """

    def __init__(self, path: Path | None, about: Any) -> None:
        self._path, self._about = path, digest(about)
        self._found: dict[str, Trial] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    one = json.loads(line)
                    curve = np.array([_number(value) for value in one["by_ridge"]])
                    found = Score(_number(one["value"]), float(one["ridge"]), curve, one["accuracy"])
                    self._found[one["key"]] = Trial({str(k): float(v) for k, v in one["values"].items()}, found)
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill: tried again

    def get(self, values: Values) -> Trial | None:
        """A trial of these values."""
        return self._found.get(self._key(values))

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        key = self._key(trial.values)
        self._found[key] = trial
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(json_ready({"key": key, **trial.record()}), allow_nan=False) + "\n")

    def _key(self, values: Values) -> str:
        return digest({"about": self._about, "values": {name: repr(value) for name, value in sorted(values.items())}})


def search(
    ranges: Mapping[str, Range],
    evaluate: Callable[[Values], Score],
    *,
    by: str,
    points: int,
    trials: int = 40,
    seed: int = 0,
    kept: Kept | None = None,
    gradient: Gradient | None = None,
    tell: Tell = tell_nobody,
) -> Tuned:
    """Look for the best values.

    Options alone are tried all. Ranges are searched by Optuna (a tree of Parzen estimators, seeded), or by gradients where there are
    some. The same call with the same kept trials makes none of them again.

    Args:
        ranges: of the parameters.
        evaluate: the worth of some values.
        by: the criterion.
        points: that it is asked of.
        trials: to make, of ranges.
        seed: of the search.
        kept: earlier trials.
        gradient: see `Gradient`.
        tell: told of trials.

    Raises:
        ConfigError: if there is nothing to choose, Optuna is needed and not installed, or no trial has a value.
    """
    kept = kept or Kept(None, "")
    found: dict[str, Trial] = {}

    def attempt(values: Values) -> float:
        trial = kept.get(values)
        if trial is None:
            trial = Trial(values, evaluate(values))
            kept.add(trial)
        key = repr(sorted(values.items()))
        if key in found:
            return trial.score.value
        found[key] = trial
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "the kernel as it is"
        tell(f"trial {len(found)}: {shown}: {trial.score.value:.6g} at ridge {trial.score.ridge:.2g}")
        return trial.score.value

    options = {name: one.options for name, one in ranges.items() if one.options}
    free = {name: one for name, one in ranges.items() if not one.options}
    grid = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    if not free:
        for values in grid:
            attempt(values)
    elif gradient is not None and (slopes := [gradient(values) for values in grid]) and None not in slopes:
        for values, slope in zip(grid, slopes, strict=True):
            assert slope is not None
            _descend(values, free, slope, attempt)
    else:
        _sample(ranges, attempt, trials, seed)
    ordered = sorted(found.values(), key=lambda one: one.score.value)
    if not ordered or not math.isfinite(ordered[0].score.value):
        raise ConfigError("no trial has a finite value: give larger ridges (tune.ridge=[1e-6,1]), or other ranges")
    return Tuned(tuple(ordered), by, points, ranges)


def _descend(
    values: Values,
    free: Mapping[str, Range],
    slope: tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], tuple[str, ...]],
    attempt: Callable[[Values], float],
) -> None:
    """From the middle of the ranges along the gradient; the ridge goes along, and every trial looks for its own besides."""
    cost, names = slope
    low = np.array([math.log(free[name].low) if name in free else math.log(1e-8) for name in names])
    high = np.array([math.log(free[name].high) if name in free else 0.0 for name in names])

    def told(logs: np.ndarray) -> None:
        made = {
            name: float(np.clip(np.exp(one), free[name].low, free[name].high))
            for name, one in zip(names, logs, strict=True)
            if name in free
        }
        attempt({**values, **made})

    start = (low + high) / 2
    told(start)
    best = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), callback=told)
    told(best.x)


def _sample(ranges: Mapping[str, Range], attempt: Callable[[Values], float], trials: int, seed: int) -> None:
    """By Optuna."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            "searching ranges needs Optuna: pip install 'ntkpipe[tune]'. Lists of more than two values, such as "
            "tune.w_std=[1,1.4,2], are all tried without it"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(trials):
        asked = study.ask()
        values: Values = {}
        for name, one in ranges.items():
            if one.options:
                values[name] = float(asked.suggest_categorical(name, list(one.options)))
            else:
                values[name] = float(asked.suggest_float(name, one.low, one.high, log=one.logarithmic))
        value = attempt(values)
        study.tell(asked, value if math.isfinite(value) else 1e30)


def tune(
    build: Callable[..., Architecture | Combination],
    data: Dataset,
    space: Mapping[str, Sequence[float]],
    *,
    by: str = "likelihood",
    kernel: str = "nngp",
    size: int = 1000,
    ridges: Sequence[float] = DEFAULT_RIDGES,
    held_out: float = 0.2,
    trials: int = 40,
    seed: int = 0,
    path: str | Path | None = None,
    dtype: str = "float64",
) -> Tuned:
    """Choose the numbers of a kernel by the first training points.

    Args:
        build: makes an architecture, or a sum or product of some, of the numbers: `nk.zoo.fcn`, or a function of one's own.
        data: a `Dataset`.
        space: by name two numbers (a range) or more (options); whole numbers are options.
        by: `likelihood`, `loo` or `held_out`; see `dynamics.criteria.score`.
        kernel: `nngp` or `ntk`.
        size: training points, at most.
        ridges: relative ones that every trial compares.
        held_out: of `held_out`, the share of these points.
        trials: of ranges.
        seed: of the search.
        path: of a file that keeps trials; the same call goes on from there.
        dtype: of the computation.

    Returns:
        `best` values, the `ridge` with them, and all `trials`.

    Raises:
        ConfigError: on an impossible setting.

    Example:
        >>> found = tune(nk.zoo.fcn, data, {"w_std": [0.5, 3.0], "depth": [1, 2, 3]})  # doctest: +SKIP
        >>> nk.zoo.fcn(**found.best)  # doctest: +SKIP
    """
    check_search(by, size, trials)
    ranges = {
        name: Range.of(name, values, whole=all(isinstance(value, int) for value in values))
        for name, values in space.items()
    }
    m = min(size, data.n)
    x, y = data.prepared(dtype).x_train[:m], data.targets[:m]
    labels = y.argmax(axis=1) if data.is_classes else None

    def evaluate(values: Values) -> Score:
        made = build(**{k: int(v) if ranges[k].options and v == int(v) else v for k, v in values.items()})
        return score(_matrix(made, x, kernel, dtype), y, ridges, by, held_out=round(held_out * m), labels=labels)

    about = {"by": by, "kernel": kernel, "size": m, "ridges": list(ridges), "held_out": held_out, "dtype": dtype}
    about |= {"data": repr(data), "build": getattr(build, "__name__", repr(build))}
    kept = Kept(None if path is None else Path(path), about)
    return search(ranges, evaluate, by=by, points=m, trials=trials, seed=seed, kept=kept)


def _matrix(made: Architecture | Combination, x: np.ndarray, kernel: str, dtype: str) -> np.ndarray:
    """(m, m) float64 among the points."""
    if isinstance(made, Combination):
        return made.combine(lambda one: _matrix(one, x, kernel, dtype))
    found = compute_tile(made.to_spec(), x, None, diagonal=True, dtype=dtype, out_dtype="float64")
    if kernel not in found:
        raise ConfigError(f"kernel={kernel} is not one of {', '.join(found)}")
    return found[kernel]


def write_tuned(tuned: Tuned, folder: Path, overlay: Mapping[str, Any]) -> list[Path]:
    """Write `tune.json` and the overlay that a run takes, `experiment/tuned.yaml`.

    Args:
        tuned: what was found.
        folder: where to.
        overlay: the chosen settings, by group.
    """
    import yaml

    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    record, experiment = folder / "tune.json", folder / "experiment" / "tuned.yaml"
    replace_text(record, json.dumps(tuned.to_dict(), indent=1, allow_nan=False) + "\n")
    text = "# @package _global_\n" + yaml.safe_dump(dict(overlay), sort_keys=False)
    replace_text(experiment, text)
    return [record, experiment]


def check_search(by: str, size: int, trials: int) -> None:
    """Refuse what no search can do.

    Raises:
        ConfigError: naming the setting.
    """
    if by not in CRITERIA:
        raise ConfigError(f"tune.by={by} is not one of {', '.join(CRITERIA)}")
    if not 10 <= size <= MOST_POINTS:
        raise ConfigError(
            f"tune.size={size} must be from 10 to {MOST_POINTS:,}: every trial decomposes a matrix of so many rows"
        )
    if trials < 1:
        raise ConfigError(f"tune.trials={trials} must be at least 1")


def _number(value: Any) -> float:
    return math.inf if value is None or value == "inf" else float(value)
