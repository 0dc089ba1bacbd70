"""The interface between a run and experiment trackers, and functions that open trackers by name."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ntkpipe.errors import ConfigError

_log = logging.getLogger(__name__)

# Maps a name to its module in this package and to the package that it needs.
TRACKERS = {
    "mlflow": ("to_mlflow", "mlflow"),
    "wandb": ("to_wandb", "wandb"),
    "tensorboard": ("to_tensorboard", "tensorboardX"),
}


@runtime_checkable
class Tracker(Protocol):
    """One run in an experiment tracker. It receives numbers by name and does not interpret them."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record values at a step; the steps of a name never decrease."""
        ...

    def file(self, path: Path) -> None:
        """Record a file of the finished run, such as the report."""
        ...

    def close(self, *, ok: bool) -> None:
        """Record the end of the run, and whether it succeeded."""
        ...


class Reporters:
    """All trackers of a run. A tracker that fails is reported once and then disabled, so it never stops a run.

    Args:
        trackers: trackers by name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        self._steps = 0

    def progress(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Report the progress of a stage: every finite number among `facts`, as `stage/name`."""
        self._steps += 1
        values = {f"{stage}/{name}": float(value) for name, value in facts.items() if _is_number(value)}
        self._each(lambda tracker: tracker.numbers(values, self._steps))

    def finished(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Report the receipt of a finished stage."""
        self.progress(stage, facts)

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """Report accuracies, losses and bounds for every kernel, ridge and time, with times as the steps of a curve."""
        for step, values in enumerate(_curves(metrics["entries"])):
            self._each(lambda tracker, values=values, step=step: tracker.numbers(values, step))

    def file(self, path: Path) -> None:
        """Report a file of the finished run."""
        self._each(lambda tracker: tracker.file(path))

    def close(self, *, ok: bool) -> None:
        """Report the end of the run."""
        self._each(lambda tracker: tracker.close(ok=ok))
        self._trackers = {}

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # any error of a library: an unavailable server must not fail the run
                _log.warning("watch.reporters: %s failed and is disabled for the rest of the run (%s)", name, error)
                del self._trackers[name]


def open_reporters(names: Sequence[str], run: str, folder: Path, config: Mapping[str, Any]) -> Reporters:
    """Open trackers by name.

    Args:
        names: keys of `TRACKERS`.
        run: name of the run.
        folder: folder of the run; trackers write their files to `folder / "trackers"`.
        config: the run's settings, nested.

    Raises:
        ConfigError: if a name is unknown, or the package of a tracker is not installed.
    """
    require_packages(names)
    flat = dict(_flat(config))
    trackers = {}
    for name in names:
        file, _ = TRACKERS[name]
        module = importlib.import_module(f"ntkpipe.run.trackers.{file}")
        trackers[name] = module.open_tracker(run, folder / "trackers" / name, flat)
    return Reporters(trackers)


def require_packages(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be opened, before anything starts.

    Raises:
        ConfigError: naming the package to install.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"watch.reporters={name} is not one of {', '.join(TRACKERS)}")
        package = TRACKERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"watch.reporters={name} needs the package {package}: run pip install {package}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _curves(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    """Yield, for each time, every number of every kernel and ridge."""
    groups: dict[Any, dict[str, float]] = {}
    for entry in entries:
        values = groups.setdefault(entry["time"], {})
        for name in ("accuracy", "mse", "max_error_bound", "max_error_estimate"):
            if _is_number(entry.get(name)):
                values[f"test/{entry['kernel']}/ridge_{entry['ridge']:g}/{name}"] = float(entry[name])
    yield from groups.values()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
