"""Calibrations: measured figures of a machine in the store, one record per kind of machine and number of workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.errors import CorruptionError
from ntkpipe.planning.machine import FIGURES, Figure
from ntkpipe.planning.probes import circumstances
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tiles.record import seal, unseal
from ntkpipe.units import human_bytes

RATES = {
    "gemm_float32": "matrix_float32",
    "gemm_float64": "matrix_float64",
    "products_float32": "skinny_float32",
    "products_float64": "skinny_float64",
    "cholesky_float32": "factor_float32",
    "cholesky_float64": "factor_float64",
    "copy": "memory_bandwidth",
}
"""Figures of a machine that are rates of one worker, by the names of `linalg.rate_probe`."""

_OTHERS = ("orthogonalise", "write_path", "read_path", "store_write", "store_read", "images", "latency", "task")
_FIXED = ("start", "first_tile", "first_solve", "pool", "step", "finish")


@dataclass(frozen=True)
class Calibration:
    """Measured figures.

    Args:
        machine: the measured machine: processor, versions, workers, threads.
        made: when, ISO 8601.
        busy: wall time divided by the processor time that the processes got: 1 on an idle machine.
        figures: by the names of `Machine`.
        cpu: processor seconds of all processes, for the fixed costs.
        pairs: seconds per pair of one worker, by network, shape of images and precision (`pair_key`).
    """

    machine: Mapping[str, Any]
    made: str
    busy: float
    figures: Mapping[str, float]
    cpu: Mapping[str, float]
    pairs: Mapping[str, float]

    def to_bytes(self) -> bytes:
        """The calibration as a sealed record."""
        return seal(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Calibration:
        """The inverse of `to_bytes`.

        Raises:
            CorruptionError: if the record is damaged or has another version.
        """
        try:
            made = cls(**unseal(data, name))
            numbers = [*made.figures.values(), *made.pairs.values()]
            if set(made.figures) == set(_measured_names()) and all(math.isfinite(x) and x >= 0 for x in numbers):
                return made
        except (TypeError, AttributeError) as error:
            raise CorruptionError(f"{name} is no calibration: {error}") from error
        raise CorruptionError(f"{name} is a calibration of another version, or its numbers are out of range")

    def with_pairs(self, pairs: Mapping[str, float]) -> Calibration:
        """The calibration with the speeds of further networks."""
        return replace(self, pairs={**self.pairs, **pairs})

    def known(self) -> dict[str, Figure]:
        """The measured figures, by the names of `Machine`."""
        origin = f"measured {self.made}"
        return {name: Figure(value, origin, self.cpu.get(name)) for name, value in self.figures.items()}

    def describe(self) -> str:
        """The calibration as a table, for the user."""
        units = {"write_path": "B", "read_path": "B", "store_write": "B", "store_read": "B", "memory_bandwidth": "B"}
        lines = [f"{self.machine['processor']}, {self.machine['workers']} workers of {self.machine['threads']} threads"]
        for name, value in self.figures.items():
            if name in units:
                text = f"{human_bytes(value)}/s"
            elif name in (*_FIXED, "latency", "task"):
                text = f"{value:.3g} s" + (f" ({self.cpu[name]:.3g} s of processors)" if name in self.cpu else "")
            else:
                text = f"{value / 1e6:.3g} million numbers/s" if name == "images" else f"{value / 1e9:.3g} GF/s"
            lines.append(f"  {name:<20}{text}")
        for key, seconds in self.pairs.items():
            lines.append(f"  pair {key:<44}{seconds * 1e6:.4g} us")
        lines.append("  network             not measured: all processes ran on one machine")
        if self.busy > 1.1:
            lines.append(
                f"  the machine was busy: wall time was {self.busy:.2f} times the processor time; the rates are per "
                "processor second"
            )
        return "\n".join(lines)


def _measured_names() -> list[str]:
    assert set(_OTHERS) | set(_FIXED) | set(RATES.values()) <= set(FIGURES)
    return [*RATES.values(), *_OTHERS, *_FIXED]


def pair_key(spec_fingerprint: str, shape: tuple[int, ...], dtype: str) -> str:
    """The key of a network's measurement."""
    return f"{spec_fingerprint[:16]} {'x'.join(map(str, shape))} {dtype}"


def calibrated(config: RunConfig) -> dict[str, Any]:
    """Everything except the network that a calibration depends on."""
    workers = config.cluster.worker_count()
    kind = "serial" if config.cluster.kind == "serial" else "processes"
    return {"kind": kind, "workers": workers, **circumstances(config.cluster.threads_per_worker)}


def calibration_key(config: RunConfig) -> str:
    """The store key of the calibration of this machine with this number of workers."""
    return f"tuning/calibration-{digest(calibrated(config))}.json"


def find_calibration(config: RunConfig, store: ObjectStore) -> Calibration | None:
    """The calibration that `ntkpipe calibrate` stored for this kind of machine; None if there is none, or it is
    damaged.
    """
    key = calibration_key(config)
    try:
        return Calibration.from_bytes(store.get(key), key)
    except (MissingObjectError, CorruptionError):
        return None
