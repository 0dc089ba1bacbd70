"""The validation stage, which runs chunks of networks on an executor and stores each finished chunk."""

from __future__ import annotations

import dataclasses
import math
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.config import FiniteConfig, RunConfig, to_dict
from ntkpipe.dynamics.filters import GradientDescent
from ntkpipe.dynamics.heavy_ball import HeavyBall
from ntkpipe.errors import ConfigError
from ntkpipe.events.event import Tell
from ntkpipe.finite.ensemble import Training
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.validation.setting import (
    PATH,
    Chunk,
    Points,
    Reference,
    chunks_of,
    momentum_of,
    plain,
    points_of,
    reference_of,
    spec_of_width,
    steps_of,
)
from ntkpipe.run.validation.tasks import Arrays, Job, kernels_task, rates_task, training_task
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.replace import replacing
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.units import human_seconds

_VERSION = 1
_NAMED = 8


@dataclass(frozen=True, eq=False)
class Setting:
    """The networks to train, and the infinite network to compare them with.

    Args:
        config: configuration of the run.
        points: points of the validation.
        steps: steps at which networks are evaluated.
        filter: filter of the infinite network's training in the same steps, by width.
        references: kernels of the infinite network, by width.
        jobs: arguments of the tasks, by width.
        chunks: chunks of networks.
        folder: folder of finished chunks.
    """

    config: RunConfig
    points: Points
    steps: tuple[int, ...]
    filter: dict[int, GradientDescent]
    references: dict[int, Reference]
    jobs: dict[int, Job]
    chunks: tuple[Chunk, ...]
    folder: Path

    @property
    def finite(self) -> FiniteConfig:
        """Settings of the networks."""
        return self.config.finite

    def of_width(self, width: int) -> list[Chunk]:
        """Return the chunks of a width, in the order of the networks."""
        return sorted((one for one in self.chunks if one.width == width), key=lambda one: one.first)

    def gathered(self, kind: str, width: int, axis: dict[str, int]) -> Arrays:
        """Return the arrays of all networks of a width, joined along the axis of the networks.

        Args:
            kind: kind of the tasks: `kernels`, `training` or `rates`.
            width: width of the networks.
            axis: axis of the networks in each array, by name; it is 1 for all other arrays.
        """
        parts = [load(self.folder, kind, chunk) for chunk in self.of_width(width)]
        found = [one for one in parts if one is not None]
        assert len(found) == len(parts), "a finished chunk is kept"
        return {name: np.concatenate([one[name] for one in found], axis=axis.get(name, 1)) for name in found[0]}


def set_up(run: RunDir, context: RunContext, workers: int) -> Setting:
    """Check the settings and prepare the validation, without training.

    Raises:
        ConfigError: if a setting is impossible or a layer has no finite form, naming it.
        ResourceError: if networks do not fit into memory.
    """
    config, finite = context.config, context.config.finite
    n, p = context.kernels.n, context.kernels.p
    shape, outputs = context.data.shape("train")[1:], context.data.labels().y_train.shape[1]
    specs = {width: spec_of_width(config, shape, width, outputs) for width in finite.widths}
    if finite.loss == "cross_entropy" and context.data.labels().labels_train is None:
        raise ConfigError(
            "finite.loss=cross_entropy needs classes, and these targets are real numbers: set finite.loss=squared"
        )
    if finite.batch_size is not None and finite.batch_size > n:
        raise ConfigError(f"finite.batch_size={finite.batch_size} exceeds the number of training points, {n}")
    chunks = chunks_of(config, shape, n, p + PATH, outputs, workers)
    points = points_of(context)
    references = {width: reference_of(context, points, width, specs[width]) for width in finite.widths}
    steps, momentum = steps_of(config), momentum_of(config)
    c = points.y.shape[1]

    def training(width: int) -> Training:
        return Training(
            references[width].rate, steps, momentum, finite.trained == "readout", 1.0, finite.centred, finite.batch_size, finite.loss,
            finite.seed,
        )  # fmt: skip

    jobs = {
        width: Job(
            specs[width], points.x, points.y, points.others, references[width].ntk, training(width), finite.output_scale, finite.seed,
            finite.initialiser, _linearised(finite),
        )
        for width in finite.widths
    }  # fmt: skip
    filters = {
        width: HeavyBall(n, c, one.rate, momentum) if momentum else GradientDescent(n, c, one.rate)
        for width, one in references.items()
    }
    told = to_dict(config)
    key = digest(
        {
            "version": _VERSION,
            "finite": plain(finite),
            "kernel": told["kernel"],
            "rate": [config.predict.learning_rate, momentum],
            "steps": steps,
            "data": [context.data.fingerprint, context.data.labels_key, n, p],
            "stored": config.store_dtype,
        }
    )
    return Setting(config, points, steps, filters, references, jobs, chunks, run.path / "validation" / key[:12])


def _linearised(finite: FiniteConfig) -> bool:
    """Return whether linearisations are trained.

    Outside the theorem, a linearised network does not train as a linear model on squared loss.
    """
    return finite.in_theorem and (finite.linearised or finite.trained == "readout")


def train(setting: Setting, executor: Executor, tell: Tell) -> None:
    """Train all unfinished chunks: first kernels and linearisations, then networks if every rate is stable.

    Raises:
        ConfigError: if the rate is too large for some networks, naming these.
    """
    finite = setting.finite
    if finite.rates:
        _run(setting, "rates", executor, tell, "networks at large rates")
        return
    _run(setting, "kernels", executor, tell, "networks' kernels")
    _check_rates(setting)
    _run(setting, "training", executor, tell, "networks trained")


_TASKS = {"kernels": kernels_task, "training": training_task, "rates": rates_task}


def _run(setting: Setting, kind: str, executor: Executor, tell: Tell, what: str) -> None:
    left = [chunk for chunk in setting.chunks if load(setting.folder, kind, chunk) is None]
    total = sum(chunk.stop - chunk.first for chunk in setting.chunks)
    done = total - sum(chunk.stop - chunk.first for chunk in left)
    began, at_start = time.monotonic(), done
    tell(f"{done:,} of {total:,} {what}", done=done, total=total)
    for chunk, arrays in values_of(executor, _tasks(setting, kind, left)):
        _keep(setting.folder, kind, chunk, arrays)
        done += chunk.stop - chunk.first
        seconds = time.monotonic() - began
        rest = (total - done) * seconds / max(done - at_start, 1)
        tell(
            f"{done:,} of {total:,} {what}, width {chunk.width}"
            + (f", {human_seconds(rest)} to go" if done < total else ""),
            force=done == total,
            done=done,
            total=total,
        )


def _tasks(setting: Setting, kind: str, chunks: Sequence[Chunk]) -> Iterator[Task]:
    for chunk in chunks:
        more = (setting.finite.rates,) if kind == "rates" else ()
        yield Task(chunk, _TASKS[kind], (setting.jobs[chunk.width], chunk, *more))


def _check_rates(setting: Setting) -> None:
    """Refuse rates that are unstable for the kernels of some networks, before any training."""
    momentum = momentum_of(setting.config)
    limit = 2.0 * (1.0 + momentum)
    lines, highest = [], 0.0
    for width in setting.finite.widths:
        shares = (
            setting.references[width].rate
            * setting.gathered("kernels", width, {"curvature": 0, "deviation": 0})["curvature"]
        )
        beyond = np.flatnonzero(shares >= limit)
        highest = max(highest, float(shares.max()))
        if len(beyond):
            named = ", ".join(f"{k} ({shares[k]:.3g})" for k in beyond[:_NAMED])
            more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
            lines.append(f"  width {width}: {named}{more}")
    if lines:
        rate = setting.config.predict.learning_rate
        raise ConfigError(
            f"predict.learning_rate={rate:g} is too large for some networks. Their learning rate times curvature (in "
            f"brackets) is at least {limit:g}, so linear training diverges:\n" + "\n".join(lines) + "\n"
            f"Nothing was trained. Set predict.learning_rate={_below(0.5 * limit * rate / highest)}, or study large "
            "rates with finite.rates=[0.5,1.5,2.5,3.5,4.2]"
        )


def _below(value: float) -> str:
    """Return a value rounded down to one digit, as text."""
    unit = 10.0 ** math.floor(math.log10(value))
    return f"{math.floor(value / unit) * unit:g}"


def chunk_file(folder: Path, kind: str, chunk: Chunk) -> Path:
    """Return the path of a chunk's file."""
    return folder / f"{kind}-width{chunk.width}-{chunk.first:05d}-{chunk.stop:05d}.npz"


def _keep(folder: Path, kind: str, chunk: Chunk, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(chunk_file(folder, kind, chunk)) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def load(folder: Path, kind: str, chunk: Chunk) -> Arrays | None:
    """Return the arrays of a finished chunk, or None if its file is absent or damaged and must be recomputed.

    Every array in the file has a checksum.
    """
    try:
        with chunk_file(folder, kind, chunk).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def settings_of(setting: Setting) -> dict[str, Any]:
    """Return the settings of the comparison as plain values."""
    return {
        "finite": plain(setting.finite),
        "kernel": dataclasses.asdict(setting.config.kernel),
        "steps": list(setting.steps),
        "momentum": momentum_of(setting.config),
        "rates": {str(width): one.rate for width, one in setting.references.items()},
        "n_train": len(setting.points.x),
        "n_test": len(setting.points.test),
        "between": list(setting.points.ends),
    }
