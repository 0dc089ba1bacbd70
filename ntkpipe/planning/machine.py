"""Figures of machines for plans: rates, sizes and prices, each with its origin, from a profile or a calibration."""

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
    """A number and its origin: `data sheet`, `measured` or `assumed`, with details.

    Args:
        value: the number in SI units.
        origin: origin of the number, as text.
        processor_seconds: for a fixed cost in seconds, the processor seconds of all processes together; None is
            `value`.
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
    """Nodes with several workers each, one store and one driver. A worker is a GPU or a process.

    All units are SI units: flops, bytes and seconds. Rates of a worker are those of all its threads together.

    Args:
        name: name of the profile.
        nodes, workers: number of nodes, and of workers on each node.
        threads, driver_threads: threads of a worker and of the driver, which all count in processor seconds.
        price: price of a node per hour.
        matrix_float32, matrix_float64: rate of a worker in large matrix products, flops per second.
        elementwise_float32, elementwise_float64: rate of a worker in elementwise covariances, flops per second.
        memory_bandwidth: bandwidth of a worker's memory, bytes per second.
        tile_bandwidth: bytes of tiles per second in products of held tiles with a few vectors on a GPU; 0 means that
            workers are CPUs.
        skinny_float32, skinny_float64: rate of these products on a CPU, flops per second.
        factor_float32, factor_float64: rate of a worker in Cholesky factorisations of tiles, flops per second.
        memory: memory of a worker for tiles that it holds between passes, bytes.
        write_path, read_path: bytes per second of a worker to and from the store's client, with checksums and copies.
        network: bandwidth of a node's network, bytes per second.
        latency: seconds of a call from the driver to a worker and back.
        store_write, store_read: bandwidth of the whole store, bytes per second.
        node_store: largest bandwidth between one node and the store, bytes per second.
        requests: requests that the store answers per second, for all nodes together.
        store_latency: seconds of one request.
        cache: bytes of written tiles that the page caches of all nodes keep; 0 for a remote store.
        task, record: seconds of the driver per task, and per tile of a task.
        orthogonalise: rate of the driver in skinny float64 products, flops per second.
        driver_memory: memory of the driver's node, bytes.
        images: numbers per second that one process prepares: reading, standardising, hashing and writing.
        start: seconds until workers accept calls.
        first_tile: seconds until workers begin their first tile: processes, images and compilation.
        first_solve: additional seconds of the first solve, for compilation in float64.
        pool: seconds until a pool of workers that hold tiles is ready.
        step: seconds of the driver per pass for the stopping rule, checkpoints and progress, without vectors.
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
        """Number of workers of all nodes."""
        return int(self.nodes.value) * int(self.workers.value)

    def rate(self, kind: str, dtype: str) -> float:
        """Return the rate `matrix`, `elementwise`, `skinny` or `factor` in `float32` or `float64`, flops per second."""
        return getattr(self, f"{kind}_{dtype}").value

    def store_bandwidth(self, kind: str) -> float:
        """Return the `read` or `write` bandwidth in bytes per second: the smaller of the store's and the nodes'."""
        return min(getattr(self, f"store_{kind}").value, self.nodes.value * self.node_store.value)

    def overridden(self, values: Mapping[str, float]) -> Machine:
        """Return the machine with some figures replaced by the user's.

        Raises:
            ConfigError: if a figure is unknown or invalid, naming it.
        """
        return self.of(self.name, {**self.figures(), **{k: [v, "yours"] for k, v in values.items()}})

    @classmethod
    def of(cls, name: str, content: Mapping[str, Any]) -> Machine:
        """Return a machine from plain values: a pair of number and origin for each field.

        Raises:
            ConfigError: if a field is missing, unknown or out of range, naming it.
        """
        given = {**_USUAL, **{key: value for key, value in content.items() if key != "name"}}
        if unknown := sorted(set(given) - set(FIGURES)):
            raise ConfigError(f"profile {name}: unknown figures {', '.join(unknown)}; known: {', '.join(FIGURES)}")
        if missing := [key for key in FIGURES if key not in given]:
            raise ConfigError(f"profile {name} lacks {', '.join(missing)}: give each as [number, origin]")
        return cls(name, **{key: _figure(f"profile.{key}", value) for key, value in given.items()})

    @property
    def accelerated(self) -> bool:
        """Whether workers are GPUs.

        GPUs move tiles while they compute, and the bytes of the tiles limit their products.
        """
        return self.tile_bandwidth.value > 0

    def figures(self) -> dict[str, Figure]:
        """All figures by name."""
        return {key: getattr(self, key) for key in FIGURES}

    def origins(self) -> list[str]:
        """Return one line per figure, with its origin."""
        return [f"{key:<20}{getattr(self, key).value:>10.3g}  {getattr(self, key).origin}" for key in FIGURES]

    def kinds_of_origins(self) -> dict[str, int]:
        """Return the number of figures of each origin: `measured`, `data sheet`, `assumed`, other."""
        found: dict[str, int] = {}
        for figure in self.figures().values():
            kind = next((kind for kind in ORIGINS if figure.origin.startswith(kind)), "other")
            found[kind] = found.get(kind, 0) + 1
        return found


ORIGINS = ("measured", "data sheet", "assumed")
"""First words of the origin of a figure, unless the figure follows from the configuration."""

FIGURES = tuple(field.name for field in dataclasses.fields(Machine) if field.name != "name")
"""Names of a machine's figures; `profile.NAME=NUMBER` overrides one."""

# Values for profiles that do not set them.
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
    """Return the machine of a profile in `folder`, or of the user's own file.

    Args:
        name: name of a file in `folder` without `.yaml`, or a path that ends with `.yaml`.
        folder: the folder `conf/cluster/profile`.

    Raises:
        ConfigError: if there is no such file, or it is not a mapping of figures.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ConfigError(
            f"cluster.profile={name}: no such profile; choose one of {there}, or give your own FILE.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of figures, each [number, origin]")
    return Machine.of(path.stem, content)


_ELSEWHERE = "assumed: measured on two cores of an AMD EPYC"
_ASSUMED: dict[str, tuple[float, str]] = {
    # Inner products of images reach 73 GF/s over all of CIFAR-10, including reading and writing; the figure is rounded
    # down. Elementwise covariances reach 6 (wide residual networks, CNN-Vec) to 20 GF/s (CNN-GAP).
    "matrix_float32": (6e10, f"{_ELSEWHERE}, rounded down"),
    "matrix_float64": (3e10, f"{_ELSEWHERE}, rounded down"),
    "elementwise_float32": (1e10, f"{_ELSEWHERE}: 6e9 to 2e10, by network"),
    "elementwise_float64": (5e9, "assumed: half of float32"),
    "memory_bandwidth": (6e9, "assumed: one core while all cores are busy"),
    "tile_bandwidth": (0.0, "workers are CPUs"),
    "skinny_float32": (4.5e10, _ELSEWHERE),
    "skinny_float64": (2.8e10, _ELSEWHERE),
    "factor_float32": (8e10, f"{_ELSEWHERE}, tiled"),
    "factor_float64": (4.5e10, f"{_ELSEWHERE}, tiled"),
    "write_path": (5e8, f"{_ELSEWHERE}: cold pages, checksum and copy in one thread"),
    "read_path": (1.5e9, f"{_ELSEWHERE}, from the page cache"),
    "network": (2e9, "assumed: loopback, not a network"),
    "latency": (1e-3, f"{_ELSEWHERE}, on loopback"),
    "store_write": (3e8, "assumed: a solid-state disk, or a shared file system in use by others"),
    "store_read": (5e8, "assumed: a solid-state disk, or a shared file system in use by others"),
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
    """Return a machine of CPUs without measurements, with figures of other machines.

    The figures are right to an order of magnitude.

    Args:
        workers: number of processes that compute.
        threads: threads of each process; rates of arithmetic grow with them.
        serial: whether everything runs in one process, without start-up or messages.
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
