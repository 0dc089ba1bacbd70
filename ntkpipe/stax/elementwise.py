"""Nonlinearities, with the names and parameters of neural-tangents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.stax.network import Piece, layer_piece
from ntkpipe.stax.values import number, whole


def Relu(do_stabilize: bool = False) -> Piece:
    """The nonlinearity max(x, 0). The kernels are always stable, so `do_stabilize` has no effect, here and below."""
    del do_stabilize
    return layer_piece("relu")


def LeakyRelu(alpha: float, do_stabilize: bool = False) -> Piece:
    """The nonlinearity `alpha min(x, 0) + max(x, 0)`."""
    del do_stabilize
    return layer_piece("leaky_relu", alpha=number(alpha))


def ABRelu(a: float, b: float, do_stabilize: bool = False) -> Piece:
    """The nonlinearity `a min(x, 0) + b max(x, 0)`."""
    del do_stabilize
    return layer_piece("ab_relu", a=number(a), b=number(b))


def Abs(do_stabilize: bool = False) -> Piece:
    """The nonlinearity `|x|`."""
    del do_stabilize
    return layer_piece("abs")


def Sign() -> Piece:
    """The nonlinearity `sign(x)`."""
    return layer_piece("sign")


def Gelu(approximate: bool = False) -> Piece:
    """The nonlinearity `x Phi(x)`. `approximate` has no effect on kernels, as in neural-tangents."""
    del approximate
    return layer_piece("gelu")


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Piece:
    """The nonlinearity `a erf(b x) + c`."""
    return layer_piece("erf", a=number(a), b=number(b), c=number(c))


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Piece:
    """The nonlinearity `a sin(b x + c)`."""
    return layer_piece("sin", a=number(a), b=number(b), c=number(c))


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Piece:
    """The nonlinearity `a cos(b x + c)`."""
    return layer_piece("cos", a=number(a), b=number(b), c=number(c))


def Exp(a: float = 1, b: float = 1) -> Piece:
    """The nonlinearity `a exp(b x)`."""
    return layer_piece("exp", a=number(a), b=number(b))


def Gaussian(a: float = 1, b: float = -1) -> Piece:
    """The nonlinearity `a exp(b x^2)`."""
    return layer_piece("gaussian", a=number(a), b=number(b))


def Gabor() -> Piece:
    """The nonlinearity `exp(-x^2) sin(x)`, expanded in Hermite polynomials."""
    return layer_piece("elementwise", function="exp(-x**2) * sin(x)")


def Rbf(gamma: float = 1.0) -> Piece:
    """The nonlinearity `sqrt(2) sin(sqrt(2 gamma) x + pi / 4)`, whose kernel is the squared exponential."""
    return layer_piece("rbf", gamma=number(gamma))


def ExpNormalized(gamma: float = 1, shift: float = -1, do_clip: bool = False) -> Piece:
    """The nonlinearity with the kernel `sqrt(p q) exp(gamma (k / sqrt(p q) + shift))`. Cosines are always clipped."""
    del do_clip
    return layer_piece("exp_normalized", gamma=number(gamma), shift=number(shift))


def Hermite(degree: int) -> Piece:
    """The normalised Hermite polynomial.

    The kernel is the Gaussian expectation at the actual variance; neural-tangents always uses variance 1.
    """
    return layer_piece("hermite", degree=whole("degree", degree, 0))


def Monomial(degree: int) -> Piece:
    """The nonlinearity `x^degree`."""
    return layer_piece("monomial", degree=whole("degree", degree, 0))


def RectifiedMonomial(degree: int) -> Piece:
    """The nonlinearity that is `x^degree` where x > 0, else 0."""
    return layer_piece("rectified_monomial", degree=whole("degree", degree, 0))


def Polynomial(coef: Sequence[float]) -> Piece:
    """The nonlinearity `coef[0] + coef[1] x + ...`, by its Hermite expansion, which is finite and exact."""
    powers = [f"({number(c)!r}) * x**{power}" for power, c in enumerate(coef)]
    return layer_piece("elementwise", function=" + ".join(powers) or "0 * x", degree=max(len(powers) - 1, 1))


def Sigmoid_like() -> Piece:
    """The scaled erf that is closest to the logistic function."""
    return layer_piece("sigmoid_like")


# JAX functions that have a layer, by name.
_FUNCTIONS = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "expit": "sigmoid",
    "silu": "swish",
    "swish": "swish",
    "softplus": "softplus",
    "mish": "mish",
    "relu": "relu",
    "erf": "erf",
    "sin": "sin",
    "cos": "cos",
    "exp": "exp",
    "abs": "abs",
    "sign": "sign",
}


def Elementwise(
    fn: Callable[[float], float] | str | None = None,
    nngp_fn: str | Callable[..., float] | None = None,
    d_nngp_fn: str | Callable[..., float] | None = None,
) -> Piece:
    """A nonlinearity given by a function or by its kernel.

    Args:
        fn: a formula as text, such as `"x * sigmoid(x)"`, or a JAX function that has a layer, such as `jnp.tanh`.
        nngp_fn: the kernel as a formula in the covariance k and the variances p and q.
        d_nngp_fn: must be None; the formula is differentiated automatically.
    """
    if d_nngp_fn is not None:
        raise ConfigError("d_nngp_fn is derived from nngp_fn: leave it out")
    if nngp_fn is not None:
        if not isinstance(nngp_fn, str):
            raise ConfigError(
                "nngp_fn must be a formula as text here, in the covariance k and the variances p and q, such as "
                "'exp(k - (p + q) / 2)': Python functions have no fingerprint to identify stored results"
            )
        return layer_piece("elementwise", nngp=nngp_fn, **({} if fn is None else {"function": fn}))
    return layer_piece("elementwise", function=fn) if isinstance(fn, str) else _known(fn)


def ElementwiseNumerical(
    fn: Callable[[float], float] | str, deg: int, df: Callable[[float], float] | None = None
) -> Piece:
    """A nonlinearity by numerical integration, with one integral per point; neural-tangents needs one per pair.

    Args:
        fn: see `Elementwise`.
        deg: number of nodes per axis in neural-tangents. It is checked but not used: the degree follows from the data.
        df: not used; the formula is differentiated automatically.
    """
    whole("deg", deg, 1)
    del df
    return layer_piece("elementwise", function=fn) if isinstance(fn, str) else _known(fn)


def _known(fn: Any) -> Piece:
    name = getattr(fn, "__name__", None)
    if name in _FUNCTIONS and str(getattr(fn, "__module__", "")).split(".")[0] == "jax":
        return layer_piece(_FUNCTIONS[name])
    raise ConfigError(
        f"fn={name or fn!r} must be a formula as text here, such as 'x * sigmoid(x)', or one of JAX's "
        f"{', '.join(_FUNCTIONS)}: Python functions have no fingerprint to identify stored results"
    )
