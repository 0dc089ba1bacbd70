"""Publishes a run's progress as metrics of Ray in the Prometheus endpoints of the nodes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)


class Gauges:
    """The gauge `ray_ntkpipe_progress{stage=..., quantity=...}`: finished tiles, pairs per second, steps, retries, bytes."""

    def __init__(self) -> None:
        self._gauge: Any = None
        self._broken = False

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """Set the values. The first failure prints a warning and turns metrics off."""
        if self._broken:
            return
        try:
            if self._gauge is None:
                from ray.util.metrics import Gauge

                self._gauge = Gauge(
                    "ntkpipe_progress", description="progress of a stage of ntkpipe", tag_keys=("stage", "quantity")
                )
            for name, value in numbers.items():
                self._gauge.set(value, tags={"stage": stage, "quantity": name})
        except Exception as error:  # any error of Ray's exporter: metrics must not fail the run
            self._broken = True
            _log.warning("Ray's metrics cannot be set (%s)", error)
