"""What every stage of a run starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

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
    """Everything known before the first tile; made by `run.prepare`.

    Args:
        config: of the run.
        store: of data, tiles and what solvers keep.
        data: the points and their labels.
        source: key of the record that leads from the raw data to them.
        opened: the kernels among the points in use, and what fills their tiles.
        plan: of the run.
        warnings: what the user should know.
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
        """The kernels among the points in use, as solvers and predictions take them."""
        return self.opened.blocks

    @cached_property
    def initial(self) -> InitialOutputs | None:
        """Outputs that training starts from; None is zero."""
        return initial_outputs(self.config.predict.initial, self.data, self.opened)

    @property
    def points(self) -> TestPoints | None:
        """The test points, with what training starts from there."""
        known = self.kernels.points
        if self.initial is None or known is None:
            return known
        return dataclasses.replace(known, initial=self.initial.test)

    @property
    def memory_bytes(self) -> int:
        """Budget of all processes together, less what computing tiles takes while solving."""
        return self.plan.work.sizes.budget.solving
