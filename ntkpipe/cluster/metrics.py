"""How a run goes, as metrics of Ray: every node's own Prometheus endpoint has them, labelled by stage and quantity."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)


class Gauges:
    """One gauge, `ray_ntkpipe_progress{stage=..., quantity=...}`: tiles done, pairs per second, steps, retries, bytes."""

    def __init__(self) -> None:
        self._gauge: Any = None
        self._broken = False

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """Set the values; the first failure is told and the last."""
        if self._broken:
            return
        try:
            if self._gauge is None:
                from ray.util.metrics import Gauge

                self._gauge = Gauge(
                    "ntkpipe_progress", description="how a stage of ntkpipe goes", tag_keys=("stage", "quantity")
                )
            for name, value in numbers.items():
                self._gauge.set(value, tags={"stage": stage, "quantity": name})
        except Exception as error:  # whatever Ray's exporter raises: metrics must not cost the run
            self._broken = True
            _log.warning("Ray's metrics cannot be set (%s)", error)
