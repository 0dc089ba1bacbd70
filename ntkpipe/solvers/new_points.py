"""Predictions of points that a kernel does not have, a batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ntkpipe.errors import ConfigError
from ntkpipe.predictions.schema import Predictions
from ntkpipe.sources.blocks import BlockTrainKernel
from ntkpipe.sources.new_points import new_blocks, new_points

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution


def predict_new(
    solution: Solution, x: Any, times: Sequence[float] | None, ridges: Sequence[float] | None, **settings: Any
) -> Predictions:
    """See `Solution.predict`, whose other arguments `settings` are.

    Raises:
        ConfigError: for a kernel that was given.
        DataError: if the points are not like the training points.
    """
    kernel = solution.problem.kernel
    if not isinstance(kernel, BlockTrainKernel):
        raise ConfigError("new points need a kernel that a Gram computes: nk.Gram(...).train()")
    blocks = kernel.blocks
    new = new_points(blocks, x)
    for text in new.notes:
        warnings.warn(text, stacklevel=3)
    made = []
    batches = new.batches(blocks.n, len(blocks.source.identity.kernels))
    for batch in [new] if settings["covariance"] == "full" else batches:
        with new_blocks(blocks, batch) as found:
            made.append(solution.predict(found.test(kernel.name), times, ridges, **settings))
    return Predictions.concatenated(made)
