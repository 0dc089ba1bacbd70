"""The setting of a validation: networks at every width, points, steps, rates, and the infinite network's kernels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.finite.initialisers import widened
from ntkpipe.finite.network import network
from ntkpipe.gram.from_config import kernel_spec
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.limits import free_memory
from ntkpipe.run.context import RunContext
from ntkpipe.units import human_bytes

# Largest number of networks in a task. A stopped run keeps finished tasks.
_LARGEST_CHUNK = 10
PATH = 25
"""Number of points between two images."""
_WEIGHTED = ("dense", "conv", "global_self_attention")


@dataclass(frozen=True, eq=False)
class Points:
    """Training points, test points, and points between two training images.

    Args:
        x: training points, `(n, ...)`.
        y: targets, `(n, c)` float64.
        labels: classes, `(n,)`, or None.
        test: test points, `(p, ...)`.
        test_target: targets of the test points, `(p, c)` float64.
        test_labels: classes of the test points, `(p,)`, or None.
        path: points from one training image to another, `(q, ...)`.
        places: positions of these points on the path, from 0 to 1, `(q,)`.
        ends: indices of the two images among the training points.
        class_names: names of the outputs.
    """

    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None
    test: np.ndarray
    test_target: np.ndarray
    test_labels: np.ndarray | None
    path: np.ndarray
    places: np.ndarray
    ends: tuple[int, int]
    class_names: tuple[str, ...]

    @property
    def others(self) -> np.ndarray:
        """The test points, followed by the points of the path."""
        return np.concatenate([self.test, self.path])


@dataclass(frozen=True, eq=False)
class Reference:
    """Kernels of the infinite network: K of its initial outputs, and T of its training.

    Both are equal if only the readout is trained. The q other points are the test points and the path.

    Args:
        ntk: T among the training points, `(n, n)` float64.
        ntk_others: T between the other and the training points, `(q, n)`.
        nngp: K among the training points, `(n, n)`.
        nngp_others: K between the other and the training points, `(q, n)`.
        nngp_own: K among the other points, `(q, q)`.
        rate: learning rate per step. In the standard parameterisation it is scaled, so that its ratio to the largest
            stable rate is that of the run.
    """

    ntk: np.ndarray
    ntk_others: np.ndarray
    nngp: np.ndarray
    nngp_others: np.ndarray
    nngp_own: np.ndarray
    rate: float

    @property
    def largest(self) -> float:
        """The largest eigenvalue of T."""
        return float(np.linalg.eigvalsh(self.ntk)[-1])


def check_setting(config: RunConfig) -> None:
    """Check the settings that can be checked without data.

    Raises:
        ConfigError: if a setting is impossible, naming the setting.
    """
    finite = config.finite
    if config.kernel.kind in ("gram", "empirical"):
        raise ConfigError(
            f"ntkpipe validate needs the layers of an infinite network, which kernel={config.kernel.kind} does not "
            "have: set kernel=spec kernel.path=FILE, or a family such as kernel=fcn"
        )
    if config.augment != "none":
        raise ConfigError("ntkpipe validate trains on the images without augmentation: set augment=none")
    if config.predict.initial != "zero":
        raise ConfigError(
            "ntkpipe validate compares random networks, which start at zero on average: leave predict.initial out"
        )
    if config.predict.train_sizes or config.kernel.readout_depths:
        raise ConfigError(
            "ntkpipe validate takes one training size and one depth: leave predict.train_sizes and readout_depths out"
        )
    if finite.trained == "readout" and config.kernel.parameterization == "standard":
        raise ConfigError("finite.trained=readout is for kernel.parameterization=ntk")
    if finite.trained == "readout" and finite.rates:
        raise ConfigError("finite.rates is for networks whose layers are all trained: set finite.trained=network")
    if finite.rates and len(finite.output_scale) > 1:
        raise ConfigError(
            "finite.rates and several values of finite.output_scale are separate studies: give one of them"
        )


def steps_of(config: RunConfig) -> tuple[int, ...]:
    """Return the steps at which networks are evaluated, from 0 on: the run's finite times, or a logarithmic grid.

    Raises:
        ConfigError: if a time is not a whole number of steps.
    """
    times = config.predict.times
    if times is None or not any(0 < t < math.inf for t in times):
        last = config.finite.steps
        grid = {round(m * 10**k) for k in range(12) for m in (1, 2, 5) if m * 10**k < last}
        return (0, *sorted(grid), last)
    for t in times:
        if math.isfinite(t) and t != int(t):
            raise ConfigError(
                f"predict.times={t:g}: finite networks are trained in whole steps, so ntkpipe validate needs finite "
                "whole times"
            )
    return tuple(sorted({0, *(int(t) for t in times if math.isfinite(t))}))


def momentum_of(config: RunConfig) -> float:
    """Return the momentum of the networks' training."""
    return config.predict.momentum if config.predict.dynamics == "momentum" else 0.0


def spec_of_width(config: RunConfig, shape: Sequence[int], width: int, outputs: int) -> list[dict[str, Any]]:
    """Return the layers at a width, with as many outputs as there are targets.

    Raises:
        ConfigError: if a layer has no finite form, naming the layer, or if the outputs do not fit the targets.
    """
    spec = kernel_spec(config.kernel, tuple(shape))
    hidden = _features(spec[:-1])
    made = widened(spec, width / min(hidden)) if hidden else spec
    if made[-1]["op"] == "dense":
        made[-1] = {**made[-1], "features": outputs}
    found = network(made, tuple(shape))
    if found.outputs != outputs:
        raise ConfigError(
            f"the network has {found.outputs} outputs and the targets have {outputs}: end the layers with a dense "
            f"layer of {outputs} outputs"
        )
    if found.masks:
        raise ConfigError(
            "networks with dropout draw new masks at every step, which no kernel describes: set the dropout layers' "
            "rate to 1"
        )
    return made


def _features(layers: Sequence[dict[str, Any]]) -> list[int]:
    found: list[int] = []
    for layer in layers:
        for branch in layer.get("branches", ()):
            found += _features(branch)
        if layer["op"] in _WEIGHTED:
            found.append(int(layer.get("features") or layer.get("n_chan_out") or 0))
    return [one for one in found if one > 0]


def points_of(context: RunContext) -> Points:
    """Return all points of the validation.

    Raises:
        ConfigError: if finite.between names a training image that does not exist.
    """
    data, known = context.data, context.points
    n, p = context.kernels.n, context.kernels.p
    labels = data.labels()
    x, test = data.read("train", 0, n), data.read("test", 0, p)
    of_train = None if labels.labels_train is None else labels.labels_train[:n]
    first, second = _ends(context.config.finite.between, of_train, n)
    places = np.linspace(0.0, 1.0, PATH)
    shape = (-1, *(1,) * (x.ndim - 1))
    share = places.reshape(shape).astype(x.dtype)
    assert known is not None
    return Points(
        x,
        labels.y_train[:n].astype(np.float64),
        of_train,
        test,
        _coded(known.target, known.mean, known.scale),
        known.label,
        (1 - share) * x[first] + share * x[second],
        places,
        (first, second),
        known.class_names,
    )


def _coded(target: np.ndarray, mean: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    """Return the targets in the units of the training targets."""
    return target if scale is None or mean is None else (target - mean) / scale


def _ends(between: tuple[int, ...], labels: np.ndarray | None, n: int) -> tuple[int, int]:
    if between:
        if max(between) >= n:
            raise ConfigError(f"finite.between={list(between)} must name two of {n} training points, counted from 0")
        return between[0], between[1]
    if labels is None or (labels == labels[0]).all():
        return 0, min(1, n - 1)
    return 0, int(np.argmax(labels != labels[0]))


def reference_of(context: RunContext, points: Points, width: int, spec: list[dict[str, Any]]) -> Reference:
    """Return the infinite network's kernels.

    They come from the run's tiles. In the standard parameterisation they are evaluated at this width.
    """
    config, others = context.config, points.others
    architecture = Architecture.from_spec(spec)
    far = architecture(others, points.x, layout="NHWC")
    own = _float64(architecture(others, layout="NHWC").nngp)
    tiles = {name: _float64(context.kernels.train(name).to_numpy()) for name in ("ntk", "nngp")}
    rate = config.predict.learning_rate
    ntk, nngp = tiles["ntk"], tiles["nngp"]
    if config.kernel.parameterization == "standard":
        near = architecture(points.x, layout="NHWC")
        rate *= float(np.linalg.eigvalsh(ntk)[-1] / np.linalg.eigvalsh(_float64(near.ntk))[-1])
        ntk, nngp = _float64(near.ntk), _float64(near.nngp)
    ntk_others, nngp_others = _float64(far.ntk), _float64(far.nngp)
    if config.kernel.parameterization != "standard":
        p = len(points.test)
        ntk_others[:p] = _float64(context.kernels.test("ntk").to_numpy())
        nngp_others[:p] = _float64(context.kernels.test("nngp").to_numpy())
    if config.finite.trained == "readout":
        return Reference(nngp, nngp_others, nngp, nngp_others, own, rate)
    return Reference(ntk, ntk_others, nngp, nngp_others, own, rate)


def _float64(array: Any) -> np.ndarray:
    return np.array(array, dtype=np.float64)


@dataclass(frozen=True)
class Chunk:
    """Networks of one width that are trained together.

    Args:
        width: width of the narrowest hidden layer.
        first: index of the first network.
        stop: index after the last network.
    """

    width: int
    first: int
    stop: int


def chunks_of(config: RunConfig, shape: Sequence[int], n: int, q: int, outputs: int, workers: int) -> tuple[Chunk, ...]:
    """Return all chunks, the widest networks first.

    They depend only on the settings, so a resumed run has the same chunks.

    Args:
        config: configuration of the run.
        shape: shape of an image.
        n: number of training points.
        q: number of other points.
        outputs: number c of outputs.
        workers: number of processes that train at the same time.

    Raises:
        ResourceError: if one network does not fit into `finite.memory_gib`, or if all networks that are trained at the
            same time do not fit into memory.
    """
    finite, itemsize = config.finite, np.dtype(config.kernel.dtype).itemsize
    made, largest = [], 0
    for width in sorted(finite.widths, reverse=True):
        held = network(spec_of_width(config, shape, width, outputs), tuple(shape))
        of_one = sum(int(np.prod(h)) for h in (*held.inputs, *held.signals))
        member = itemsize * (5 * held.parameters + 3 * of_one * n + of_one * q)
        # Memory for the signals of every output of every image, the kernel of all pairs of outputs, and its copies.
        full = finite.linearised and finite.trained == "network" and not finite.rates
        rows = outputs if full else 1
        kernel = itemsize * (3 * (n * rows) ** 2 + 2 * n * rows * q * rows + 2 * (n + q) * outputs * of_one)
        if max(member, kernel) > finite.memory_bytes:
            raise ResourceError(
                f"one network of width {width} needs {human_bytes(max(member, kernel))} for {n:,} training points and "
                f"{outputs} outputs, but finite.memory_gib={finite.memory_gib:g}: raise it, or use fewer points "
                "(data.train_size) or narrower networks"
                + (
                    "; without its linearisation (finite.linearised=false) it takes " + human_bytes(member)
                    if kernel > member
                    else ""
                )
            )
        size = max(1, min(finite.networks, _LARGEST_CHUNK, finite.memory_bytes // member))
        largest = max(largest, size * member, kernel)
        count = -(-finite.networks // size)
        edges = [round(k * finite.networks / count) for k in range(count + 1)]
        made += [Chunk(width, a, b) for a, b in itertools.pairwise(edges)]
    if (wanted := workers * largest) > (room := free_memory()):
        raise ResourceError(
            f"{workers} workers that train networks at the same time need {human_bytes(wanted)}, and "
            f"{human_bytes(room)} are free: lower finite.memory_gib or cluster.workers"
        )
    return tuple(made)


def plain(finite: Any) -> dict[str, Any]:
    """Return settings as plain values, for a digest."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(finite).items()
    }
