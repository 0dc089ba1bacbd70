"""Builds layers and architectures from the configuration of a kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ntkpipe.config import COMBINED, GIVEN_KERNELS, PLAIN_KERNELS, KernelConfig, from_dict
from ntkpipe.errors import ConfigError
from ntkpipe.finite.kernel import EmpiricalKernel
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.combined import Combination, KernelProduct, KernelSum
from ntkpipe.kernels.cost import KernelCost, kernel_cost
from ntkpipe.kernels.spec import load_spec
from ntkpipe.kernels.zoo import FAMILIES

# An image size that all families accept, for checks before any image is read.
_USUAL_SHAPE = (32, 32, 3)
# Fields of nearly all kinds, which messages leave out.
_COMMON = ("kind", "dtype")
# `dtype` has no effect on a given matrix, but stored runs contain it.
_HARMLESS = ("dtype",)


def kernel_spec(kernel: KernelConfig, image_shape: Sequence[int]) -> list[dict[str, Any]]:
    """The layers of the configured network for images of a given shape.

    Args:
        kernel: the configuration.
        image_shape: `(height, width, channels)`; the layers of some families depend on it.

    Raises:
        ConfigError: that names the wrong setting, or the wrong layer of a file.
    """
    if kernel.kind in GIVEN_KERNELS:
        raise ConfigError(
            f"kernel={kernel.kind} is read from files and has no layers: choose a family, such as kernel=fcn"
        )
    if kernel.kind in COMBINED:
        raise ConfigError(f"kernel={kernel.kind} consists of several networks: choose one of its parts")
    _refuse_others(kernel)
    if kernel.kind in ("spec", "empirical"):
        assert kernel.path is not None  # checked by KernelConfig
        return load_spec(kernel.path)
    family = FAMILIES[kernel.kind]
    if "filter" in family.takes:
        kernel = dataclasses.replace(kernel, filter=_filter(kernel.filter, image_shape))
    return family(image_shape, **{name: getattr(kernel, name) for name in family.takes})


def _filter(size: tuple[int, ...], image_shape: Sequence[int]) -> tuple[int, ...]:
    """Filter sizes along the axes of the points; one number stands for all axes."""
    if len(image_shape) == 3 and len(size) < 3:
        # A sequence is an image of width 1, and filter taps across its width would only scale the kernel.
        return size[:1] if image_shape[1] == 1 else (size * 2)[:2]
    if len(image_shape) == 4 and len(set(size)) == 1:
        return (size[0],) * 3
    if (len(image_shape) == 4) != (len(size) == 3):
        kind, right = ("volumes", "[3,3,3]") if len(image_shape) == 4 else ("images", "[3,3]")
        raise ConfigError(
            f"kernel.filter={list(size)} has {len(size)} numbers, but the data has {kind} of "
            f"{' x '.join(map(str, image_shape[:-1]))}: set one number per axis, such as kernel.filter={right}"
        )
    return size


def check_kernel(kernel: KernelConfig) -> None:
    """Check the settings and the layers without any image.

    Raises:
        ConfigError: that names an invalid setting, or a layer for which the formulas do not hold.
    """
    if kernel.kind in GIVEN_KERNELS:
        _refuse_others(kernel)
        return
    if kernel.kind == "empirical":
        empirical_kernel(kernel)
        return
    if kernel.kind in COMBINED:
        combined_kernel(kernel, _USUAL_SHAPE)
        return
    architecture(kernel_spec(kernel, _USUAL_SHAPE))


def combined_kernel(kernel: KernelConfig, image_shape: Sequence[int], name: str = "kernel") -> Combination:
    """The architectures of `kernel=sum` or `kernel=product`, and their combination.

    Args:
        kernel: the configuration.
        image_shape: see `kernel_spec`.
        name: of the setting, for messages.

    Raises:
        ConfigError: that names the invalid part.
    """
    _refuse_others(kernel)
    made: list[Any] = []
    for k, given in enumerate(kernel.parts):
        try:
            one = _part(given, f"{name}.parts[{k}]", kernel.dtype)
            if one.kind in COMBINED:
                made.append(combined_kernel(one, image_shape, f"{name}.parts[{k}]"))
            else:
                made.append(architecture(kernel_spec(one, image_shape)))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(f"{name}.parts") else f"{name}.parts[{k}]: {text}") from error
    if kernel.kind == "product":
        return KernelProduct(tuple(made))
    assert not isinstance(kernel.weights, str)  # checked by KernelConfig
    return KernelSum(tuple(made), kernel.weights)  # type: ignore[arg-type]


def _part(given: Mapping[str, Any], name: str, dtype: str) -> KernelConfig:
    """The configuration of one part of a sum or product."""
    if given.get("dtype", dtype) != dtype:
        raise ConfigError(f"{name} sets dtype={given['dtype']}, but all parts have kernel.dtype={dtype}: leave it out")
    if "kind" not in given:
        raise ConfigError(f"{name} has no kind: write {{kind:fcn, ...}}")
    if given["kind"] in (*GIVEN_KERNELS, "empirical"):
        raise ConfigError(
            f"{name} is kernel={given['kind']}: parts of sums and products must be infinitely wide networks. Combine such matrices "
            "yourself, and give the result as kernel=gram"
        )
    one: KernelConfig = from_dict(KernelConfig, {**given, "dtype": dtype}, f"{name}.")
    if one.readout_depths:
        raise ConfigError(f"{name} has several depths: give each depth as a separate part")
    return one


def empirical_kernel(kernel: KernelConfig) -> EmpiricalKernel:
    """The finite network of `kernel=empirical`, for points of any shape.

    Raises:
        ConfigError: that names an invalid setting or layer.
        DataError: that names an invalid file of weights.
    """
    return EmpiricalKernel(
        kernel_spec(kernel, _USUAL_SHAPE),
        kernel.weights if isinstance(kernel.weights, str) else None,
        seed=kernel.seed,
        initialiser=kernel.initialiser,
        outputs=kernel.outputs,
    )


def pair_cost(spec: Sequence[Mapping[str, Any]], image_shape: Sequence[int]) -> KernelCost:
    """Arithmetic and memory of one pair of images.

    Raises:
        ConfigError: that names the layer that does not accept images of this shape.
    """
    return kernel_cost(spec, architecture(spec).steps(tuple(image_shape)))


def kernel_takes(kind: str) -> tuple[str, ...]:
    """Fields of `KernelConfig` that a kind uses, including `kind`."""
    if kind == "gram":
        return ("kind", "train", "test", "test_diagonal")
    if kind == "features":
        return ("kind", "dtype", "train", "test", "scale")
    if kind == "empirical":
        return ("kind", "dtype", "path", "weights", "seed", "initialiser", "outputs")
    if kind in COMBINED:
        return ("kind", "dtype", "parts", *(("weights",) if kind == "sum" else ()))
    depths = ("readout_depths",) if kind in PLAIN_KERNELS else ()
    return ("kind", "dtype", *depths, *(("path",) if kind == "spec" else FAMILIES[kind].takes))


def _refuse_others(kernel: KernelConfig) -> None:
    """Raise if a setting that this kind does not use differs from its default."""
    takes = kernel_takes(kernel.kind)
    for field in dataclasses.fields(kernel):
        if field.name in takes or field.name in _HARMLESS:
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        if getattr(kernel, field.name) != default:
            known = ", ".join(f"kernel.{name}" for name in takes if name not in _COMMON)
            raise ConfigError(f"kernel.{field.name} has no meaning for kernel={kernel.kind}, which takes {known}")
