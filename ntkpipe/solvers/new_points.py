"""Predictions for new points, whose kernel with the training points is computed in batches."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import ConfigError
from ntkpipe.predictions.schema import Predictions
from ntkpipe.sources.arrays import ArrayKernel
from ntkpipe.sources.blocks import BlockTrainKernel
from ntkpipe.sources.gram import Gram
from ntkpipe.sources.new_points import given_blocks, new_blocks, new_points

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution


def predict_new(
    solution: Solution, x: Any, times: Numbers | None, ridges: Numbers | None, diagonal: Any, **settings: Any
) -> Predictions:
    """Predict new points. Arguments are those of `Solution.predict`; `settings` are its other arguments.

    Raises:
        ConfigError: if variances are requested for a given kernel without `diagonal`, or `diagonal` is given for a computed kernel, or
            the kernel was not made by a Gram.
        DataError: if the points differ in shape or kind from the training points.
    """
    kernel = solution.problem.kernel
    if kernel.is_given:
        if diagonal is None and settings["covariance"] != "none":
            raise ConfigError(
                "variances need k(x, x) of the new points: predict(rows, diagonal=..., covariance='diagonal')"
            )
        if isinstance(kernel, ArrayKernel):
            test = Gram.from_arrays(kernel.array, x, diagonal).test()
        else:
            assert isinstance(kernel, BlockTrainKernel)
            test = given_blocks(kernel.blocks, x, diagonal).test(kernel.name)
        return solution.predict(test, times, ridges, **settings)
    if diagonal is not None:
        raise ConfigError("diagonal is only for given kernels, and this kernel is computed: leave it out")
    if not isinstance(kernel, BlockTrainKernel):
        raise ConfigError("predictions for new points need a kernel that a Gram computes: use nk.Gram(...).train()")
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
