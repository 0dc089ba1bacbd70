"""From the configuration of a kernel to the layers of an architecture."""

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

# Of the size for which the families are meant, so that what they refuse before any image is read is not its shape.
_USUAL_SHAPE = (32, 32, 3)
# Fields that nearly all kinds take: not worth a mention.
_COMMON = ("kind", "dtype")
# Of a given matrix `dtype` means nothing, and runs are stored that have it.
_HARMLESS = ("dtype",)


def kernel_spec(kernel: KernelConfig, image_shape: Sequence[int]) -> list[dict[str, Any]]:
    """The layers that the configuration declares for images of a shape.

    Args:
        kernel: the configuration.
        image_shape: `(height, width, channels)`; the layers of some families depend on it.

    Raises:
        ConfigError: naming the setting, or the layer of a file, that is at fault.
    """
    if kernel.kind in GIVEN_KERNELS:
        raise ConfigError(f"kernel={kernel.kind} is made of files: it has no layers")
    if kernel.kind in COMBINED:
        raise ConfigError(f"kernel={kernel.kind} is made of several networks: ask for one of its parts")
    _refuse_others(kernel)
    if kernel.kind in ("spec", "empirical"):
        assert kernel.path is not None  # checked by KernelConfig
        return load_spec(kernel.path)
    family = FAMILIES[kernel.kind]
    if "filter" in family.takes:
        kernel = dataclasses.replace(kernel, filter=_filter(kernel.filter, image_shape))
    return family(image_shape, **{name: getattr(kernel, name) for name in family.takes})


def _filter(size: tuple[int, ...], image_shape: Sequence[int]) -> tuple[int, ...]:
    """Taps along as many axes as the points have: equal numbers stand for any number of them."""
    if len(image_shape) == 3 and len(size) < 3:
        # Beside a sequence, an image of width 1, is nothing: taps there would only divide its kernel.
        return size[:1] if image_shape[1] == 1 else (size * 2)[:2]
    if len(image_shape) == 4 and len(set(size)) == 1:
        return (size[0],) * 3
    if (len(image_shape) == 4) != (len(size) == 3):
        kind, right = ("volumes", "[3,3,3]") if len(image_shape) == 4 else ("images", "[3,3]")
        raise ConfigError(
            f"kernel.filter={list(size)} has {len(size)} numbers, and these are {kind} of "
            f"{' x '.join(map(str, image_shape[:-1]))}: set as many, such as kernel.filter={right}"
        )
    return size


def check_kernel(kernel: KernelConfig) -> None:
    """Refuse what can be refused before any image is read: settings, and layers for which the formulas do not hold.

    Raises:
        ConfigError: naming the setting or the layer.
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
    """The architectures of `kernel=sum` or `kernel=product`, and how they are put together.

    Args:
        kernel: the configuration.
        image_shape: see `kernel_spec`.
        name: of the setting, for messages.

    Raises:
        ConfigError: naming the part that is at fault.
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
    if given.get("dtype", dtype) != dtype:
        raise ConfigError(f"{name} says dtype={given['dtype']}: all parts have kernel.dtype={dtype}, leave it out")
    if "kind" not in given:
        raise ConfigError(f"{name} names no kind: write {{kind:fcn, ...}}")
    one: KernelConfig = from_dict(KernelConfig, {**given, "dtype": dtype}, f"{name}.")
    if one.kind in ("gram", "empirical"):
        raise ConfigError(f"{name} is kernel={one.kind}: parts of sums and products are infinitely wide networks")
    if one.readout_depths:
        raise ConfigError(f"{name} has several depths: give each as a part of its own")
    return one


def empirical_kernel(kernel: KernelConfig) -> EmpiricalKernel:
    """The finite network of `kernel=empirical`, for points of any shape.

    Raises:
        ConfigError, DataError: naming the setting, the layer or the file that is at fault.
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
        ConfigError: naming the layer that images of this shape cannot pass.
    """
    return kernel_cost(spec, architecture(spec).steps(tuple(image_shape)))


def kernel_takes(kind: str) -> tuple[str, ...]:
    """Fields of `KernelConfig` that a kind reads, `kind` itself included."""
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
    takes = kernel_takes(kernel.kind)
    for field in dataclasses.fields(kernel):
        if field.name in takes or field.name in _HARMLESS:
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        if getattr(kernel, field.name) != default:
            known = ", ".join(f"kernel.{name}" for name in takes if name not in _COMMON)
            raise ConfigError(f"kernel.{field.name} has no meaning for kernel={kernel.kind}, which takes {known}")
