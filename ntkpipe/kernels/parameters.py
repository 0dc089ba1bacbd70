"""The parameters of every layer in a spec: their types, defaults and ranges. `joint_conditions` relates them to each other.

This module imports neither JAX nor NumPy, so plans and configurations can be checked without them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.nonlinear.formula import canonical_covariance, canonical_decay, canonical_function

_REQUIRED = object()


def shorten(value: Any) -> str:
    """Return a value as text of bounded length for an error message."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4

# Larger integers would overflow, and no network needs them.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer: its kind, its default (required if absent) and its allowed values."""

    name: str
    kind: str  # "int", "number", "bool", "choice", "axes", "pair" (of integers), "branches", "fractions", "layers" or "formula"
    default: Any = _REQUIRED
    optional: bool = False
    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    choices: tuple[Any, ...] = ()
    canonical_formula: Callable[[Any], str] | None = None

    @property
    def required(self) -> bool:
        """Whether a layer must state the parameter."""
        return self.default is _REQUIRED

    def canonical(self, value: Any) -> Any:
        """Return the value in canonical form (numbers as float, axes and pairs as lists).

        Raises:
            ConfigError: if it has the wrong type or is out of range; the message begins with the name of the parameter.
        """
        if value is None and self.optional:
            return None
        if self.canonical_formula is not None:
            return self.canonical_formula(value)
        if self.kind == "choice":
            if not isinstance(value, (str, int, float)) or isinstance(value, bool) or value not in self.choices:
                raise ConfigError(f"{self.name}={shorten(value)} is not one of {', '.join(map(str, self.choices))}")
            return value
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise ConfigError(f"{self.name}={shorten(value)} must be true or false")
            return value
        if self.kind == "axes":
            axes = list(value) if is_list(value) else value
            if axes not in [list(c) for c in self.choices]:
                known = " or ".join(str(list(c)) for c in self.choices)
                raise ConfigError(f"{self.name}={shorten(value)} must be {known}")
            return axes
        if self.kind == "fractions":
            if not is_list(value):
                raise ConfigError(f"{self.name}={shorten(value)} must be a list of numbers")
            return [self._number(v) for v in value]
        if self.kind == "pair":
            if not is_list(value) or len(value) not in (1, 2, 3):
                size = value if isinstance(value, int) and not isinstance(value, bool) else 3
                raise ConfigError(
                    f"{self.name}={shorten(value)} must be two integers along height and width of images, such as [{size}, {size}], or one "
                    f"in brackets along sequences, [{size}], or along volumes, [{size}, {size}, {size}]"
                )
            value = [*value, 1] if len(value) == 1 else value
            return [int(self._number(v)) for v in value]
        return self._number(value)

    def _number(self, value: Any) -> int | float:
        whole = self.kind in ("int", "pair")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ConfigError(f"{self.name}={shorten(value)} must be {'an integer' if whole else 'a number'}")
        if whole and abs(value) > _LARGEST:
            raise ConfigError(f"{self.name}={shorten(value)} must be at most {_LARGEST}")
        try:
            as_float = float(value)
        except OverflowError:
            as_float = math.inf
        if not math.isfinite(as_float):
            raise ConfigError(f"{self.name}={shorten(value)} must be finite")
        if value <= self.above or value < self.at_least:
            bound = f"above {self.above:g}" if value <= self.above else f"at least {self.at_least:g}"
            raise ConfigError(f"{self.name}={value!r} must be {bound}")
        if value >= self.below or value > self.at_most:
            bound = f"below {self.below:g}" if value >= self.below else f"at most {self.at_most:g}"
            raise ConfigError(f"{self.name}={value!r} must be {bound}")
        return int(value) if whole else as_float


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether a value is a list or tuple."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


_AFFINE = (Parameter("a", "number", 1.0), Parameter("b", "number", 1.0), Parameter("c", "number", 0.0))
# The moments of these powers fit into float32 at variance 1: 39!! is 3e23.
_POWER = (Parameter("degree", "int", at_least=0.0, at_most=20.0),)
# A degree that is not stated is chosen from the data (`truncation.with_degrees`); until then it is USUAL_DEGREE.
USUAL_DEGREE, LARGEST_DEGREE = 64, 255
SERIES = (
    Parameter("degree", "int", None, optional=True, at_least=1.0, at_most=float(LARGEST_DEGREE)),
    Parameter("nodes", "int", None, optional=True, at_least=4.0, at_most=512.0),
)

_FEATURES = Parameter("features", "int", at_least=1.0)
_WEIGHTS = (
    Parameter("w_std", "number", 1.0, above=0.0),
    Parameter("b_std", "number", None, optional=True, at_least=0.0),
    Parameter("parameterization", "choice", "ntk", choices=("ntk", "standard")),
)
_PADDINGS = ("SAME", "VALID", "CIRCULAR")


def _extent(name: str, default: Any = _REQUIRED, *, optional: bool = False) -> Parameter:
    """Return the parameter for a size along the spatial axes."""
    return Parameter(name, "pair", default, optional=optional, at_least=1.0, at_most=4096.0)


# The default strides of a pool are its window, as in most libraries; in neural-tangents they are [1, 1].
_POOL = (
    _extent("window"),
    _extent("strides", None, optional=True),
    Parameter("padding", "choice", "VALID", choices=_PADDINGS),
)

POSITIONS = (
    Parameter("pos_emb_p_norm", "number", 2.0, above=0.0),
    Parameter("pos_emb_decay_fn", "formula", None, optional=True, canonical_formula=canonical_decay),
    Parameter("n_chan_pos_emb", "int", None, optional=True, at_least=1.0),
    Parameter("w_pos_emb_std", "number", 1.0, above=0.0),
    Parameter("val_pos_emb", "bool", False),
)

# Every layer of a spec, with its parameters in canonical order.
LAYERS: dict[str, tuple[Parameter, ...]] = {
    "flatten": (),
    "dense": (_FEATURES, *_WEIGHTS),
    "conv": (
        _FEATURES,
        _extent("filter"),
        _extent("strides", [1, 1]),
        Parameter("padding", "choice", "SAME", choices=_PADDINGS),
        Parameter("taps", "choice", "uniform", choices=("uniform", "delta")),
        *_WEIGHTS,
    ),
    "conv_transpose": (
        _FEATURES,
        _extent("filter"),
        _extent("strides", [1, 1]),
        Parameter("padding", "choice", "SAME", choices=_PADDINGS),
        *_WEIGHTS,
    ),
    "conv_local": (
        _FEATURES,
        _extent("filter"),
        _extent("strides", [1, 1]),
        Parameter("padding", "choice", "SAME", choices=_PADDINGS),
        *_WEIGHTS,
    ),
    "resize": (
        Parameter("shape", "pair", at_least=-1.0, at_most=4096.0),
        Parameter("method", "choice", "linear", choices=("linear", "nearest")),
        Parameter("antialias", "bool", True),
    ),
    "avg_pool": (*_POOL, Parameter("normalize_edges", "bool", False)),
    "sum_pool": _POOL,
    "global_avg_pool": (),
    "global_sum_pool": (),
    "residual_sum": (Parameter("branches", "branches"),),
    "repeat": (Parameter("times", "int", at_least=1.0), Parameter("layers", "layers")),
    "fan_in_concat": (
        Parameter("branches", "branches"),
        Parameter("fractions", "fractions", None, optional=True, above=0.0, at_most=1.0),
    ),
    "fan_in_product": (Parameter("branches", "branches"),),
    "global_self_attention": (
        Parameter("n_heads", "int", at_least=1.0),
        Parameter("n_chan_out", "int", at_least=1.0),
        Parameter("n_chan_key", "int", at_least=1.0),
        Parameter("n_chan_val", "int", at_least=1.0),
        Parameter("linear_scaling", "bool", True),
        Parameter("mechanism", "choice", "SOFTMAX", choices=("SOFTMAX", "IDENTITY", "RELU", "ABS")),
        Parameter("w_key_std", "number", 1.0, above=0.0),
        Parameter("w_query_std", "number", 1.0, above=0.0),
        Parameter("w_value_std", "number", 1.0, above=0.0),
        Parameter("w_out_std", "number", 1.0, above=0.0),
        Parameter("b_std", "number", None, optional=True, at_least=0.0),
        Parameter("pos_emb_type", "choice", "NONE", choices=("NONE", "SUM", "CONCAT")),
        *POSITIONS,
    ),
    # As in neural-tangents, the rate is the probability of keeping an activation.
    "dropout": (Parameter("rate", "number", above=0.0, at_most=1.0),),
    "relu": (),
    "leaky_relu": (Parameter("alpha", "number"),),
    "ab_relu": (Parameter("a", "number"), Parameter("b", "number")),
    "erf": _AFFINE,
    "gelu": (),
    "sin": _AFFINE,
    "cos": _AFFINE,
    "identity": (),
    "abs": (),
    "sign": (),
    "monomial": _POWER,
    "rectified_monomial": _POWER,
    "hermite": _POWER,
    "exp": (Parameter("a", "number", 1.0), Parameter("b", "number", 1.0)),
    "exp_normalized": (Parameter("gamma", "number", 1.0, above=0.0), Parameter("shift", "number", -1.0)),
    "rbf": (Parameter("gamma", "number", 1.0, above=0.0),),
    "gaussian": (Parameter("a", "number", 1.0), Parameter("b", "number", -1.0, below=0.0)),
    "sigmoid_like": (),
    "elementwise": (
        Parameter("function", "formula", None, optional=True, canonical_formula=canonical_function),
        Parameter("nngp", "formula", None, optional=True, canonical_formula=canonical_covariance),
        *SERIES,
    ),
    "tanh": SERIES,
    "sigmoid": SERIES,
    "swish": (Parameter("beta", "number", 1.0), *SERIES),
    "softplus": SERIES,
    "mish": SERIES,
    "elu": (Parameter("alpha", "number", 1.0), *SERIES),
    "stationary": (
        Parameter("kernel", "choice", choices=("rbf", "laplace", "matern")),
        Parameter("nu", "choice", None, optional=True, choices=(0.5, 1.5, 2.5)),
        Parameter("length_scale", "number", 1.0, at_least=1e-9),
    ),
    "layer_norm": (
        Parameter("axis", "axes", [-1], choices=((-1,), (1, 2, 3))),
        Parameter("eps", "number", 1e-12, above=0.0),
    ),
}

ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "ab_relu",
    "erf",
    "gelu",
    "sin",
    "cos",
    "identity",
    "abs",
    "sign",
    "monomial",
    "rectified_monomial",
    "hermite",
    "exp",
    "exp_normalized",
    "rbf",
    "gaussian",
    "sigmoid_like",
    "elementwise",
    "tanh",
    "sigmoid",
    "swish",
    "softplus",
    "mish",
    "elu",
)


def acting_filter(layer: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the size of the filter of a canonical `conv`, counting only taps with weights: 1 along each axis for
    `delta`.
    """
    size = tuple(layer["filter"])
    return (1,) * len(size) if layer.get("taps") == "delta" else size
