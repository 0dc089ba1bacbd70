"""Compose layers in series and in branches into networks."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.state import Array
from ntkpipe.stax.values import whole

_Spec = list[dict[str, Any]]


class Network(Architecture):
    """An architecture that also unpacks like the networks of neural-tangents, `init_fn, apply_fn, kernel_fn =
    network`.
    """

    def kernel_fn(self, x1: Array, x2: Array | None = None, get: str | Sequence[str] | None = None, **more: Any) -> Any:
        """Return the kernels of all pairs, as `kernel_fn` of neural-tangents does.

        Args:
            x1: first images, see `Architecture.__call__`.
            x2: second images; None pairs `x1` with itself.
            get: `nngp` or `ntk` for one array, several names for a named tuple, None for both kernels.
            more: other arguments of neural-tangents, which must be None.

        Raises:
            ConfigError: if `get` is another name, another argument is given, or `x1` is a kernel (use `serial`
                instead).
        """
        for name, value in more.items():
            if value is not None:
                raise ConfigError(f"kernel_fn does not support {name}: see docs/migrating.md")
        names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
        for name in names:
            if name not in ("nngp", "ntk"):
                raise ConfigError(f"get={name!r} is not one of nngp, ntk, the parts that kernels have here")
        if not hasattr(x1, "shape"):
            raise ConfigError(
                "kernel_fn takes arrays: to apply a network to another network's kernel, compose them with stax.serial"
            )
        kernels = self(x1, x2)
        if isinstance(get, str):
            return getattr(kernels, get)
        made = namedtuple("Kernels", names)
        return made(*(getattr(kernels, name) for name in names))

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        yield _no_finite_network
        yield _no_finite_network
        yield self.kernel_fn


def _no_finite_network(*_: Any, **__: Any) -> NoReturn:
    raise ConfigError(
        "this network has infinite width and no weights. Use kernel_fn, or make a finite network: "
        "ntkpipe.finite.init(network.to_spec(), x.shape[1:], seed=0) and ntkpipe.finite.apply"
    )


@dataclass(frozen=True)
class Piece:
    """Layers in series that are part of a network. `serial` composes them into a network.

    Args:
        parts: specs of layers, and markers where branches begin and end.
    """

    parts: tuple[Any, ...] = field(repr=False)

    def __repr__(self) -> str:
        names = [part["op"] if isinstance(part, dict) else type(part).__name__.strip("_") for part in self.parts]
        return f"Piece({', '.join(names)})"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`: a piece has no kernel. The message names what is missing."""
        self._lacking()

    def __iter__(self) -> Iterator[Any]:
        self._lacking()

    def _lacking(self) -> NoReturn:
        Network.from_spec(_resolve(self.parts))
        raise ConfigError(f"{self!r} is a layer: make it a network with stax.serial")


@dataclass(frozen=True)
class _FanOut:
    number: int


@dataclass(frozen=True)
class _Parallel:
    branches: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class _FanIn:
    op: str


def _parts(layer: Any) -> tuple[Any, ...]:
    if isinstance(layer, Piece):
        return layer.parts
    if isinstance(layer, Architecture):
        return tuple(layer.to_spec())
    hint = f": write stax.{layer.__name__}()" if callable(layer) and hasattr(layer, "__name__") else ""
    raise ConfigError(f"{type(layer).__name__} is not a layer{hint}; layers come from the functions of ntkpipe.stax")


def serial(*layers: Any) -> Any:
    """Compose layers in series.

    Args:
        layers: pieces and networks.

    Returns:
        A `Network`; or a `Piece` if the layers alone are not a network, such as a residual block that begins with
        `Relu`. Calling a piece raises an error with the reason.
    """
    parts = tuple(part for layer in layers for part in _parts(layer))
    try:
        return Network.from_spec(_resolve(parts))
    except ConfigError:
        return Piece(parts)


def repeat(layer: Any, n: int) -> Any:
    """Repeat a layer n times in series, each time with its own weights. It is compiled once, so n may be large."""
    if whole("n", n, 0) < 2:
        return serial(*([layer] * n))
    try:
        layers = _joined(_parts(layer))
    except ConfigError:  # branches that begin or end outside the layer
        return serial(*([layer] * n))
    return serial(Piece(({"op": "repeat", "times": n, "layers": layers},)))


def parallel(*layers: Any) -> Piece:
    """Parallel layers, one per branch, between `FanOut` and one of `FanInSum`, `FanInProd` and `FanInConcat`."""
    return Piece((_Parallel(tuple(_parts(layer) for layer in layers)),))


def FanOut(num: int) -> Piece:
    """Copy the activations to `num` branches."""
    return Piece((_FanOut(whole("num", num, 1)),))


def FanInSum() -> Piece:
    """Add all branches."""
    return Piece((_FanIn("residual_sum"),))


def FanInProd() -> Piece:
    """Multiply all branches channel by channel."""
    return Piece((_FanIn("fan_in_product"),))


def FanInConcat(axis: int = -1) -> Piece:
    """Concatenate the channels of all branches."""
    if axis not in (-1, 3):
        raise ConfigError(f"axis={axis!r}: FanInConcat supports only the channels, axis -1")
    return Piece((_FanIn("fan_in_concat"),))


def _resolve(parts: Sequence[Any]) -> _Spec:
    """Return the list of layers of the parts."""
    return _on_pixels(_joined(parts), False)[0]


def _joined(parts: Sequence[Any]) -> _Spec:
    """Return the list of layers, with branches between their markers joined."""
    made: _Spec = []
    branches: list[list[Any]] | None = None
    for part in parts:
        if isinstance(part, dict):
            if branches is not None:
                raise ConfigError(
                    f"{part['op']} follows {len(branches)} branches: put FanInSum, FanInProd or FanInConcat before "
                    "it, or put it into parallel"
                )
            made.append(part)
        elif isinstance(part, _FanOut):
            if branches is not None:
                raise ConfigError(
                    "FanOut cannot follow branches: put it into one branch of parallel, together with its FanInSum"
                )
            branches = [[] for _ in range(part.number)]
        elif branches is None:
            name = "parallel" if isinstance(part, _Parallel) else "FanIn"
            raise ConfigError(f"{name} needs branches: put FanOut before it")
        elif isinstance(part, _Parallel):
            if len(part.branches) != len(branches):
                raise ConfigError(
                    f"parallel has {len(part.branches)} layers for {len(branches)} branches of FanOut: "
                    "give one per branch"
                )
            for branch, more in zip(branches, part.branches, strict=True):
                branch += more
        else:
            specs = [_joined(branch) for branch in branches]
            made += specs[0] if len(specs) == 1 else [{"op": part.op, "branches": specs}]
            branches = None
    if branches is not None:
        raise ConfigError(f"{len(branches)} branches are not joined: end them with FanInSum")
    return made


_OF_IMAGES = {
    "conv",
    "conv_transpose",
    "conv_local",
    "resize",
    "avg_pool",
    "sum_pool",
    "global_avg_pool",
    "global_sum_pool",
    "global_self_attention",
    "flatten",
}
_FLATTENING = {"flatten", "global_avg_pool", "global_sum_pool"}


def _on_pixels(layers: Sequence[Mapping[str, Any]], image: bool) -> tuple[_Spec, bool]:
    """Replace each dense layer on images by a 1 x 1 convolution, which acts on every pixel separately.

    Args:
        layers: list of layers.
        image: whether the output of the last layer must be an image.

    Returns:
        The layers, and whether the input of the first layer must be an image.
    """
    made: _Spec = []
    for layer in reversed(layers):
        layer = dict(layer)
        if layer["op"] in _FLATTENING:
            image = False
        if layer["op"] == "dense" and image:
            layer |= {"op": "conv", "filter": [1, 1], "strides": [1, 1], "padding": "VALID"}
        elif layer["op"] == "repeat":
            # The output of one repetition is the input of the next.
            _, enters = _on_pixels(layer["layers"], image)
            layer["layers"], image = _on_pixels(layer["layers"], image or enters)
        elif "branches" in layer:
            branches = [_on_pixels(branch, image) for branch in layer["branches"]]
            layer["branches"] = [branch for branch, _ in branches]
            image = image or any(needed for _, needed in branches)
        image = image or layer["op"] in _OF_IMAGES
        made.append(layer)
    return made[::-1], image


def layer_piece(op: str, **parameters: Any) -> Piece:
    """Return a piece of one layer."""
    return Piece(({"op": op, **parameters},))
