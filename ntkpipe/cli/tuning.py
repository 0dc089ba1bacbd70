"""`ntkpipe tune`: chooses the kernel's numbers on some training points.

The command writes a table, a figure, and settings for a run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.cli.arguments import number, numbers, whole
from ntkpipe.cli.session import Session
from ntkpipe.config import COMBINED, GIVEN_KERNELS, KernelConfig, RunConfig, to_dict
from ntkpipe.dynamics.criteria import Score, score
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import kernel_spec, kernel_takes
from ntkpipe.kernels.evidence import Evidence
from ntkpipe.propagation.network import plain_network
from ntkpipe.report.drawing import can_draw, drawing, without_figures
from ntkpipe.run.places import anchored
from ntkpipe.run.prepare import prepare, read_shapes
from ntkpipe.run.trials import Kept, Range, Tuned, Values
from ntkpipe.run.tuning import Gradient, check_search, held_out_points, search, write_tuned
from ntkpipe.sources.opened import OpenGram

_NUMBERS = ("w_std", "b_std", "length_scale", "depth", "width", "blocks", "widen", "pool_radius")
_WHOLE = ("depth", "width", "blocks", "widen", "pool_radius")
_RIDGES = 41


def tune(config: RunConfig, session: Session, **own: str | None) -> None:
    """Search for the best numbers, and write the result.

    Args:
        config: configuration of the run to tune.
        session: makes the executor.
        own: the command's own settings; see `commands`.

    Raises:
        ConfigError: if there is nothing to choose, or a setting is invalid.
    """
    config = anchored(config)
    by = own["tune.by"] or "likelihood"
    size, trials = whole("tune.size", own["tune.size"]), whole("tune.trials", own["tune.trials"])
    check_search(by, size, trials)
    if config.kernel.kind in (*GIVEN_KERNELS, "spec", "empirical"):
        raise ConfigError(f"kernel={config.kernel.kind} has no numbers to tune: choose a family, such as kernel=fcn")
    ranges, ridges = _ranges(config.kernel, own), _ridges(own["tune.ridge"])
    name = own["tune.kernel"] or ("nngp" if by == "likelihood" else config.predict.kernels[0])
    if name not in ("nngp", "ntk"):
        raise ConfigError(f"tune.kernel={name} is not one of nngp, ntk")
    problem = _Problem(config, session, by, name, size, ridges, number("tune.held_out", own["tune.held_out"]))
    folder = Path(own["path"] or "./tune").expanduser()
    kept = Kept(folder / "trials.jsonl", problem.about(), problem.targets)

    def tell(line: str, *, force: bool = False, **facts: object) -> None:
        del force, facts
        print(f"tune     {line}", file=sys.stderr)

    found = search(
        ranges,
        problem.evaluate,
        by=by,
        points=problem.points,
        trials=trials,
        seed=whole("tune.seed", own["tune.seed"]),
        kept=kept,
        gradient=problem.gradient(ranges),
        tell=tell,
    )
    print("\n".join(found.table()))
    _write(found, config, ridges, folder)


class _Problem:
    """Trials of one configuration."""

    def __init__(
        self,
        config: RunConfig,
        session: Session,
        by: str,
        name: str,
        size: int,
        ridges: np.ndarray,
        held_out: float,
    ) -> None:
        # Use the first points of the run, because their tiles are part of the run's tiles.
        asked = config.data.train_size
        most = read_shapes(config)[0].n_train if asked is None else asked
        data = dataclasses.replace(config.data, train_size=min(size, most))
        predict = dataclasses.replace(config.predict, train_sizes=(), theory=False, covariance="none", selection="none")
        self._config = dataclasses.replace(config, data=data, predict=predict)
        self._session, self._by, self._name, self._ridges = session, by, name, ridges
        context = self._context(config.kernel)
        n = context.kernels.n
        self.points, self._images = n, context.data
        known = context.data.labels()
        self.targets, self._scale = known.y_train[:n], known.scale
        self._labels = None if known.labels_train is None else known.labels_train[:n]
        self._held_out = held_out_points(held_out, n)
        self._data = context.data.fingerprint

    def _context(self, kernel: KernelConfig) -> Any:
        return prepare(dataclasses.replace(self._config, kernel=kernel), lambda line: None, measure=False)

    def about(self) -> dict[str, Any]:
        """Return everything that determines a trial besides its values and the targets."""
        return {
            "data": [self._data, self.points, self._config.augment],
            "kernel": to_dict(self._config)["kernel"],
            "by": [self._by, self._name, self._held_out],
            "ridges": [float(r) for r in self._ridges],
            "scale": None if self._scale is None else self._scale.tolist(),
        }

    def evaluate(self, values: Values) -> Score:
        """Return the score of a kernel from stored tiles of the training points; missing tiles are computed."""
        context = self._context(with_values(self._config.kernel, values))
        opened: OpenGram = context.opened
        tiles = dataclasses.replace(opened.tiles, blocks=tuple(b for b in opened.tiles.blocks if b.block == "train"))
        training = dataclasses.replace(opened, tiles=tiles)
        training.compute(self._session.executor(context.config))
        matrix = opened.blocks.train(self._name).to_numpy()
        return score(
            matrix,
            self.targets,
            list(self._ridges),
            self._by,
            held_out=self._held_out,
            labels=self._labels,
            scale=self._scale,
        )

    def gradient(self, ranges: Mapping[str, Range]) -> Gradient | None:
        """Return the gradient of the likelihood by w_std and b_std for the NNGP of a plain network on flat inputs.

        Return None for all other kernels.
        """
        free = {name for name, one in ranges.items() if not one.options}
        kernel = self._config.kernel
        plain = self._by == "likelihood" and self._name == "nngp" and self._config.augment == "none"
        if not plain or not free or free > {"w_std", "b_std"} or kernel.kind != "fcn":
            return None
        if any(not one.logarithmic for name, one in ranges.items() if name in free):
            return None
        x = self._images.read("train", 0, self.points).reshape(self.points, -1)

        def of(values: Values) -> Any:
            spec = kernel_spec(with_values(kernel, values), self._images.shape("train")[1:])
            network = plain_network(spec)
            if network is None or not network.depth:
                return None
            made = with_values(kernel, values)
            cost = Evidence(x, self.targets, network.activation, network.depth, biased=made.b_std is not None)
            fixed = np.log([made.w_std, made.b_std or 1.0])

            def at(logs: np.ndarray) -> tuple[float, np.ndarray]:
                whole_logs = np.array([logs[names.index("w_std")] if "w_std" in free else fixed[0], 0.0, logs[-1]])
                whole_logs[1] = logs[names.index("b_std")] if "b_std" in free else fixed[1]
                value, slope = cost(whole_logs)
                kept = [slope[("w_std", "b_std", "ridge").index(name)] for name in names]
                return value, np.array(kept)

            names = (*(name for name in ("w_std", "b_std") if name in free), "ridge")
            return at, names

        return of


def with_values(kernel: KernelConfig, values: Values) -> KernelConfig:
    """Return the kernel with other numbers; `weight_2` and so on are the weights of a sum."""
    weights = {name: value for name, value in values.items() if name.startswith("weight_")}
    own: dict[str, Any] = {
        name: int(value) if name in _WHOLE else value for name, value in values.items() if name not in weights
    }
    if weights:
        own["weights"] = (1.0, *(weights[f"weight_{k + 2}"] for k in range(len(kernel.parts) - 1)))
    return dataclasses.replace(kernel, **own)


def _ranges(kernel: KernelConfig, own: Mapping[str, str | None]) -> dict[str, Range]:
    takes, found = kernel_takes(kernel.kind), {}
    for name in _NUMBERS:
        text = own[f"tune.{name}"]
        if text is None:
            continue
        if name not in takes:
            known = ", ".join(f"tune.{one}" for one in _NUMBERS if one in takes) or "tune.weights"
            raise ConfigError(f"tune.{name} is not available for kernel={kernel.kind}, which has {known}")
        found[name] = Range.of(f"tune.{name}", numbers(f"tune.{name}", text), whole=name in _WHOLE)
        for value in found[name].options or (found[name].low, found[name].high):
            with_values(kernel, {name: value})  # refuses an invalid value before the search
    if (text := own["tune.weights"]) is not None:
        if kernel.kind != "sum" or len(kernel.parts) < 2:
            raise ConfigError("tune.weights needs kernel=sum with several kernel.parts")
        for k in range(2, len(kernel.parts) + 1):
            found[f"weight_{k}"] = Range.of("tune.weights", numbers("tune.weights", text))
    if not found and kernel.kind in COMBINED:
        raise ConfigError("nothing to choose: set tune.weights=[0.01,100] of kernel=sum")
    return found


def _ridges(text: str | None) -> np.ndarray:
    found = numbers("tune.ridge", text)
    if len(found) == 1:
        return np.array(found)
    low, high = min(found), max(found)
    if len(found) > 2:
        return np.array(sorted(found))
    if not 0 < low < high:
        raise ConfigError(f"tune.ridge={text} must be [low,high], both above 0, or a list of ridges")
    return np.geomspace(low, high, _RIDGES)


def _write(found: Tuned, config: RunConfig, ridges: np.ndarray, folder: Path) -> None:
    chosen = to_dict(dataclasses.replace(config, kernel=with_values(config.kernel, found.best)))["kernel"]
    kernel = {name: chosen[name] for name in kernel_takes(config.kernel.kind) if chosen[name] not in ([], {})}
    overlay = {"kernel": kernel, "predict": {"ridges": [found.ridge], "ridge_scale": "relative"}}
    record, experiment = write_tuned(found, folder, overlay)
    lines = [f"chosen       {experiment}"]
    lines.append(f"run with it  ntkpipe run --config-dir {folder} experiment=tuned data={config.data.kind} ...")
    if len(ridges) > 1 and found.ridge in (ridges[0], ridges[-1]):
        lines.append(f"warning      the ridge {found.ridge:.3g} lies at the end of its range: widen tune.ridge")
    for name in found.at_the_end():
        value, setting = found.trials[0].values[name], "weights" if name.startswith("weight_") else name
        lines.append(f"warning      {name}={value:.5g} lies at the end of its range: widen tune.{setting}")
    if not can_draw():
        lines += [f"numbers      {record}   (trials.jsonl beside it)", without_figures("the same command")]
    else:
        with drawing("the same command"):
            from ntkpipe.report.tuning_figure import write_tuning_figure

            names = list(found.ranges)
            png = write_tuning_figure(
                names,
                np.array([[one.values[name] for name in names] for one in found.trials]).reshape(len(found.trials), -1),
                np.array([one.score.value for one in found.trials]),
                found.by,
                logarithmic=[one.logarithmic for one in found.ranges.values()],
                ridges=ridges,
                curve=found.trials[0].score.curve,
                folder=folder,
            )
            lines.append(f"figure       {png}   ({record.name} and trials.jsonl beside it)")
    print("\n" + "\n".join(lines))
