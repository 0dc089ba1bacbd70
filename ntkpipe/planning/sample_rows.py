"""How many rows of a kernel are recomputed in float64, which stored tiles and products are measured against."""

from __future__ import annotations

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan

# Rows of a sample, unless set: as many as make its safety factor small (2.2), or, where pairs take long, as few as keep it
# below 10 (`sampling.norm_safety`) and recomputing them, which takes three times as long a pair, to 2% of the tiles' time.
SAMPLE_ROWS, _LEAST_SAMPLE_ROWS = 64, 16
SAMPLE_SHARE, FLOAT64_COST = 0.02, 3.0


def sample_rows(config: RunConfig, plan: GramPlan, n: int) -> int:
    """Rows of each block that are recomputed in float64 on `n` training images: as set, or `affordable_rows`."""
    return affordable_rows(plan, n) if config.solver.sample_rows is None else config.solver.sample_rows


def affordable_rows(plan: GramPlan, n: int) -> int:
    """As many rows as the time of the tiles allows."""
    if plan.cost.input_entries == 1:
        return SAMPLE_ROWS
    affordable = SAMPLE_SHARE * plan.pairs / (2 * n * FLOAT64_COST)  # of both blocks
    return int(np.clip(affordable, _LEAST_SAMPLE_ROWS, SAMPLE_ROWS))
