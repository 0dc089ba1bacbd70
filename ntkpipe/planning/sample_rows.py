"""Number of rows of a kernel that are recomputed in float64 to measure the errors of stored tiles and products."""

from __future__ import annotations

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan

# Default rows of a sample: enough for a small safety factor (2.2). If pairs take long, enough for a factor below 10
# (`sampling.norm_safety`), as long as recomputing them, which takes three times as long per pair, stays below 2% of the
# tiles' time.
SAMPLE_ROWS, _LEAST_SAMPLE_ROWS = 64, 16
SAMPLE_SHARE, FLOAT64_COST = 0.02, 3.0


def sample_rows(config: RunConfig, plan: GramPlan, n: int) -> int:
    """Rows of each block that are recomputed in float64 on `n` training images: as set, or `affordable_rows`."""
    return affordable_rows(plan, n) if config.solver.sample_rows is None else config.solver.sample_rows


def affordable_rows(plan: GramPlan, n: int) -> int:
    """The number of rows that the time of the tiles allows."""
    if plan.cost.input_entries == 1:
        return SAMPLE_ROWS
    affordable = SAMPLE_SHARE * plan.pairs / (2 * n * FLOAT64_COST)  # rows of both blocks are recomputed
    return int(np.clip(affordable, _LEAST_SAMPLE_ROWS, SAMPLE_ROWS))
