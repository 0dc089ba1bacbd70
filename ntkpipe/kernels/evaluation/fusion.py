"""How compilers are kept from undoing the economy of a fold of layers.

On CPUs XLA gives each result of a fused loop everything that it depends on, so that a convolution after a nonlinearity evaluates the
nonlinearity once per tap, and so on through all layers; `optimization_barrier` is gone before fusion is decided. A branch of a
conditional is compiled apart from what surrounds it: what goes in and comes out is in memory. Three full-resolution layers
of a Myrtle network take 6.4 ms a pair instead of 206 (one core, float32).

On GPUs barriers hold until fusion is decided, and memory is what layers wait for: a covariance costs 16 bytes per layer where both
kernels are read and written once. So a window reads what lies in memory, and a convolution and the nonlinearity after it
become one loop. Fields of the second images, laid out beforehand, would be as many bytes again.
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
    """On CPUs: what a layer keeps is computed once and written to memory.

    Args:
        alive: a scalar that is positive whenever the program runs, which the compiler must not find out: an argument.
    """

    alive: Array

    def __call__(self, f: Callable[..., Any], *arrays: Array) -> Any:
        """`f(*arrays)`, in memory."""
        made = jax.eval_shape(f, *arrays)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
        return lax.cond(self.alive > 0, f, lambda *_: nothing, *arrays)


@dataclass(frozen=True)
class Fused(FusionPolicy):
    """On accelerators: what is read in several places goes to memory, both kernels together, and nothing else."""

    direct_taps: ClassVar[int] = 9
    lays_out_anew: ClassVar[bool] = True

    def settle(self, *arrays: Array) -> tuple[Array, ...]:
        """The arrays, behind a barrier."""
        return tuple(lax.optimization_barrier(arrays))
