"""Nonlinearities of finite networks: the functions whose Gaussian expectations the layers in `kernels` compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpy.polynomial import hermite_e

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.nonlinear.base import Identity, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.elementwise import Elementwise, ElementwiseKernel
from ntkpipe.kernels.layers.nonlinear.exponential import Exp, ExpNormalized, Gaussian, Rbf, Sin
from ntkpipe.kernels.layers.nonlinear.formula import parse
from ntkpipe.kernels.layers.nonlinear.operations import apply_formula
from ntkpipe.kernels.layers.nonlinear.piecewise import ABRelu, RectifiedMonomial, Sign
from ntkpipe.kernels.layers.nonlinear.polynomial import Hermite, Monomial
from ntkpipe.kernels.layers.nonlinear.sigmoidal import Erf, Gelu
from ntkpipe.kernels.registry import build_layer

Function = Callable[[jax.Array], jax.Array]


def activation(layer: Mapping[str, Any]) -> Function:
    """Return the function of a nonlinear layer. It acts elementwise on arrays of any shape.

    The derivative at a kink at 0 is 0.

    Args:
        layer: canonical spec of the layer.

    Raises:
        ConfigError: if the layer is given only by its kernel.
    """
    nonlinearity = build_layer(layer)
    assert isinstance(nonlinearity, Nonlinearity)
    if isinstance(nonlinearity, (ElementwiseKernel, ExpNormalized)):
        raise ConfigError(
            "is given only by its kernel, so no finite network has it: give a function, such as "
            '{"op": "elementwise", "function": "tanh(x)"}'
        )
    return _FUNCTIONS[type(nonlinearity)](nonlinearity)


def _ab_relu(layer: ABRelu) -> Function:
    return lambda x: jnp.where(x > 0, layer.b, jnp.where(x < 0, layer.a, 0.0)).astype(x.dtype) * x


def _rectified(layer: RectifiedMonomial) -> Function:
    return lambda x: jnp.where(x > 0, jax.lax.integer_pow(x, layer.degree), 0.0)


def _hermite(layer: Hermite) -> Function:
    coefficients = hermite_e.herme2poly([0.0] * layer.degree + [1.0]) / math.sqrt(math.factorial(layer.degree))
    return lambda x: jnp.polyval(jnp.asarray(coefficients[::-1], x.dtype), x)


def _formula(layer: Elementwise) -> Function:
    tree = parse(layer.function, ("x",))
    return lambda x: jnp.asarray(apply_formula(tree, x=x))


_FUNCTIONS: dict[type[Nonlinearity], Callable[[Any], Function]] = {
    Identity: lambda layer: lambda x: x,
    ABRelu: _ab_relu,
    Erf: lambda layer: lambda x: layer.a * jax.scipy.special.erf(layer.b * x) + layer.c,
    Gelu: lambda layer: lambda x: jax.nn.gelu(x, approximate=False),
    Sin: lambda layer: lambda x: layer.a * jnp.sin(layer.b * x + layer.c),
    Rbf: lambda layer: lambda x: math.sqrt(2.0) * jnp.sin(math.sqrt(2.0 * layer.gamma) * x + 0.25 * math.pi),
    Exp: lambda layer: lambda x: layer.a * jnp.exp(layer.b * x),
    Gaussian: lambda layer: lambda x: layer.a * jnp.exp(layer.b * jnp.square(x)),
    Sign: lambda layer: jnp.sign,
    Monomial: lambda layer: lambda x: jax.lax.integer_pow(x, layer.degree),
    RectifiedMonomial: _rectified,
    Hermite: _hermite,
    Elementwise: _formula,
}
