"""Compares a run's finite network with the infinite one.

The infinite kernel of some training points is computed in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.finite.beside_infinite import beside_infinite
from ntkpipe.gram.from_config import kernel_spec, pair_cost
from ntkpipe.gram.worker import compute_tile
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.planning.machine import assumed_machine
from ntkpipe.planning.tiles import pair_seconds
from ntkpipe.run.context import RunContext

# Number of training points that are compared; fewer if pairs of the infinite network take long.
_POINTS, _LEAST, _SECONDS = 512, 16, 10.0


def beside_infinite_of(context: RunContext) -> dict[str, Any] | None:
    """Return the results of `finite.beside_infinite` for every kernel of a run with one finite network, JSON-ready.

    Returns:
        The number of `points` and, in `kernels`, the numbers of each kernel. None for other runs, and for layers that
        have no infinite network.
    """
    config, kernels = context.config, context.kernels
    if config.kernel.kind != "empirical":
        return None
    shape = context.data.shape("train")[1:]
    spec = canonical_spec(kernel_spec(config.kernel, shape))
    try:
        seconds = pair_seconds(pair_cost(spec, shape), assumed_machine(), "float64")
        affordable = math.isqrt(int(2 * _SECONDS / seconds))
        m = min(kernels.training_points, max(_LEAST, min(_POINTS, affordable)))
        x = np.asarray(context.data.read("train", 0, m), np.float64)
        infinite = compute_tile(spec, x, None, diagonal=True, dtype="float64", out_dtype="float64")
    except ConfigError:
        return None
    targets = context.data.labels().y_train[:m]
    made = {}
    for name in config.predict.kernels:
        if name == "ntkgp":  # the same kernel as the NTK
            continue
        rows = kernels.rows_of_point
        own = kernels.train(name).leading(m * rows).to_numpy().astype(np.float64)
        if rows > 1:  # take the mean over equal outputs
            own = np.einsum("iaja->ij", own.reshape(m, rows, m, rows)) / rows
        found = beside_infinite(own, infinite[name], targets)
        made[name] = {
            "deviation": found.deviation,
            "trace_ratio": found.trace_ratio,
            "alignment": {"finite": found.alignment_finite, "infinite": found.alignment_infinite},
            "spectrum_ratio": found.ratios().tolist(),
            "eigenvalues": {"finite": found.finite.tolist(), "infinite": found.infinite.tolist()},
        }
    return {"points": m, "kernels": made}
