"""Describes a network as a table of its layers, shapes, covariances and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ntkpipe.gram.plan import ITEM_BYTES
from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.cost import LayerCost, input_cost, kernel_cost, layer_costs
from ntkpipe.kernels.parameters import LAYERS
from ntkpipe.kernels.spec import canonical_spec, fingerprint, inner_lists
from ntkpipe.units import human_bytes

Row = tuple[str, str, str, str, str]


def describe_kernel(spec: Sequence[Mapping[str, Any]], image_shape: Sequence[int], dtype: str = "float32") -> str:
    """The layers, totals and fingerprint of a network, as text.

    Args:
        spec: the layers.
        image_shape: `(height, width, channels)` or `(features,)`.
        dtype: of the computation.

    Raises:
        ConfigError: that names the layer that does not accept images of this shape.
    """
    spec = canonical_spec(spec)
    steps = architecture(spec).steps(tuple(image_shape))
    first = input_cost(spec, steps)
    rows: list[Row] = [
        ("", "layer", "outgoing", "covariances", "flops"),
        ("", "images", _shape(image_shape), f"{first.entries:,}", f"{first.flops:,.0f}"),
        *_rows(spec, steps, layer_costs(spec, steps), ""),
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join((*(row[k].ljust(widths[k]) for k in range(3)), *(row[k].rjust(widths[k]) for k in (3, 4))))
        for row in rows
    ]
    cost = kernel_cost(spec, steps)
    size = ITEM_BYTES[dtype]
    lines += [
        "",
        f"arithmetic   {cost.flops_per_pair:,.0f} flops per pair of points, NNGP and NTK: {cost.product_flops:.3g} in matrix "
        f"products, {cost.elementwise_flops:.3g} elsewhere",
        f"memory       {human_bytes(2 * cost.entries * size)} per pair around the widest layer, "
        f"{human_bytes((cost.inputs + cost.seen) * size)} per point, in {dtype}",
        f"fingerprint  {fingerprint(spec)}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def traffic(spec: Sequence[Mapping[str, Any]], image_shape: Sequence[int]) -> float:
    """Numbers that the layers read and write for both kernels of a pair. Nonlinearities are fused into adjacent layers."""
    steps = architecture(spec).steps(tuple(image_shape))

    def entries(layers: Sequence[LayerCost]) -> float:
        return sum(
            layer.times * sum(entries(branch) for branch in layer.branches) if layer.branches else layer.entries
            for layer in layers
        )

    # The entries of a layer count its input and its output. Layers that are fused in pairs move half of that.
    return 2 * entries([input_cost(spec, steps), *layer_costs(spec, steps)]) / 2


def _rows(
    spec: Sequence[Mapping[str, Any]], steps: Sequence[Any], costs: Sequence[LayerCost], place: str
) -> Iterator[Row]:
    indent = "  " * place.count(".")
    for index, (layer, step, cost) in enumerate(zip(spec, steps, costs, strict=True)):
        after = step.outgoing
        shape = _shape(after.shape)
        yield f"{place}{index}", indent + _text(layer), shape, f"{after.entries:,}", f"{cost.flops:,.0f}"
        if layer["op"] == "repeat":
            yield from _rows(layer["layers"], step.branches[-1], cost.branches[-1], f"{place}{index}.")
            continue
        for number, branch in enumerate(inner_lists(layer)):
            here = f"{place}{index}.{number}"
            yield here, f"{indent}  branch{'' if branch else ': the identity'}", "", "", ""
            yield from _rows(branch, step.branches[number], cost.branches[number], f"{here}.")


def _text(layer: Mapping[str, Any]) -> str:
    """A layer and its parameters that differ from the defaults."""
    stated = [
        f"{p.name}={_value(layer[p.name])}"
        for p in LAYERS[layer["op"]]
        if p.kind not in ("branches", "layers") and (p.required or layer.get(p.name, p.default) != p.default)
    ]
    return " ".join([layer["op"], *stated])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
