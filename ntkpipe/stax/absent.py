"""Functions of neural-tangents that are missing here; each raises a `ConfigError` with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ntkpipe.errors import ConfigError


def _without(name: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"stax.{name} has no layer here: {reason}")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refused: {reason}."
    return refuse


_PLACES = "the kernel would differ between pixels, but layers here treat all pixels alike"

Index = _without("Index", f"no layer picks pixels; {_PLACES}")
DotGeneral = _without("DotGeneral", "no layer multiplies activations by a given array: multiply the inputs instead")
Aggregate = _without("Aggregate", "no layer takes a graph as a second input")

_OWN = "give your own layers as formulas, such as stax.Elementwise('x * sigmoid(x)')"
layer = _without("layer", _OWN)
requires = _without("requires", _OWN)
supports_masking = _without("supports_masking", "masks are part of the arrays: NaN after the end of each sequence")
unmask_fn = _without("unmask_fn", "masks are part of the arrays: NaN after the end of each sequence")


class _Slices:
    def __getitem__(self, _: Any) -> NoReturn:
        Index()


Slice = _Slices()
