"""What a kernel of low rank cannot answer: asked before anything is computed."""

from __future__ import annotations

import math

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError


def refuse_low_rank(config: RunConfig, rows: int, rank: int, why: str, each: int = 1) -> None:
    """Refuse training to convergence without a ridge where the kernel is singular whatever its values are.

    Of the NNGP of a finite network nothing is said here: its predictions of least norm are what Gaussian readouts give.

    Args:
        config: of the run.
        rows: of the kernel, training points in use.
        rank: that it has at most.
        why: what bounds the rank, for people.
        each: rows of a point.

    Raises:
        ConfigError: with the settings that have an answer.
    """
    p = config.predict
    converged = p.times is None or any(math.isinf(time) for time in p.times)
    if rows <= rank or not converged or 0.0 not in p.ridges or p.kernels == ("nngp",):
        return
    raise ConfigError(
        f"t = inf without a ridge inverts the kernel of {rows:,} rows, and its rank is {rank:,} at most ({why}): what training "
        "cannot reach would be divided by rounding. Set a ridge (predict.ridges=[1e-4]), finite times (predict.times=[1000]), or "
        f"data.train_size={rank // each} or less"
    )
