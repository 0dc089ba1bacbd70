"""`ntkpipe describe`: prints a kernel's layers, or its spec for a file of layers."""

from __future__ import annotations

import json

from ntkpipe.cli.session import Session
from ntkpipe.config import GIVEN_KERNELS, RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import check_kernel, kernel_spec
from ntkpipe.kernels.spec import canonical_spec, dump_spec
from ntkpipe.planning.network import describe_kernel
from ntkpipe.planning.shapes import spec_for
from ntkpipe.propagation.summary import summary
from ntkpipe.report.network import network_svg
from ntkpipe.run.prepare import read_shapes
from ntkpipe.run.sweep import sweep_runs


def describe(config: RunConfig, session: Session, *, image_shape: str | None, format: str | None) -> None:
    """Print the layers of the configured kernel, without computing or starting anything.

    Args:
        config: configuration with the kernel to describe. The deepest of several depths is described.
        session: not used.
        image_shape: shape of an image, such as `[32,32,3]`; None takes the shape of the data set.
        format: `table` for a table, `json` or `yaml` for the spec that `kernel=spec kernel.path=FILE` reads, or `svg`
            for a diagram.

    Raises:
        ConfigError: if the kernel, the shape or the format is invalid.
    """
    del session
    if format not in ("table", "json", "yaml", "svg"):
        raise ConfigError(f"format={format} is not one of table, json, yaml, svg")
    config = max(sweep_runs(config), key=lambda one: one.kernel.depth)
    check_kernel(config.kernel)
    if config.kernel.kind in GIVEN_KERNELS:
        raise ConfigError(
            f"kernel={config.kernel.kind} is read from files and has no layers: ntkpipe plan describes it"
        )
    if image_shape is None:
        shapes = read_shapes(config)[0]
        shape, spec = shapes.image, spec_for(config.kernel, shapes)
    else:
        shape = _parsed(image_shape)
        spec = kernel_spec(config.kernel, shape)
    if format == "table":
        print(describe_kernel(spec, shape, config.kernel.dtype))
        for position, line in enumerate(summary(spec, config.kernel.dtype)):
            print(f"{'' if position else 'signals':<11}  {line}")
    elif format == "svg":
        print(network_svg(canonical_spec(spec), shape))
    else:
        print(dump_spec(spec, format), end="")


def _parsed(text: str) -> tuple[int, ...]:
    try:
        shape = json.loads(text)
    except ValueError:
        shape = None
    if not isinstance(shape, list) or len(shape) not in (1, 3) or not all(type(n) is int and n > 0 for n in shape):
        raise ConfigError(f"image_shape={text} must be [height,width,channels] or [features], such as [32,32,3]")
    return tuple(shape)
