"""What a plan knows of machines: rates, sizes and prices, each with its origin; from a profile's file or a calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from: `data sheet`, `measured` or `assumed`, and what of.

    Args:
        value: in SI units.
        origin: for people.
        processor_seconds: of a fixed cost in seconds, what all processes together compute meanwhile; None is as much as `value`.
    """

    value: float
    origin: str
    processor_seconds: float | None = None

    @property
    def used(self) -> float:
        """Processor seconds of a fixed cost."""
        return self.value if self.processor_seconds is None else self.processor_seconds


@dataclass(frozen=True)
class Machine:
    """N nodes with W workers each, a worker being a GPU or a process; one store; one driver. SI units: flops, bytes, seconds.

    Args:
        name: of the profile.
        nodes, workers: nodes, and workers of each.
        threads, driver_threads: of a worker and of the driver: processor seconds count them all.
        price: of a node per hour.
        matrix_float32, matrix_float64: large matrix products of a worker, flops per second.
        elementwise_float32, elementwise_float64: covariances one by one, flops per second.
        memory_bandwidth: of a worker's memory, bytes per second.
        tile_bandwidth: of products of held tiles with a few vectors on a GPU, bytes of tiles per second; 0 says that workers are CPUs.
        skinny_float32, skinny_float64: the same on a CPU, flops per second; rates are those of all threads of a worker.
        factor_float32, factor_float64: Cholesky of tiles of a worker, flops per second.
        memory: of a worker, bytes for tiles held between passes.
        write_path, read_path: of a worker, bytes per second through checksums and copies to and from the store's client.
        network: of a node, bytes per second.
        latency: of a call from the driver to a worker and back, seconds.
        store_write, store_read: of the whole store, bytes per second.
        node_store: most that one node moves to or from the store, bytes per second.
        requests: that the store answers per second, all nodes together.
        store_latency: seconds of one request.
        cache: bytes that the nodes' page caches together keep of what was written; of a remote store 0.
        task, record: seconds of the driver per task, and per tile of a task.
        orthogonalise: skinny float64 products of the driver, flops per second.
        driver_memory: bytes of the driver's node.
        images: prepared numbers per second, of one process: reading, standardising, hashing, writing.
        start: seconds until workers can be asked for anything.
        first_tile: seconds until they have their first tile: processes, images, compilation.
        first_solve: seconds that the first solve takes besides: float64 compiled.
        pool: seconds until a pool of workers that hold tiles is there.
        step: seconds of the driver per pass for the stopping rule, checkpoints and progress, besides vectors.
        finish: seconds for metrics, figures and the page.
    """

    name: str
    nodes: Figure
    workers: Figure
    threads: Figure
    driver_threads: Figure
    price: Figure
    matrix_float32: Figure
    matrix_float64: Figure
    elementwise_float32: Figure
    elementwise_float64: Figure
    memory_bandwidth: Figure
    tile_bandwidth: Figure
    skinny_float32: Figure
    skinny_float64: Figure
    factor_float32: Figure
    factor_float64: Figure
    memory: Figure
    write_path: Figure
    read_path: Figure
    network: Figure
    latency: Figure
    store_write: Figure
    store_read: Figure
    node_store: Figure
    requests: Figure
    store_latency: Figure
    cache: Figure
    task: Figure
    record: Figure
    orthogonalise: Figure
    driver_memory: Figure
    images: Figure
    start: Figure
    first_tile: Figure
    first_solve: Figure
    pool: Figure
    step: Figure
    finish: Figure

    @property
    def all_workers(self) -> int:
        """Workers of all nodes."""
        return int(self.nodes.value) * int(self.workers.value)

    def rate(self, kind: str, dtype: str) -> float:
        """`matrix`, `elementwise`, `skinny` or `factor`, in `float32` or `float64`."""
        return getattr(self, f"{kind}_{dtype}").value

    def store_bandwidth(self, kind: str) -> float:
        """`read` or `write`, of the store or of all nodes that use it, whichever is less."""
        return min(getattr(self, f"store_{kind}").value, self.nodes.value * self.node_store.value)

    def overridden(self, values: Mapping[str, float]) -> Machine:
        """With some figures of the user's own.

        Raises:
            ConfigError: naming the one that is not known or not in range.
        """
        return self.of(self.name, {**self.figures(), **{k: [v, "yours"] for k, v in values.items()}})

    @classmethod
    def of(cls, name: str, content: Mapping[str, Any]) -> Machine:
        """From plain values: for each field a pair of number and origin.

        Raises:
            ConfigError: naming the field that is missing, unknown or not in range.
        """
        given = {**_USUAL, **{key: value for key, value in content.items() if key != "name"}}
        if unknown := sorted(set(given) - set(FIGURES)):
            raise ConfigError(
                f"profile {name}: no figure is called {', '.join(unknown)}; known are {', '.join(FIGURES)}"
            )
        if missing := [key for key in FIGURES if key not in given]:
            raise ConfigError(f"profile {name} lacks {', '.join(missing)}: give each as [number, origin]")
        return cls(name, **{key: _figure(f"profile.{key}", value) for key, value in given.items()})

    @property
    def accelerated(self) -> bool:
        """Whether workers are GPUs: they move tiles while they compute, and their products are bound by the tiles' bytes."""
        return self.tile_bandwidth.value > 0

    def figures(self) -> dict[str, Figure]:
        """All of them by name."""
        return {key: getattr(self, key) for key in FIGURES}

    def origins(self) -> list[str]:
        """A line per figure, for people."""
        return [f"{key:<20}{getattr(self, key).value:>10.3g}  {getattr(self, key).origin}" for key in FIGURES]

    def kinds_of_origins(self) -> dict[str, int]:
        """How many figures are `measured`, of a `data sheet`, `assumed`, and of other origin."""
        found: dict[str, int] = {}
        for figure in self.figures().values():
            kind = next((kind for kind in ORIGINS if figure.origin.startswith(kind)), "other")
            found[kind] = found.get(kind, 0) + 1
        return found


ORIGINS = ("measured", "data sheet", "assumed")
"""How the origin of a figure begins, unless it follows from the configuration."""

FIGURES = tuple(field.name for field in dataclasses.fields(Machine) if field.name != "name")
"""Names of a machine's figures; `profile.NAME=NUMBER` overrides one."""

# Of profiles that do not say.
_USUAL = {"threads": (1, "assumed"), "driver_threads": (1, "assumed")}

_COUNTS = ("nodes", "workers", "threads", "driver_threads")
_MAY_BE_ZERO = (
    "price",
    "latency",
    "store_latency",
    "cache",
    "task",
    "record",
    "start",
    "first_tile",
    "first_solve",
    "pool",
    "step",
    "finish",
    "skinny_float32",
    "skinny_float64",
    "tile_bandwidth",
)


def _figure(name: str, value: Any) -> Figure:
    if isinstance(value, Figure):
        return value
    if isinstance(value, Mapping):
        value = [value.get("value"), value.get("origin")]
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{name}={value} must be [number, origin]")
    try:
        number = float(value[0])
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={value[0]} must be a number") from None
    key = name.removeprefix("profile.")
    low = number >= 0 if key in _MAY_BE_ZERO else number > 0
    if not math.isfinite(number) or not low or (key in _COUNTS and number != int(number)):
        what = "a whole number above 0" if key in _COUNTS else "at least 0" if key in _MAY_BE_ZERO else "above 0"
        raise ConfigError(f"{name}={value[0]} must be {what}")
    return Figure(number, str(value[1]))


def load_profile(name: str, folder: Path) -> Machine:
    """A profile of `folder`, or the user's own file.

    Args:
        name: of a file in `folder` without `.yaml`, or a path that ends with it.
        folder: `conf/cluster/profile`.

    Raises:
        ConfigError: if there is none, or it is not a mapping of figures.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ConfigError(f"cluster.profile={name}: no such file; there are {there}, or give FILE.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of figures, each [number, origin]")
    return Machine.of(path.stem, content)


_ELSEWHERE = "assumed: measured on two cores of an AMD EPYC"
_ASSUMED: dict[str, tuple[float, str]] = {
    # Inner products of images 73 GF/s over all of CIFAR-10, reading and writing included, rounded down; covariances one by one 6 (wide
    # residual networks, CNN-Vec) to 20 GF/s (CNN-GAP).
    "matrix_float32": (6e10, f"{_ELSEWHERE}, rounded down"),
    "matrix_float64": (3e10, f"{_ELSEWHERE}, rounded down"),
    "elementwise_float32": (1e10, f"{_ELSEWHERE}: 6e9 to 2e10, by network"),
    "elementwise_float64": (5e9, "assumed: half of float32"),
    "memory_bandwidth": (6e9, "assumed: of a core among busy ones"),
    "tile_bandwidth": (0.0, "workers are CPUs"),
    "skinny_float32": (4.5e10, _ELSEWHERE),
    "skinny_float64": (2.8e10, _ELSEWHERE),
    "factor_float32": (8e10, f"{_ELSEWHERE}, tiled"),
    "factor_float64": (4.5e10, f"{_ELSEWHERE}, tiled"),
    "write_path": (5e8, f"{_ELSEWHERE}: cold pages, checksum and copy in one thread"),
    "read_path": (1.5e9, f"{_ELSEWHERE}, from the page cache"),
    "network": (2e9, "assumed: loopback, which is no network"),
    "latency": (1e-3, f"{_ELSEWHERE}, on loopback"),
    "store_write": (3e8, "assumed: a solid-state disk, or a shared file system that others use as well"),
    "store_read": (5e8, "assumed: a solid-state disk, or a shared file system that others use as well"),
    "node_store": (1e12, "no limit of its own"),
    "requests": (1e5, "assumed: a local file system"),
    "store_latency": (1e-4, "assumed: a local file system"),
    "cache": (0.0, "assumed: none"),
    "task": (2.01e-3, f"{_ELSEWHERE}: 466 tasks a second of one tile, 4,189 tiles at twenty"),
    "record": (1.38e-4, f"{_ELSEWHERE}, as task"),
    "orthogonalise": (1.2e10, f"{_ELSEWHERE}: 12 to 28 GF/s"),
    "driver_memory": (1e15, "assumed: no limit"),
    "images": (1.5e7, f"{_ELSEWHERE}: CIFAR-10 decoded, standardised and stored"),
    "start": (5.0, f"{_ELSEWHERE}: 4 to 7 s of Ray"),
    "first_tile": (4.0, "assumed"),
    "first_solve": (2.0, _ELSEWHERE),
    "pool": (3.0, f"{_ELSEWHERE}: up to 5 s"),
    "step": (5e-3, "assumed"),
    "finish": (9.0, _ELSEWHERE),
}
_SCALED = ("matrix", "elementwise", "skinny", "factor")


def assumed_machine(
    workers: int = 1, threads: int = 1, *, serial: bool = True, **known: tuple[float, str] | Figure
) -> Machine:
    """A machine of CPUs that nothing was measured of: what others did, so that an order of magnitude is known.

    Args:
        workers: processes that compute.
        threads: of each; rates of arithmetic grow with them.
        serial: everything runs in one process: nothing is started, and no message is sent.
        known: figures that are known.
    """
    figures: dict[str, Any] = dict(_ASSUMED)
    for name in (f"{kind}_{dtype}" for kind in _SCALED for dtype in ("float32", "float64")):
        value, origin = _ASSUMED[name]
        figures[name] = (threads * value, origin)
    if serial:
        figures |= dict.fromkeys(("start", "pool", "latency", "task"), (0.0, "one process"))
    figures |= {
        "nodes": (1, "this machine"),
        "workers": (workers, "cluster.workers"),
        "threads": (threads, "cluster.threads_per_worker"),
        "driver_threads": (threads if serial else 1, "assumed"),
        "price": (0.0, "not known"),
        "memory": (1e15, "assumed: no limit"),
    }
    return Machine.of("this machine", figures | known)
