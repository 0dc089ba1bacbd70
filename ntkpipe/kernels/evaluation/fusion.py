"""Control over XLA's fusion, which would otherwise recompute earlier layers many times.

On CPUs, XLA fuses everything that a result depends on into its loop. A convolution after a nonlinearity would evaluate
the nonlinearity once per tap, and so on through all layers. XLA removes `optimization_barrier` before it decides about
fusion. A branch of a conditional, however, is compiled separately, so its inputs and outputs are in memory. Three
full-resolution layers of a Myrtle network take 6.4 ms per pair this way instead of 206 ms (one core, float32).

On GPUs, barriers exist until fusion is decided, and layers are limited by memory bandwidth: reading and writing both
kernels once costs 16 bytes per covariance and layer. A window therefore reads from memory, and a convolution and the
nonlinearity after it become one loop. Laying out fields of the second images in advance would double the traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ntkpipe.kernels.state import Array, FusionPolicy


@dataclass(frozen=True)
class Materialised(FusionPolicy):
    """The policy on CPUs: every intermediate result of a layer is computed once and written to memory.

    Args:
        alive: a scalar argument of the program that is always positive. The compiler must not know its value.
    """

    alive: Array

    def __call__(self, f: Callable[..., Any], *arrays: Array) -> Any:
        """Return `f(*arrays)`, written to memory."""
        made = jax.eval_shape(f, *arrays)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
        return lax.cond(self.alive > 0, f, lambda *_: nothing, *arrays)


@dataclass(frozen=True)
class Fused(FusionPolicy):
    """The policy on accelerators: only results that are read in several places are written to memory."""

    direct_taps: ClassVar[int] = 9
    lays_out_anew: ClassVar[bool] = True

    def settle(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the arrays behind an optimization barrier."""
        return tuple(lax.optimization_barrier(arrays))
