"""Architectures as plain lists of layers, `[{"op": "flatten"}, {"op": "dense", "features": 512, ...}, ...]`.

Knows the name, type and default of every parameter, and no mathematics: imports neither JAX nor NumPy, so that plans and
configurations can be checked without them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.nonlinear.formula import canonical_covariance, canonical_function

# Part of every fingerprint: raise it when a formula changes the values that a spec stands for.
FORMULA_VERSION = 1

_REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer: its kind, its default (absent means required) and the values it may take."""

    name: str
    kind: str  # "int", "number", "choice", "axes" or "formula"
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
        """The value in its one canonical form (numbers as float, axes as list).

        Raises:
            ConfigError: if it is of another type or out of range; the text begins with the parameter's name.
        """
        if value is None and self.optional:
            return None
        if self.kind == "choice":
            if value not in self.choices:
                raise ConfigError(f"{self.name}={value!r} is not one of {', '.join(map(str, self.choices))}")
            return value
        if self.canonical_formula is not None:
            return self.canonical_formula(value)
        if self.kind == "axes":
            axes = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            if axes not in [list(c) for c in self.choices]:
                known = " or ".join(str(list(c)) for c in self.choices)
                raise ConfigError(f"{self.name}={value!r} must be {known}")
            return axes
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
            raise ConfigError(f"{self.name}={value!r} must be {'an integer' if self.kind == 'int' else 'a number'}")
        if not math.isfinite(value):
            raise ConfigError(f"{self.name}={value!r} must be finite")
        if value <= self.above or value < self.at_least:
            bound = f"above {self.above:g}" if value <= self.above else f"at least {self.at_least:g}"
            raise ConfigError(f"{self.name}={value!r} must be {bound}")
        if value >= self.below or value > self.at_most:
            bound = f"below {self.below:g}" if value >= self.below else f"at most {self.at_most:g}"
            raise ConfigError(f"{self.name}={value!r} must be {bound}")
        return int(value) if self.kind == "int" else float(value)


_AFFINE = (Parameter("a", "number", 1.0), Parameter("b", "number", 1.0), Parameter("c", "number", 0.0))
# Powers whose moments float32 still holds at variance 1: 39!! is 3e23.
_POWER = (Parameter("degree", "int", at_least=0.0, at_most=20.0),)
_SERIES = (
    Parameter("degree", "int", 64, at_least=1.0, at_most=255.0),
    Parameter("nodes", "int", None, optional=True, at_least=4.0, at_most=512.0),
)

# Every layer that can be named, with its parameters in canonical order.
LAYERS: dict[str, tuple[Parameter, ...]] = {
    "flatten": (),
    "dense": (
        Parameter("features", "int", at_least=1.0),
        Parameter("w_std", "number", 1.0, above=0.0),
        Parameter("b_std", "number", None, optional=True, at_least=0.0),
        Parameter("parameterization", "choice", "ntk", choices=("ntk", "standard")),
    ),
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
        *(replace(parameter, default=None, optional=True) for parameter in _SERIES),
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
        Parameter("axis", "axes", [-1], choices=((-1,),)),
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


def _canonical_layer(layer: Any) -> dict[str, Any]:
    if not isinstance(layer, Mapping) or not isinstance(layer.get("op"), str):
        raise ConfigError('a layer must be a mapping with a name, such as {"op": "relu"}')
    op = layer["op"]
    if op not in LAYERS:
        raise ConfigError(f"unknown op; known: {', '.join(LAYERS)}")
    parameters = LAYERS[op]
    names = [p.name for p in parameters]
    unknown = sorted(str(key) for key in layer if key != "op" and key not in names)
    if unknown:
        raise ConfigError(f"unknown parameter {', '.join(unknown)}; known: {', '.join(names) or 'none'}")
    missing = [p.name for p in parameters if p.required and p.name not in layer]
    if missing:
        raise ConfigError(f"needs {', '.join(missing)}")
    made = {"op": op} | {p.name: p.canonical(layer.get(p.name, p.default)) for p in parameters}
    return _JOINT_RULES.get(op, dict)(made)


def _with_series(layer: dict[str, Any]) -> dict[str, Any]:
    """The degree and the nodes of a series agree: products of its polynomials are integrated exactly."""
    degree = layer["degree"]
    least = 2 * degree + 2
    nodes = least if layer["nodes"] is None else layer["nodes"]
    if nodes < least or nodes % 2:
        raise ConfigError(f"nodes={nodes} must be even and at least 2 * degree + 2 = {least}")
    return layer | {"nodes": nodes}


def _with_one_formula(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["function"] is None) == (layer["nngp"] is None):
        raise ConfigError(
            'needs either function, such as "x * sigmoid(x)", or nngp, the kernel as a formula in k, p and q'
        )
    if layer["function"] is None:
        if layer["degree"] is not None or layer["nodes"] is not None:
            raise ConfigError("degree and nodes belong to function: nngp is evaluated as it is written")
        return layer
    return _with_series(layer | {"degree": _SERIES[0].default if layer["degree"] is None else layer["degree"]})


def _with_smoothness(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["kernel"] == "matern") != (layer["nu"] is not None):
        raise ConfigError("nu is the smoothness of matern, 0.5, 1.5 or 2.5: required there, unknown elsewhere")
    return layer


# What the parameters of one layer must satisfy together, and the defaults that follow from others.
_JOINT_RULES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "elementwise": _with_one_formula,
    "stationary": _with_smoothness,
} | {op: _with_series for op, parameters in LAYERS.items() if parameters[-2:] == _SERIES}


def name_layer(index: int, layer: Any) -> str:
    """How errors call a layer: its position, counted from 0, and its op."""
    op = layer.get("op") if isinstance(layer, Mapping) else layer
    return f"layer {index} ({op if isinstance(op, str) else repr(op)})"


def canonical_spec(layers: Any) -> list[dict[str, Any]]:
    """The same layers with every parameter stated, in a fixed order and of a fixed type.

    Two lists that mean the same have the same canonical form, hence the same fingerprint.

    Args:
        layers: meant to be a sequence of mappings; checked, since it may come from a file.

    Raises:
        ConfigError: naming the layer whose op is unknown or whose parameter is missing, unknown or out of range.
    """
    if isinstance(layers, (str, bytes, Mapping)) or not isinstance(layers, Sequence):
        raise ConfigError(f"an architecture must be a list of layers, got {type(layers).__name__}")
    if not layers:
        raise ConfigError('an architecture needs at least one layer, such as {"op": "flatten"}')
    made = []
    for index, layer in enumerate(layers):
        try:
            made.append(_canonical_layer(layer))
        except ConfigError as error:
            raise ConfigError(f"{name_layer(index, layer)}: {error}") from None
    return made


def canonical_json(layers: Sequence[Mapping[str, Any]]) -> str:
    """The canonical form as one line of JSON: equal for equal architectures, and a hashable key."""
    return json.dumps(canonical_spec(layers), separators=(",", ":"), sort_keys=True, allow_nan=False)


def fingerprint(layers: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hexadecimal) of the canonical form and of the version of the formulas."""
    text = f"ntkpipe-kernel/{FORMULA_VERSION}:{canonical_json(layers)}"
    return hashlib.sha256(text.encode()).hexdigest()


def load_spec(path: str | Path) -> list[dict[str, Any]]:
    """Read a list of layers from a `.json`, `.yaml` or `.yml` file, in canonical form.

    Raises:
        ConfigError: if the file is absent, malformed, or not a list of known layers.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"kernel.path={path} cannot be read ({error}): name a JSON or YAML list of layers") from None
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"kernel.path={path} must end in .json, .yaml or .yml")
    try:
        layers = json.loads(text) if suffix == ".json" else _parse_yaml(text)
        return canonical_spec(layers)
    except ConfigError as error:
        raise ConfigError(f"kernel.path={path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"kernel.path={path} is not valid {suffix[1:].upper()}: {error}") from None


def _parse_yaml(text: str) -> Any:
    # Imported here: kernels must load where PyYAML (which comes with OmegaConf) is absent.
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and reads 1e-12 as a number, which YAML 1.1 takes for text."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(error) from None
