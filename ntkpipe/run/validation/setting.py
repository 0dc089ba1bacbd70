"""What is trained and what it is compared with: networks at every width, points, steps, rates, and the infinite network's kernels."""

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

# Networks of one task, at most: what is done when a run is stopped is kept by tasks.
_LARGEST_CHUNK = 10
PATH = 25
"""Points between two images."""
_WEIGHTED = ("dense", "conv", "global_self_attention")


@dataclass(frozen=True, eq=False)
class Points:
    """Training points, test points, and points between two training images.

    Args:
        x: (n, ...) training points.
        y: (n, c) targets, float64.
        labels: (n,) classes, or None.
        test: (p, ...).
        test_target: (p, c) float64.
        test_labels: (p,) or None.
        path: (q, ...) from one training image to another.
        places: (q,) from 0 to 1.
        ends: places of the two images among the training points.
        class_names: of the outputs.
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
        """Test points and those of the path, in this order."""
        return np.concatenate([self.test, self.path])


@dataclass(frozen=True, eq=False)
class Reference:
    """Kernels of the infinite network: K of its outputs at the start, T of its training; equal where the readout alone is trained.

    Args:
        ntk: (n, n) float64.
        ntk_others: (q, n) of test points and those of the path.
        nngp: (n, n).
        nngp_others: (q, n).
        nngp_own: (q, q).
        rate: of a step: of the run, or in the standard parameterisation as much as keeps its share of the stable rate.
    """

    ntk: np.ndarray
    ntk_others: np.ndarray
    nngp: np.ndarray
    nngp_others: np.ndarray
    nngp_own: np.ndarray
    rate: float

    @property
    def largest(self) -> float:
        """Eigenvalue of T."""
        return float(np.linalg.eigvalsh(self.ntk)[-1])


def check_setting(config: RunConfig) -> None:
    """Refuse what no data is needed for.

    Raises:
        ConfigError: naming the setting.
    """
    finite = config.finite
    if config.kernel.kind in ("gram", "empirical"):
        raise ConfigError(
            f"ntkpipe validate trains finite networks with the layers of an infinite one, and kernel={config.kernel.kind} is none: "
            "give the layers by kernel=spec kernel.path=FILE, or a family such as kernel=fcn"
        )
    if config.augment != "none":
        raise ConfigError("ntkpipe validate trains on the images alone: set augment=none")
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
        raise ConfigError("finite.rates and several finite.output_scale are two studies: give one of them")


def steps_of(config: RunConfig) -> tuple[int, ...]:
    """Steps at which networks are looked at: the run's finite times, or a logarithmic grid; from 0 on.

    Raises:
        ConfigError: if a time is no whole number of steps.
    """
    times = config.predict.times
    if times is None or not any(0 < t < math.inf for t in times):
        last = config.finite.steps
        grid = {round(m * 10**k) for k in range(12) for m in (1, 2, 5) if m * 10**k < last}
        return (0, *sorted(grid), last)
    for t in times:
        if math.isfinite(t) and t != int(t):
            raise ConfigError(
                f"predict.times={t:g}: networks are trained in whole steps; give such times to ntkpipe validate"
            )
    return tuple(sorted({0, *(int(t) for t in times if math.isfinite(t))}))


def momentum_of(config: RunConfig) -> float:
    """Of the networks' training."""
    return config.predict.momentum if config.predict.dynamics == "momentum" else 0.0


def spec_of_width(config: RunConfig, shape: Sequence[int], width: int, outputs: int) -> list[dict[str, Any]]:
    """The layers at a width, with as many outputs as there are targets.

    Raises:
        ConfigError: naming the layer that has no finite form.
    """
    spec = kernel_spec(config.kernel, tuple(shape))
    hidden = _features(spec[:-1])
    made = widened(spec, width / min(hidden)) if hidden else spec
    if made[-1]["op"] == "dense":
        made[-1] = {**made[-1], "features": outputs}
    found = network(made, tuple(shape))
    if found.outputs != outputs:
        raise ConfigError(
            f"the network has {found.outputs} outputs and the targets {outputs}: end the layers with a dense one"
        )
    if found.masks:
        raise ConfigError(
            "networks with dropout draw masks at every step, which no kernel describes: set its rate to 1"
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
    """All points of the run.

    Raises:
        ConfigError: if an image between which members are to be shown is not there.
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
    """Targets in the units of the training targets."""
    return target if scale is None or mean is None else (target - mean) / scale


def _ends(between: tuple[int, ...], labels: np.ndarray | None, n: int) -> tuple[int, int]:
    if between:
        if max(between) >= n:
            raise ConfigError(f"finite.between={list(between)}: there are {n} training points")
        return between[0], between[1]
    if labels is None or (labels == labels[0]).all():
        return 0, min(1, n - 1)
    return 0, int(np.argmax(labels != labels[0]))


def reference_of(context: RunContext, points: Points, width: int, spec: list[dict[str, Any]]) -> Reference:
    """The infinite network's kernels: from the run's tiles, or in the standard parameterisation evaluated at this width."""
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
        width: of the narrowest hidden layer.
        first: of the networks.
        stop: behind the last.
    """

    width: int
    first: int
    stop: int


def chunks_of(config: RunConfig, shape: Sequence[int], n: int, q: int, outputs: int, workers: int) -> tuple[Chunk, ...]:
    """All chunks, the widest networks first: by the settings alone, so that a run that goes on has the same.

    Args:
        config: of the run.
        shape: of an image.
        n: training points.
        q: further points.
        outputs: c.
        workers: processes that train at the same time.

    Raises:
        ResourceError: if one network does not fit into `finite.memory_gib`, or all that are trained at the same time into memory.
    """
    finite, itemsize = config.finite, np.dtype(config.kernel.dtype).itemsize
    made, largest = [], 0
    for width in sorted(finite.widths, reverse=True):
        held = network(spec_of_width(config, shape, width, outputs), tuple(shape))
        of_one = sum(int(np.prod(h)) for h in (*held.inputs, *held.signals))
        member = itemsize * (5 * held.parameters + 3 * of_one * n + of_one * q)
        # Signals of every output of every image, the kernel of all pairs of outputs, and its copies.
        full = finite.linearised and finite.trained == "network" and not finite.rates
        rows = outputs if full else 1
        kernel = itemsize * (3 * (n * rows) ** 2 + 2 * n * rows * q * rows + 2 * (n + q) * outputs * of_one)
        if max(member, kernel) > finite.memory_bytes:
            raise ResourceError(
                f"one network of width {width} takes {human_bytes(max(member, kernel))} with {n:,} training points and {outputs} outputs, "
                f"and finite.memory_gib={finite.memory_gib:g}: allow more, or take fewer points (data.train_size) or narrower networks"
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
            f"{workers} workers train networks at the same time, which takes {human_bytes(wanted)} of {human_bytes(room)} that are free: "
            "lower finite.memory_gib or cluster.workers"
        )
    return tuple(made)


def plain(finite: Any) -> dict[str, Any]:
    """Settings as plain values, for a digest."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(finite).items()
    }
