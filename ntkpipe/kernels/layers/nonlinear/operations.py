"""The functions of formulas on arrays: those of JAX, with derivatives that stay finite at the ends of their domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntkpipe.kernels.layers.nonlinear.formula import PYTHON, Tree, evaluate
from ntkpipe.kernels.state import Array


@jax.custom_jvp
def clipped_sqrt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the square root, 0 for negative arguments, with derivative 0 where it is not finite.

    At equal images the infinite derivatives of a kernel's formula cancel, so both are set to 0.
    """
    return jnp.sqrt(jnp.maximum(x, 0.0))


@clipped_sqrt.defjvp
def _(primals, tangents):
    root = clipped_sqrt(primals[0])
    return root, jnp.where(root > 0, tangents[0] * 0.5 / jnp.where(root > 0, root, 1.0), 0.0)


@jax.custom_jvp
def clipped_asin(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the inverse sine of the argument clipped to [-1, 1], with derivative 0 at the ends; see `clipped_sqrt`."""
    return jnp.arcsin(jnp.clip(x, -1.0, 1.0))


@clipped_asin.defjvp
def _(primals, tangents):
    x = primals[0]
    cosine = clipped_sqrt((1.0 - x) * (1.0 + x))
    return clipped_asin(x), jnp.where(cosine > 0, tangents[0] / jnp.where(cosine > 0, cosine, 1.0), 0.0)


@jax.custom_jvp
def clipped_acos(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the inverse cosine of the argument clipped to [-1, 1], with derivative 0 at the ends; see
    `clipped_sqrt`.
    """
    return jnp.arccos(jnp.clip(x, -1.0, 1.0))


@clipped_acos.defjvp
def _(primals, tangents):
    return clipped_acos(primals[0]), -jax.jvp(clipped_asin, primals, tangents)[1]


def _power(base: Array, exponent: float) -> Array:
    """Return a power, by multiplications for a whole exponent, because `**` is NaN for negative numbers."""
    return jax.lax.integer_pow(base, int(exponent)) if exponent.is_integer() else base**exponent


_ON_ARRAYS: Mapping[str, Callable[..., Any]] = {
    "power": _power,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "asin": clipped_asin,
    "acos": clipped_acos,
    "atan": jnp.arctan,
    "atan2": jnp.arctan2,
    "sqrt": clipped_sqrt,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "step": lambda x: (x > 0).astype(x.dtype),
    "erf": jax.scipy.special.erf,
    "sigmoid": jax.nn.sigmoid,
    "softplus": lambda x: jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
    "relu": lambda x: jnp.maximum(x, 0.0),
    "max": jnp.maximum,
    "min": jnp.minimum,
}


def _folding(name: str) -> Callable[..., Any]:
    """Return a function that computes on plain numbers in float64, whatever the precision of the arrays."""

    def apply(*arguments: Any) -> Any:
        table = _ON_ARRAYS if any(isinstance(value, jax.Array) for value in arguments) else PYTHON
        return table[name](*arguments)

    return apply


_OPERATIONS = {name: _folding(name) for name in _ON_ARRAYS}


def apply_formula(tree: Tree, **values: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Evaluate a formula on JAX arrays that broadcast against each other; the result has their broadcast shape.

    Args:
        tree: from `formula.parse`.
        values: values of its variables, all of one dtype.
    """
    shape = jnp.broadcast_shapes(*(value.shape for value in values.values()))
    dtype = next(iter(values.values())).dtype
    return jnp.broadcast_to(jnp.asarray(evaluate(tree, _OPERATIONS, values), dtype), shape)
