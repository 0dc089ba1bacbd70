"""Tune the numbers of a kernel on a part of the training points, by a search whose trials are stored and reused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ntkpipe.data.points import Dataset
from ntkpipe.dynamics.criteria import CRITERIA, Score, score
from ntkpipe.errors import ConfigError
from ntkpipe.events.event import Tell, tell_nobody
from ntkpipe.extras import require
from ntkpipe.gram.worker import compute_tile
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.combined import Combination
from ntkpipe.run.trials import Kept, Range, Trial, Tuned, Values, as_given
from ntkpipe.storage.replace import replace_text

DEFAULT_RIDGES = tuple(float(r) for r in np.geomspace(1e-8, 1.0, 33))
"""Default relative ridges. Every trial compares them all at almost no cost."""

MOST_POINTS = 5000
"""Largest number of points for one dense decomposition per trial."""

Gradient = Callable[[Values], tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], tuple[str, ...]] | None]
"""Maps the options of a trial to a cost with its gradient in the logarithms of the named parameters, `ridge` last; None
if there is no gradient."""


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
    """Search for the best values.

    If there are only options, all combinations are tried. Ranges are searched by gradients if available, and otherwise
    by Optuna (a seeded tree-structured Parzen estimator). After a search of one or two ranges by gradients, a few
    values spread over the ranges show the surface. The same call with the same stored trials repeats none of them.

    Args:
        ranges: ranges of the parameters.
        evaluate: computes the score of values.
        by: the criterion.
        points: number of points in the criterion.
        trials: number of trials for ranges.
        seed: seed of the search.
        kept: trials of earlier calls.
        gradient: see `Gradient`.
        tell: receives lines about trials.

    Raises:
        ConfigError: if Optuna is needed and not installed, or no trial has a finite value.
    """
    kept = kept or Kept(None, "", np.empty(0))
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
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "the configured kernel"
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
        best = min(found.values(), key=lambda one: one.score.value).values
        for around in _coarse(free):
            attempt({**best, **around})
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
    """Descend along the gradient from the middle of the ranges.

    The ridge is part of the descent, and every trial also finds its own best ridge.
    """
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


def _coarse(free: Mapping[str, Range]) -> Iterator[Values]:
    """Yield a few values spread over one or two ranges, because a descent shows no surface; none for more ranges."""
    count = {1: 7, 2: 4}.get(len(free), 0)
    shares = (np.arange(count) + 0.5) / max(count, 1)
    axes = [(one.low * (one.high / one.low) ** shares).tolist() for one in free.values()]
    for chosen in itertools.product(*axes) if count else ():
        yield dict(zip(free, chosen, strict=True))


def _sample(ranges: Mapping[str, Range], attempt: Callable[[Values], float], trials: int, seed: int) -> None:
    """Sample the ranges with Optuna."""
    lists = "Lists of more than two values, such as tune.w_std=[1,1.4,2], are all tried without it"
    require("optuna", "searching ranges", lists)
    import optuna

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
    """Tune the numbers of a kernel on the first training points.

    Args:
        build: makes an architecture, or a sum or product of architectures, from the numbers: `nk.zoo.fcn`, or your own
            function.
        data: the data set.
        space: for each name two numbers (a range) or more (options); whole numbers are options.
        by: `likelihood`, `loo` or `held_out`; see `dynamics.criteria.score`.
        kernel: `nngp` or `ntk`.
        size: largest number of training points.
        ridges: relative ridges that every trial compares.
        held_out: share (below 1) or number of these points that are held out, for `by="held_out"`.
        trials: number of trials for ranges.
        seed: seed of the search.
        path: file that stores trials; the same call continues from it.
        dtype: dtype of the computation.

    Returns:
        The `best` values, their `ridge`, and all `trials`. Errors of one standardised target are in the units of the data.

    Raises:
        ConfigError: if a setting is impossible.

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
    prepared, y = data.prepared(dtype), data.targets[:m]
    x = prepared.x_train[:m]
    labels = y.argmax(axis=1) if data.is_classes else None

    def evaluate(values: Values) -> Score:
        made = build(**as_given(values, ranges))
        matrix, held = _matrix(made, x, kernel, dtype), held_out_points(held_out, m)
        return score(matrix, y, ridges, by, held_out=held, labels=labels, scale=prepared.scale)

    about = {"by": by, "kernel": kernel, "size": m, "ridges": list(ridges), "held_out": held_out, "dtype": dtype}
    about |= {"data": prepared.fingerprint}

    def described(values: Values) -> Any:
        made = build(**as_given(values, ranges))
        return made.describe(lambda one: one.fingerprint) if isinstance(made, Combination) else made.fingerprint

    kept = Kept(None if path is None else Path(path), about, y, described)
    return search(ranges, evaluate, by=by, points=m, trials=trials, seed=seed, kept=kept)


def _matrix(made: Architecture | Combination, x: np.ndarray, kernel: str, dtype: str) -> np.ndarray:
    """Return the kernel among the points, `(m, m)` float64."""
    if isinstance(made, Combination):
        return made.combine(lambda one: _matrix(one, x, kernel, dtype))
    found = compute_tile(made.to_spec(), x, None, diagonal=True, dtype=dtype, out_dtype="float64")
    if kernel not in found:
        raise ConfigError(f"kernel={kernel} is not one of {', '.join(found)}")
    return found[kernel]


def write_tuned(tuned: Tuned, folder: Path, overlay: Mapping[str, Any]) -> list[Path]:
    """Write `tune.json` and `experiment/tuned.yaml`, the overlay for a run.

    Args:
        tuned: result of the search.
        folder: target folder.
        overlay: the chosen settings, by group.

    Returns:
        The paths of both files.
    """
    import yaml

    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    record, experiment = folder / "tune.json", folder / "experiment" / "tuned.yaml"
    replace_text(record, json.dumps(tuned.to_dict(), indent=1, allow_nan=False) + "\n")
    text = "# @package _global_\n" + yaml.safe_dump(dict(overlay), sort_keys=False)
    replace_text(experiment, text)
    return [record, experiment]


def held_out_points(held_out: float, points: int) -> int:
    """Return how many points are held out, given their share (below 1) or their number.

    Raises:
        ConfigError: if it is neither.
    """
    if not (0.0 < held_out < 1.0 or (held_out >= 1.0 and held_out == int(held_out))):
        raise ConfigError(f"tune.held_out={held_out:g} must be a share between 0 and 1, or a whole number of points")
    return round(held_out * points) if held_out < 1.0 else int(held_out)


def check_search(by: str, size: int, trials: int) -> None:
    """Refuse impossible searches.

    Raises:
        ConfigError: naming the setting.
    """
    if by not in CRITERIA:
        raise ConfigError(f"tune.by={by} is not one of {', '.join(CRITERIA)}")
    if not 10 <= size <= MOST_POINTS:
        raise ConfigError(
            f"tune.size={size} must be from 10 to {MOST_POINTS:,}: every trial decomposes a matrix of this many rows"
        )
    if trials < 1:
        raise ConfigError(f"tune.trials={trials} must be at least 1")
