"""Architectures as plain lists of layers, `[{"op": "flatten"}, {"op": "dense", "features": 512, ...}, ...]`.

This module imports neither JAX nor NumPy, so plans and configurations can be checked without them. Lists may come from
untrusted files: every input gives a canonical list or a `ConfigError`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.joint_conditions import JOINT_CONDITIONS
from ntkpipe.kernels.parameters import LAYERS, is_list, shorten

# Part of every fingerprint. Increase it when a change of a formula changes the kernel of a spec.
FORMULA_VERSION = 3


# Deepest nesting of layers within layers, well below Python's recursion limit.
DEEPEST = 32
# Layers of a network, branches and repetitions included: ten times the deepest that was ever trained
# (arXiv:1806.05393). YAML's
# aliases let a
# file of a few lines stand for more than any memory holds.
MOST_LAYERS = 200_000
# Number of layers above which a network counts as deep (see `is_deep`).
_DEEP = 1000
# Largest number of characters in a file.
_MOST_CHARACTERS = 64 << 20


def name_layer(index: int, layer: Any) -> str:
    """Return the name of a layer for error messages: its position, counted from 0, and its op."""
    op = layer.get("op") if isinstance(layer, Mapping) else layer
    short = isinstance(op, str) and len(op) <= 60 and op.isprintable()
    return f"layer {index} ({op if short else shorten(op)})"


class _Canonical:
    """Converts one list of layers to canonical form and counts its layers."""

    def __init__(self) -> None:
        self._count = 0

    def layers(self, layers: Any, depth: int) -> list[dict[str, Any]]:
        made = []
        for index, layer in enumerate(layers):
            self._count += 1
            self._check_count()
            try:
                made.append(self._layer(layer, depth))
            except _PlacedError as error:
                raise _PlacedError(f"{name_layer(index, layer)}, {error}") from None
            except ConfigError as error:
                raise _PlacedError(f"{name_layer(index, layer)}: {error}") from None
        return made

    def _check_count(self) -> None:
        if self._count > MOST_LAYERS:
            raise ConfigError(f"the architecture has more than {MOST_LAYERS:,} layers")

    def _layer(self, layer: Any, depth: int) -> dict[str, Any]:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("op"), str):
            raise ConfigError('a layer must be a mapping with a name, such as {"op": "relu"}')
        op = layer["op"]
        if op not in LAYERS:
            raise ConfigError(f"unknown op; known: {', '.join(LAYERS)}")
        parameters = LAYERS[op]
        names = [p.name for p in parameters]
        unknown = sorted(shorten(key).strip("'") for key in layer if key != "op" and key not in names)
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ConfigError(f"unknown parameter {', '.join(unknown[:5])}{more}; known: {', '.join(names) or 'none'}")
        missing = [p.name for p in parameters if p.required and p.name not in layer]
        if missing:
            raise ConfigError(f"needs {', '.join(missing)}")
        if op == "repeat":
            return self._repeat(op, parameters[0].canonical(layer["times"]), layer["layers"], depth + 1)
        made: dict[str, Any] = {"op": op}
        for p in parameters:
            value = layer.get(p.name, p.default)
            made[p.name] = self._branches(value, depth + 1) if p.kind == "branches" else p.canonical(value)
        return JOINT_CONDITIONS.get(op, dict)(made)

    def _repeat(self, op: str, times: int, layers: Any, depth: int) -> dict[str, Any]:
        if not is_list(layers) or not layers:
            raise ConfigError(
                'layers must be a list of at least one layer, such as [{"op": "relu"}, {"op": "dense", ...}]'
            )
        _check_depth(depth)
        before = self._count
        made = self.layers(layers, depth)
        self._count += (times - 1) * (self._count - before)
        self._check_count()
        return {"op": op, "times": times, "layers": made}

    def _branches(self, branches: Any, depth: int) -> list[list[dict[str, Any]]]:
        if not is_list(branches) or not branches or not all(is_list(branch) for branch in branches):
            raise ConfigError(
                "branches must be a list of lists of layers, at least one, such as "
                '[[{"op": "relu"}, {"op": "dense", "features": 512}], []]'
            )
        _check_depth(depth)
        self._count += len(branches)  # empty branches count too
        made = []
        for number, branch in enumerate(branches):
            try:
                made.append(self.layers(branch, depth))
            except _PlacedError as error:
                raise _PlacedError(f"branch {number}, {error}") from None
        return made


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ConfigError(f"layers within layers (branches, repeat) are nested more than {DEEPEST} deep")


class _PlacedError(ConfigError):
    """An error whose message begins with the position of the layer or branch."""


@runtime_checkable
class HasSpec(Protocol):
    """A network that knows its list of layers, such as an `Architecture`."""

    def to_spec(self) -> list[dict[str, Any]]:
        """Return the list of layers."""
        ...


Spec = Sequence[Mapping[str, Any]] | HasSpec
"""A list of layers, or a network with a method `to_spec`."""


def canonical_spec(layers: Any) -> list[dict[str, Any]]:
    """Return the layers with every parameter stated, in a fixed order and with fixed types.

    Lists with the same meaning have the same canonical form and therefore the same fingerprint.

    Args:
        layers: a sequence of mappings, or a network (`HasSpec`). Any other value is an error.

    Raises:
        ConfigError: if an op is unknown, or a parameter is missing, unknown or out of range. The message names the
            layer, such as `layer 1 (residual_sum), branch 0, layer 2 (conv): needs filter`.
    """
    if isinstance(layers, HasSpec):
        layers = layers.to_spec()
    if not is_list(layers):
        raise ConfigError(f"an architecture must be a list of layers, got {type(layers).__name__}")
    if not layers:
        raise ConfigError('an architecture needs at least one layer, such as {"op": "flatten"}')
    try:
        return _Canonical().layers(layers, 0)
    except _PlacedError as error:
        raise ConfigError(str(error)) from None


def inner_lists(layer: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the lists of layers within a layer: its branches, or the layers that it repeats."""
    return layer["branches"] if "branches" in layer else [layer["layers"]] if "layers" in layer else []


def unrolled(layers: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the layers in order, with `repeat` unrolled; branches are not unrolled."""
    for layer in layers:
        if layer["op"] == "repeat":
            for _ in range(layer["times"]):
                yield from unrolled(layer["layers"])
        else:
            yield layer


def is_deep(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a network has so many layers that ordinary formulas lose digits.

    The error of the ReLU NTK is 8e-8 at 10,000 layers and grows with the square of the depth. Deep fully connected
    networks are evaluated in distance form, except those with series, which would take too long and lose fewer digits.
    """
    if not any(layer["op"] == "repeat" for layer in layers):
        return False
    every = list(unrolled(layers))
    return len(every) > _DEEP and not any("nodes" in layer for layer in every)


def canonical_json(layers: Spec) -> str:
    """Return the canonical form as one line of JSON, which is equal for equal architectures."""
    return json.dumps(canonical_spec(layers), separators=(",", ":"), sort_keys=True, allow_nan=False)


def fingerprint(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 (hexadecimal) of the canonical form and of the version of the formulas."""
    text = f"ntkpipe-kernel/{FORMULA_VERSION}:{canonical_json(layers)}"
    return hashlib.sha256(text.encode()).hexdigest()


def load_spec(path: str | Path) -> list[dict[str, Any]]:
    """Read a list of layers from a `.json`, `.yaml` or `.yml` file, in canonical form.

    Raises:
        ConfigError: if the file is absent, malformed, or not a list of known layers.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise ConfigError(f"kernel.path={path} cannot be read ({error}): name a JSON or YAML list of layers") from None
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(
            f"kernel.path={path} has more than {_MOST_CHARACTERS:,} characters, which is too long for a list of layers"
        )
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"kernel.path={path} must end in .json, .yaml or .yml")
    try:
        layers = json.loads(text, object_pairs_hook=_distinct) if suffix == ".json" else _parse_yaml(text)
        return canonical_spec(layers)
    except ConfigError as error:
        raise ConfigError(f"kernel.path={path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"kernel.path={path} is not valid {suffix[1:].upper()}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"kernel.path={path} is not valid {suffix[1:].upper()}: {error}") from None


def _distinct(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping, or raise `ValueError` if a name occurs twice, because its value would be ambiguous."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shorten(twice)} occurs twice in one layer: leave one out")
    return made


def _parse_yaml(text: str) -> Any:
    # Imported here: kernels must load where PyYAML (which comes with OmegaConf) is absent.
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader that reads 1e-12 as a number (YAML 1.1 reads text), and rejects repeated names and merged
        mappings.
        """

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            values = [self.construct_object(key, deep=True) for key, _ in node.value]
            _distinct([(shorten(value), None) for value in values])
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(_fault(error)) from None


def _fault(error: Any) -> str:
    """Return one line that says what a `YAMLError` found wrong, and where: its own text has several."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def dump_spec(layers: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return the canonical list as text that `load_spec` reads, with one layer per line.

    Args:
        layers: list of layers.
        form: `json` or `yaml`.
    """
    return (_json_lines if form == "json" else _yaml_lines)(canonical_spec(layers), "") + "\n"


def _json_lines(layers: Sequence[Mapping[str, Any]], indent: str) -> str:
    inner = indent + "  "

    def line(layer: Mapping[str, Any]) -> str:
        if layer["op"] == "repeat":
            return f'{{"op": "repeat", "times": {layer["times"]}, "layers": {_json_lines(layer["layers"], inner)}}}'
        if "branches" not in layer:
            return json.dumps(layer, allow_nan=False)
        branches = [_json_lines(branch, inner + "  ") for branch in layer["branches"]]
        text = f",\n{inner}  ".join(branches)
        plain = json.dumps({name: value for name, value in layer.items() if name != "branches"}, allow_nan=False)
        return f'{plain[:-1]}, "branches": [\n{inner}  {text}]}}'

    return "[" + ",".join(f"\n{inner}{line(layer)}" for layer in layers) + (f"\n{indent}]" if layers else "]")


def _yaml_lines(layers: Sequence[Mapping[str, Any]], indent: str) -> str:
    """Return layers in YAML's flow style."""
    lines = []
    for layer in layers:
        if layer["op"] == "repeat":
            lines.append(f"{indent}- op: repeat\n{indent}  times: {layer['times']}\n{indent}  layers:")
            lines.append(_yaml_lines(layer["layers"], indent + "    "))
            continue
        plain = [f"{name}: {_yaml_value(value)}" for name, value in layer.items() if name != "branches"]
        if "branches" not in layer:
            lines.append(f"{indent}- {{{', '.join(plain)}}}")
            continue
        lines.append("\n".join([f"{indent}- {plain[0]}", *(f"{indent}  {one}" for one in [*plain[1:], "branches:"])]))
        for branch in layer["branches"]:
            text = _yaml_lines(branch, indent + "    ")
            lines.append(f"{indent}  - " + (text.removeprefix(indent + "    ") if branch else "[]"))
    return "\n".join(lines)


def _yaml_value(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_]+", value) and value.lower() not in _YAML_WORDS
    return value if plain else json.dumps(value, allow_nan=False)


# Plain words that YAML 1.1 does not read as text.
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf")
