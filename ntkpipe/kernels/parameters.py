"""The parameters of every layer that a list of layers may name: types, defaults, ranges, and what they must satisfy together.

Imports neither JAX nor NumPy, so that plans and configurations can be checked without them.
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
    """A value for an error's text, of bounded length: it may be anything that a file holds."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4

# Integers beyond are no network's; they would overflow what is computed of them.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer: its kind, its default (absent means required) and the values it may take."""

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
        """True if a layer must state it."""
        return self.default is _REQUIRED

    def canonical(self, value: Any) -> Any:
        """The value in its one canonical form (numbers as float, axes and pairs as lists).

        Raises:
            ConfigError: if it is of another type or out of range; the text begins with the parameter's name.
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
    """A list or tuple, and not a text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


_AFFINE = (Parameter("a", "number", 1.0), Parameter("b", "number", 1.0), Parameter("c", "number", 0.0))
# Powers whose moments float32 still holds at variance 1: 39!! is 3e23.
_POWER = (Parameter("degree", "int", at_least=0.0, at_most=20.0),)
# A degree that is not stated follows from the data (`truncation.with_degrees`); until then it is this one.
USUAL_DEGREE, LARGEST_DEGREE = 64, 255
_SERIES = (
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
    """Pixels along both axes; images of thousands of pixels have no computable kernel."""
    return Parameter(name, "pair", default, optional=optional, at_least=1.0, at_most=4096.0)


# neural-tangents' default of a pool's strides is [1, 1]; here it is the window, as everywhere else.
_POOL = (
    _extent("window"),
    _extent("strides", None, optional=True),
    Parameter("padding", "choice", "VALID", choices=_PADDINGS),
)

_POSITIONS = (
    Parameter("pos_emb_p_norm", "number", 2.0, above=0.0),
    Parameter("pos_emb_decay_fn", "formula", None, optional=True, canonical_formula=canonical_decay),
    Parameter("n_chan_pos_emb", "int", None, optional=True, at_least=1.0),
    Parameter("w_pos_emb_std", "number", 1.0, above=0.0),
    Parameter("val_pos_emb", "bool", False),
)

# Every layer that can be named, with its parameters in canonical order.
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
        *_POSITIONS,
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
        *_SERIES,
    ),
    "tanh": _SERIES,
    "sigmoid": _SERIES,
    "swish": (Parameter("beta", "number", 1.0), *_SERIES),
    "softplus": _SERIES,
    "mish": _SERIES,
    "elu": (Parameter("alpha", "number", 1.0), *_SERIES),
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


def _with_series(layer: dict[str, Any]) -> dict[str, Any]:
    """The degree and the nodes of a series agree: products of its polynomials are integrated exactly."""
    if layer["degree"] is None and layer["nodes"] is None:
        return layer
    degree = USUAL_DEGREE if layer["degree"] is None else layer["degree"]
    least = 2 * degree + 2
    nodes = least if layer["nodes"] is None else layer["nodes"]
    if nodes < least or nodes % 2:
        raise ConfigError(f"nodes={nodes} must be even and at least 2 * degree + 2 = {least}")
    return layer | {"degree": degree, "nodes": nodes}


def _with_one_formula(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["function"] is None) == (layer["nngp"] is None):
        raise ConfigError(
            'needs either function, such as "x * sigmoid(x)", or nngp, the kernel as a formula in k, p and q'
        )
    if layer["function"] is None:
        if layer["degree"] is not None or layer["nodes"] is not None:
            raise ConfigError("degree and nodes belong to function: nngp is evaluated as it is written")
        return layer
    return _with_series(layer)


def _with_smoothness(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["kernel"] == "matern") != (layer["nu"] is not None):
        raise ConfigError("nu is the smoothness of matern, 0.5, 1.5 or 2.5: required there, unknown elsewhere")
    return layer


def _with_strides(layer: dict[str, Any]) -> dict[str, Any]:
    if layer["strides"] is None:
        return layer | {"strides": list(layer["window"])}
    return _with_as_many("window", layer)


def _with_as_many(window: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Strides along as many axes as the window has."""
    if len(layer["strides"]) != len(layer[window]):
        if layer["strides"] != [1, 1]:
            raise ConfigError(f"{window}={layer[window]} and strides={layer['strides']} must have as many numbers")
        return layer | {"strides": [1] * len(layer[window])}
    return layer


def _with_attention(layer: dict[str, Any]) -> dict[str, Any]:
    if not layer["linear_scaling"]:
        raise ConfigError(
            "linear_scaling=False has no kernel of this form: queries times keys, divided by the square root of their "
            "number, stay random however many there are. Set linear_scaling to true, which divides by their number"
        )
    return _with_positions(layer)


def _with_positions(layer: dict[str, Any]) -> dict[str, Any]:
    """No embeddings go without saying: descriptions are what stored kernels are found by."""
    if layer["pos_emb_type"] == "NONE":
        idle = [p.name for p in _POSITIONS if layer[p.name] != p.default]
        if idle:
            raise ConfigError(
                f"{', '.join(idle)}: there are no positional embeddings unless pos_emb_type is SUM or CONCAT"
            )
        return {name: value for name, value in layer.items() if "pos_emb" not in name}
    if layer["pos_emb_type"] == "SUM" and layer["n_chan_pos_emb"] is not None:
        raise ConfigError(
            "n_chan_pos_emb is for pos_emb_type=CONCAT: embeddings that are added have as many channels as the pixels"
        )
    return layer | {"pos_emb_p_norm": 2.0} if layer["pos_emb_decay_fn"] is None else layer


def _on_planes(layer: dict[str, Any]) -> dict[str, Any]:
    layer = _with_as_many("filter", layer)
    if len(layer["filter"]) != 2:
        raise ConfigError(
            f"filter={layer['filter']} must be two integers along height and width: it is of images and sequences"
        )
    return layer


def _with_shape(layer: dict[str, Any]) -> dict[str, Any]:
    if len(layer["shape"]) != 2:
        raise ConfigError(f"shape={layer['shape']} must be a height and a width")
    if 0 in layer["shape"]:
        raise ConfigError(f"shape={layer['shape']} must be a height and a width of at least 1; -1 leaves one as it is")
    return layer | {"antialias": True} if layer["method"] == "nearest" else layer


def _with_fractions(layer: dict[str, Any]) -> dict[str, Any]:
    fractions, branches = layer["fractions"], layer["branches"]
    if fractions is None:
        return layer
    if len(fractions) != len(branches):
        raise ConfigError(f"states {len(fractions)} fractions for {len(branches)} branches: one for each, or none")
    if abs(sum(fractions) - 1.0) > _ROUNDING:
        raise ConfigError(f"fractions sum to {sum(fractions):g}: they are shares of all channels, and sum to 1")
    return layer


# Of fractions, which must sum to 1: thirds in six digits do not.
_ROUNDING = 1e-5


def _with_taps(layer: dict[str, Any]) -> dict[str, Any]:
    """Uniform taps go without saying: descriptions are what stored kernels are found by."""
    layer = _with_as_many("filter", layer)
    if layer["taps"] == "uniform":
        return {name: value for name, value in layer.items() if name != "taps"}
    if set(layer["strides"]) != {1} or layer["padding"] == "VALID" or any(size % 2 == 0 for size in layer["filter"]):
        raise ConfigError(
            "taps=delta needs a central tap at every pixel: filter of odd sizes, strides [1, 1], padding SAME or CIRCULAR"
        )
    if layer["parameterization"] != "ntk":
        raise ConfigError(
            "taps=delta needs parameterization=ntk: in the standard one the taps that begin at zero are trained too"
        )
    return layer


def acting_filter(layer: Mapping[str, Any]) -> tuple[int, ...]:
    """Height and width (of volumes depth, height and width) of the taps of a canonical `conv` that have weights: of delta taps the
    central one alone.
    """
    size = tuple(layer["filter"])
    return (1,) * len(size) if layer.get("taps") == "delta" else size


# What the parameters of one layer must satisfy together, and the defaults that follow from others.
JOINT_RULES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "conv": _with_taps,
    "fan_in_concat": _with_fractions,
    "avg_pool": _with_strides,
    "sum_pool": _with_strides,
    "global_self_attention": _with_attention,
    "resize": _with_shape,
    "conv_transpose": _on_planes,
    "conv_local": _on_planes,
    "elementwise": _with_one_formula,
    "stationary": _with_smoothness,
} | {op: _with_series for op, parameters in LAYERS.items() if parameters[-2:] == _SERIES}
