"""Error messages that name the place of a layer in its spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.residual import PlaceError, ShapeError, signatures
from ntkpipe.kernels.spec import name_layer
from ntkpipe.kernels.state import Layer, Signature

# Size of an image that fits every window and that usual strides divide.
_LARGE = 1 << 20


def check_any_shape(spec: Sequence[Mapping[str, Any]], layers: tuple[Layer, ...]) -> None:
    """Raise `ConfigError` if a network accepts no inputs at all: neither very large images, nor volumes, nor flat
    inputs.
    """
    errors = []
    shapes = ((_LARGE, _LARGE, 1), (_LARGE, _LARGE, _LARGE, 1), (1,))
    for start in map(Signature.of_shape, shapes):
        try:
            signatures(layers, start)
        except PlaceError as error:
            if isinstance(error.root, ShapeError):
                return  # for check_input to say, of given images
            errors.append(error)
        else:
            return
    raise ConfigError(located(max(errors, key=lambda error: int(error.place)), spec))


def located(error: PlaceError, spec: Sequence[Mapping[str, Any]]) -> str:
    """Return the message with the place of the layer: `layer 1 (residual_sum), branch 0, layer 2 (relu) ...`."""
    layer = spec[int(error.place)]
    text = name_layer(int(error.place), layer)
    cause = error.cause
    if isinstance(cause, PlaceError) and isinstance(cause.place, int):  # a layer that is repeated
        return f"{text}, {located(cause, layer['layers'])}"
    if isinstance(cause, PlaceError):  # a branch of a residual sum
        inner = cause.cause
        assert isinstance(inner, PlaceError)
        return f"{text}, {cause.place}, {located(inner, layer['branches'][int(str(cause.place).split()[1])])}"
    return f"{text} {cause}"
