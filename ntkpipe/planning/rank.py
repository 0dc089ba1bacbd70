"""Check before any computation whether the rank of a kernel is too low."""

from __future__ import annotations

import math

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError


def refuse_low_rank(config: RunConfig, rows: int, rank: int, why: str, each: int = 1) -> None:
    """Refuse training to convergence without a ridge if the kernel is certainly singular.

    The NNGP of a finite network is not checked: Gaussian readouts give its minimum-norm predictions.

    Args:
        config: of the run.
        rows: number of training rows of the kernel.
        rank: upper bound on its rank.
        why: the reason for this bound, for the message.
        each: rows per point.

    Raises:
        ConfigError: with the settings to change.
    """
    p = config.predict
    converged = p.times is None or any(math.isinf(time) for time in p.times)
    if rows <= rank or not converged or 0.0 not in p.ridges or p.kernels == ("nngp",):
        return
    raise ConfigError(
        f"t = inf without a ridge inverts the kernel of {rows:,} rows, whose rank is at most {rank:,} ({why}), so "
        "rounding errors would dominate. Set a ridge (predict.ridges=[1e-4]), finite times (predict.times=[1000]), or "
        f"data.train_size={rank // each} or less"
    )
