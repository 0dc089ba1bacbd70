"""The public module `ntkpipe.zoo`: one function per family of networks, which returns an `Architecture`.

All parameters are keywords; `kernels/zoo.py` describes them. Families whose layers depend on the images (`myrtle5`,
`myrtle7`, `myrtle10`) also take `image_shape`, whose default is CIFAR's `(32, 32, 3)`.

>>> from ntkpipe import zoo
>>> zoo.fcn(depth=1)
Architecture(flatten, dense, relu, dense)
>>> len(zoo.myrtle10().to_spec()) > 10
True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import FAMILIES, Family

__all__ = [
    "attention",
    "cnn_gap",
    "cnn_vec",
    "cntk",
    "fcn",
    "laplace",
    "linear",
    "matern",
    "myrtle5",
    "myrtle7",
    "myrtle10",
    "rbf",
    "resnet",
    "wide_resnet",
]


def _network(name: str, family: Family) -> Callable[..., Architecture]:
    def make(*, image_shape: Sequence[int] = (32, 32, 3), **parameters: Any) -> Architecture:
        return Architecture.from_spec(family(image_shape, **parameters))

    own = inspect.signature(make)
    taken = inspect.signature(family.make).parameters
    named = [taken[key].replace(kind=inspect.Parameter.KEYWORD_ONLY) for key in family.takes]
    shape = [own.parameters["image_shape"]] if family.needs_image_shape else []
    make.__signature__ = own.replace(parameters=[*shape, *named])  # type: ignore[attr-defined]
    make.__name__ = make.__qualname__ = name
    make.__doc__ = family.make.__doc__
    return make


attention = _network("attention", FAMILIES["attention"])
cnn_gap = _network("cnn_gap", FAMILIES["cnn_gap"])
cnn_vec = _network("cnn_vec", FAMILIES["cnn_vec"])
cntk = _network("cntk", FAMILIES["cntk"])
fcn = _network("fcn", FAMILIES["fcn"])
laplace = _network("laplace", FAMILIES["laplace"])
linear = _network("linear", FAMILIES["linear"])
matern = _network("matern", FAMILIES["matern"])
myrtle5 = _network("myrtle5", FAMILIES["myrtle5"])
myrtle7 = _network("myrtle7", FAMILIES["myrtle7"])
myrtle10 = _network("myrtle10", FAMILIES["myrtle10"])
rbf = _network("rbf", FAMILIES["rbf"])
resnet = _network("resnet", FAMILIES["resnet"])
wide_resnet = _network("wide_resnet", FAMILIES["wide_resnet"])
