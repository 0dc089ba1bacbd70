"""Plans sums and products of networks' kernels: the stores of their parts, the cost of a pair, and the identity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ntkpipe.config import COMBINED, KernelConfig, RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import combined_kernel, pair_cost
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.combined import Combination, KernelProduct
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.planning.shapes import Place, Shapes, WantedStore, tile_edge, wanted_stores, with_degrees_for
from ntkpipe.storage.checksum import digest
from ntkpipe.tiles.identity import GramIdentity


def parts_for(kernel: KernelConfig, shapes: Shapes) -> Combination:
    """The configured combination of architectures. A single network is a sum with one part."""
    assert kernel.kind in COMBINED
    return for_data(combined_kernel(kernel, shapes.image), shapes, kernel.dtype)


def for_data(parts: Combination, shapes: Shapes, dtype: str) -> Combination:
    """The combination with the degree of every series that the variances of a data set need; see `shapes.spec_for`."""
    return parts.map(lambda one: architecture(with_degrees_for(one.to_spec(), shapes, dtype)))


def distinct(parts: Combination) -> tuple[Architecture, ...]:
    """The distinct architectures, from left to right."""
    return tuple({one.fingerprint: one for one in parts.leaves()}.values())


def combined_cost(parts: Combination, image: Sequence[int]) -> KernelCost:
    """The cost of one pair, summed over the parts.

    Raises:
        ConfigError: that names the layer that does not accept images of this shape.
    """
    costs = [pair_cost(one.to_spec(), image) for one in distinct(parts)]
    inputs = max(cost.inputs for cost in costs)
    return KernelCost(
        elementwise_flops=sum(cost.elementwise_flops for cost in costs),
        product_flops=sum(cost.product_flops for cost in costs),
        input_entries=max(cost.input_entries for cost in costs),
        entries=max(cost.entries for cost in costs),
        # Each part keeps the images as it prepares them.
        seen=sum(cost.seen for cost in costs) + (len(costs) - 1) * inputs,
        inputs=inputs,
    )


def combined_stores(
    config: RunConfig,
    parts: Combination,
    shapes: Shapes,
    place: Place,
    find_shares: Callable[[GramIdentity], Mapping[int, float]],
) -> list[WantedStore]:
    """The Gram stores of the parts. Runs of a single part share them.

    All parts have tiles of the same size: the size for which most tiles are already stored, or otherwise the size for the
    most expensive part.

    Args:
        config: of the run.
        parts: a combination of architectures.
        shapes: of the images.
        place: see `Place`.
        find_shares: returns, for an identity, the stored share of the tiles of each size.

    Raises:
        ConfigError: for settings that a combination does not support.
    """
    if config.store.name is not None:
        raise ConfigError(
            "store.name names one Gram store, but every part of a sum or product has its own: leave store.name out"
        )
    if config.augment != "none" and any(isinstance(one, KernelProduct) for one in _nodes(parts)):
        raise ConfigError(
            f"augment={config.augment} needs the even part of a kernel, and the even part of a product is not the "
            "product of the even parts: set augment=none, or use kernel=sum"
        )
    networks = distinct(parts)

    def stores(edge: int) -> list[WantedStore]:
        found = []
        for k, one in enumerate(networks):
            for store in wanted_stores(config, (), [one.to_spec()], shapes, edge):
                text = f"part {k + 1} ({shown(one)})" + ("" if store.text == "the kernel" else f", {store.text}")
                found.append(dataclasses.replace(store, text=text))
        return found

    wished = min(tile_edge(config, pair_cost(one.to_spec(), shapes.image), shapes, place, 0.0) for one in networks)
    made = stores(wished)
    if config.grid.edge is not None:
        return made
    there: Counter[int] = Counter()
    for one in made:
        there.update(find_shares(one.identity))
    return stores(max(there, key=lambda edge: (there[edge], edge))) if there else made


def combined_identity(parts: Combination, of: GramIdentity) -> GramIdentity:
    """The identity of a combination's values.

    Args:
        parts: a combination of architectures.
        of: the identity of one part; all parts have the same data, precision, tiles and symmetry.
    """
    content = parts.describe(lambda one: one.fingerprint)
    return dataclasses.replace(
        of,
        architecture=digest(content),
        formula_version=f"{parts.kind} 1 of {of.formula_version}",
        spec=parts.describe(lambda one: one.to_spec()),
    )


def shown(network: Architecture) -> str:
    """A short description of an architecture: the number of layers and their kinds."""
    names = [str(layer["op"]) for layer in network.to_spec()]
    return f"{len(names)} layers, {network.fingerprint[:8]}"


def _nodes(parts: Combination) -> list[Combination]:
    return [parts, *(inner for part in parts.parts if isinstance(part, Combination) for inner in _nodes(part))]
