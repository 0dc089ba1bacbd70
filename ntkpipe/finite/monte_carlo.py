"""Kernels estimated from random finite networks, with standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.finite.empirical import prepare, tile
from ntkpipe.finite.initialisers import draw_masks, init, widened
from ntkpipe.finite.network import as_inputs
from ntkpipe.kernels.images import check_agreement
from ntkpipe.kernels.spec import Spec
from ntkpipe.kernels.state import Array, Kernels


class Estimate(NamedTuple):
    """Means over random networks, `(n1, n2)` each, and the standard errors of these means.

    The errors measure the spread over networks only. The expected kernel of finite networks differs from that of the
    infinite network by an amount of order 1 / width.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    nngp_error: np.ndarray
    ntk_error: np.ndarray


def monte_carlo_kernel(
    spec: Spec,
    n_networks: int,
    x1: Array,
    x2: Array | None = None,
    *,
    width_factor: float = 1.0,
    seed: int = 0,
    initialiser: str = "gaussian",
    layout: str | None = None,
) -> Estimate:
    """Estimate both kernels by means over random networks. Dropout masks are drawn for every network and image.

    Args:
        spec: list of layers.
        n_networks: number of networks, at least 2; errors fall as one over its square root.
        x1: images, float32 or float64.
        x2: second images; None pairs `x1` with itself.
        width_factor: factor of the hidden widths of the spec.
        seed: equal seeds give equal estimates.
        initialiser: see `init`.
        layout: order of four axes, `NHWC` or `NCHW`.

    Raises:
        ConfigError: if there are fewer than 2 networks, or a layer has no finite form (the message names it).
        DataError: if the images have the wrong shape or dtype, or disagree.
    """
    if isinstance(n_networks, bool) or not isinstance(n_networks, int) or n_networks < 2:
        raise ConfigError(
            f"n_networks={n_networks!r} must be a whole number of at least 2: one network has no standard error"
        )
    draws = kernels_of_networks(
        spec, x1, x2, width_factor=width_factor, seed=seed, initialiser=initialiser, layout=layout
    )
    # Welford's recurrence sums squared deviations, which avoids differences of large squares.
    mean: list[Any] = [0.0, 0.0]
    squares: list[Any] = [0.0, 0.0]
    for count in range(1, n_networks + 1):
        for k, kernel in enumerate(next(draws)):
            change = kernel - mean[k]
            mean[k] = mean[k] + change / count
            squares[k] = squares[k] + change * (kernel - mean[k])
    errors = [np.sqrt(square / (n_networks * (n_networks - 1))) for square in squares]
    return Estimate(*mean, *errors)


def kernels_of_networks(
    spec: Spec,
    x1: Array,
    x2: Array | None = None,
    *,
    width_factor: float = 1.0,
    seed: int = 0,
    initialiser: str = "gaussian",
    layout: str | None = None,
) -> Iterator[Kernels]:
    """Yield both kernels of one random network after another, in float64, endlessly. NTKs are means over outputs.

    Raises:
        ConfigError: if a layer has no finite form; the message names it.
        DataError: if the images have the wrong shape or dtype, or disagree.
    """
    x1, x2 = as_inputs("x1", x1, layout), None if x2 is None else as_inputs("x2", x2, layout)
    check_agreement(x1, x2)
    wide, shape, dtype = widened(spec, width_factor), tuple(x1.shape[1:]), x1.dtype
    # Masks of both blocks come from one stream, so no two images share a mask.
    everything = len(x1) + (0 if x2 is None else len(x2))
    seeds = np.random.default_rng(seed)
    while True:
        of_weights, of_masks = (int(s) for s in seeds.integers(2**63, size=2))
        weights = init(wide, shape, of_weights, initialiser=initialiser, dtype=dtype)
        masks = draw_masks(wide, shape, everything, of_masks, dtype=dtype)
        rows = prepare(wide, weights, x1, masks=[m[: len(x1)] for m in masks], layout="NHWC")
        columns = rows
        if x2 is not None:
            columns = prepare(wide, weights, x2, masks=[m[len(x1) :] for m in masks], layout="NHWC")
        yield Kernels(*(np.asarray(kernel, np.float64) for kernel in tile(rows, columns)))
