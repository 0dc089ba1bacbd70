"""The context of a run, shared by all stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.data.stored_labels import StoredData
from ntkpipe.planning.plan import RunPlan
from ntkpipe.predictions.points import TestPoints
from ntkpipe.run.initial import InitialOutputs, initial_outputs
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.opened import OpenGram
from ntkpipe.storage.store import ObjectStore


@dataclass(frozen=True)
class RunContext:
    """The inputs of a run's stages before the first tile; `run.prepare` makes it.

    Args:
        config: configuration of the run.
        store: store of data, tiles and solver states.
        data: points and their labels.
        source: key of the record that leads from the raw data to the prepared data.
        opened: kernels among the points in use, and the source that computes their tiles.
        plan: plan of the run.
        warnings: warnings for the user.
    """

    config: RunConfig
    store: ObjectStore
    data: StoredData
    source: str
    opened: OpenGram = field(compare=False, repr=False)
    plan: RunPlan = field(compare=False, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def kernels(self) -> KernelBlocks:
        """The kernels among the points in use, in the form that solvers and predictions need."""
        return self.opened.blocks

    def record(self) -> dict[str, Any]:
        """Plain values for the receipt of the prepared data."""
        return {
            "images": self.data.prefix,
            "source": self.source,
            "fingerprint": self.data.fingerprint,
            "labels": self.data.labels_key,
            "n_train": self.kernels.training_points,
            "n_test": self.kernels.test_points,
            "image_shape": list(self.data.shape("train")[1:]),
            "tiles_stored": self.opened.tiles.stored,
        }

    @cached_property
    def initial(self) -> InitialOutputs | None:
        """The initial outputs of training; None means zero."""
        return initial_outputs(self.config.predict.initial, self.data, self.opened)

    @property
    def points(self) -> TestPoints | None:
        """The test points, with their initial outputs."""
        known = self.kernels.points
        if self.initial is None or known is None:
            return known
        return dataclasses.replace(known, initial=self.initial.test)

    @property
    def memory_bytes(self) -> int:
        """Memory budget of all processes together in bytes, minus the memory for recomputing tiles while solving."""
        return self.plan.work.sizes.budget.solving
