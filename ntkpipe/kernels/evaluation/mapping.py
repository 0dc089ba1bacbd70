"""Networks without pixels, applied elementwise to given covariances."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ntkpipe.errors import DataError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.evaluation.fold import PerImageFeatures, fold, fold_own, kernels_of, views
from ntkpipe.kernels.evaluation.resolve import Step, resolve
from ntkpipe.kernels.state import Array, Kernels, KernelState, Layer, Signature


def map_covariances(layers: Sequence[Layer], k: Any, p: Any, q: Any, ntk: Any, features: int) -> Kernels:
    """Return both kernels of a network for given covariances; see `Architecture.map`.

    Raises:
        PlaceError: if a layer acts on pixels.
        DataError: if covariances are not float32 or float64, or have no variances.
    """
    if p is None and q is not None:
        raise DataError("q are the variances of the second points: give p, those of the first points, too")
    given = [x for x in (k, p, p if q is None else q, ntk) if x is not None]
    as_jax = any(isinstance(x, jax.Array) for x in given)
    k, *variances = (x if isinstance(x, jax.Array) else np.asarray(x) for x in given)
    if k.dtype not in (np.float32, np.float64):
        raise DataError(f"covariances have dtype {k.dtype}: convert them to float32 or float64")
    before = variances.pop() if ntk is not None else None
    start = Signature((), features)
    steps, own_steps = (resolve(layers, start, own=own) for own in (False, True))
    with contextlib.nullcontext() if as_jax else precision_context(k.dtype):
        made = _mapped(steps, own_steps, k, *(variances or (None, None)), before)
    return made if as_jax else Kernels(*(np.asarray(kernel) for kernel in made))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(
    steps: tuple[Step, ...],
    own_steps: tuple[Step, ...],
    k: Array,
    p: Array | None,
    q: Array | None,
    ntk: Array | None,
) -> Kernels:
    """Return both kernels, compiled; see `Architecture.map`."""
    start = Signature((), steps[0].incoming.features) if steps else Signature((), 1)
    if p is None or q is None:
        return Kernels(*kernels_of(fold_own(own_steps, KernelState(k, ntk, start, is_own=True))[0]))

    def seen(variances: Array) -> PerImageFeatures:
        found = fold_own(own_steps, KernelState(variances, None, start, is_own=True))[1]
        return views(steps, found, lambda step, arrays: lambda: arrays, lambda a, k: a[k])

    return Kernels(*kernels_of(fold(steps, KernelState(k, ntk, start), seen(p), seen(q))))
