"""Estimates of operations and memory per pair of images, for plans.

They are computed from the specs of the layers and the shapes in their steps (`Architecture.steps`), without JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ntkpipe.kernels.parameters import USUAL_DEGREE, acting_filter
from ntkpipe.kernels.spec import inner_lists, is_deep

if TYPE_CHECKING:
    from ntkpipe.kernels.evaluation.resolve import Step
    from ntkpipe.kernels.state import Signature

# Floating-point operations of a nonlinearity per covariance, for both kernels together. A root or a division counts as
# one.
_ELEMENTWISE: Mapping[str, float] = {
    "relu": 35.0,
    "leaky_relu": 35.0,
    "ab_relu": 35.0,
    "abs": 35.0,
    "rectified_monomial": 50.0,
    "sign": 25.0,
    "erf": 40.0,
    "sigmoid_like": 40.0,
    "gelu": 60.0,
    "sin": 50.0,
    "cos": 50.0,
    "monomial": 20.0,
    "hermite": 30.0,
    "exp": 30.0,
    "exp_normalized": 30.0,
    "rbf": 30.0,
    "gaussian": 35.0,
    "elementwise": 60.0,  # the formula of a kernel and its derivative
    "stationary": 30.0,
}


# Cost of a pair in distance form relative to a pair of covariances: the variances of both images are carried as well.
_DISTANCE_FORM = 4.0


@dataclass(frozen=True)
class KernelCost:
    """Cost of both kernels of one pair of images.

    Args:
        elementwise_flops: floating-point operations on single covariances.
        product_flops: floating-point operations in matrix products, which run many times faster.
        input_entries: number of covariances of the input images.
        entries: largest number of covariances of one kernel that enter and leave a layer.
        seen: numbers per image that are kept besides its pixels because pairs need them.
        inputs: numbers per image.
    """

    elementwise_flops: float
    product_flops: float
    input_entries: int
    entries: int
    seen: int
    inputs: int

    @property
    def flops_per_pair(self) -> float:
        """All floating-point operations."""
        return self.elementwise_flops + self.product_flops


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer, including its branches.

    Args:
        elementwise_flops, product_flops, entries, seen: see `KernelCost`.
        branches: for a join of branches, the cost of each layer of each branch; for a repeat, the cost of each layer in
            one repetition.
        times: how often the branches are evaluated.
    """

    elementwise_flops: float = 0.0
    product_flops: float = 0.0
    entries: int = 0
    seen: int = 0
    branches: tuple[tuple[LayerCost, ...], ...] = ()
    times: int = 1

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.elementwise_flops + self.product_flops


def kernel_cost(spec: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> KernelCost:
    """Return the cost of both kernels of one pair of images.

    Args:
        spec: the canonical list of layers.
        steps: the steps of the same layers, from `Architecture.steps`.
    """
    costs = [input_cost(spec, steps), *layer_costs(spec, steps)]
    times = _DISTANCE_FORM if _is_flat(spec, steps) and is_deep(spec) else 1.0
    first = steps[0].incoming
    return KernelCost(
        elementwise_flops=times * sum(c.elementwise_flops for c in costs),
        product_flops=sum(c.product_flops for c in costs),
        input_entries=costs[0].entries,
        entries=max(c.entries for c in costs),
        seen=0 if _is_flat(spec, steps) and is_deep(spec) else sum(c.seen for c in costs),
        inputs=math.prod(first.spatial) * first.features,
    )


def input_cost(spec: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> LayerCost:
    """Return the cost of the input: inner products of whole images, or of all pairs of pixels that are needed."""
    first = steps[0].incoming
    if _is_flat(spec, steps):
        return LayerCost(product_flops=2.0 * math.prod(first.spatial) * first.features, entries=1)
    return LayerCost(elementwise_flops=2.0 * first.features * first.entries, entries=first.entries)


def layer_costs(spec: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> tuple[LayerCost, ...]:
    """Return the cost of each layer; the arguments are those of `kernel_cost`."""
    costs = _costs(spec, steps, trained=False)
    return (LayerCost(entries=1), *costs[1:]) if _is_flat(spec, steps) else costs


def _is_flat(spec: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> bool:
    """Return whether the inner products are those of whole images."""
    return not steps[0].incoming.spatial or spec[0]["op"] == "flatten"


def _costs(spec: Sequence[Mapping[str, Any]], steps: Sequence[Step], *, trained: bool) -> tuple[LayerCost, ...]:
    made = []
    for layer, step in zip(spec, steps, strict=True):
        made.append(_layer_cost(layer, step, 2 if trained else 1))
        trained = trained or _has_weights(layer)
    return tuple(made)


def _has_weights(layer: Mapping[str, Any]) -> bool:
    if inner := inner_lists(layer):
        return any(_has_weights(one) for branch in inner for one in branch)
    return layer["op"] in ("dense", "conv", "conv_transpose", "conv_local", "global_self_attention", "stationary")


def _layer_cost(layer: Mapping[str, Any], step: Step, kernels: int) -> LayerCost:
    """Return the cost of one layer whose input has one kernel (the NNGP) or both."""
    op, before, after = layer["op"], step.incoming, step.outgoing
    cost = LayerCost(entries=before.entries + after.entries)
    if op in ("dropout", "identity") or (op == "flatten" and not before.spatial):
        return cost
    if op in ("flatten", "global_avg_pool", "global_sum_pool"):
        return replace(cost, elementwise_flops=float(kernels * before.entries))
    if op == "dense":
        return replace(cost, elementwise_flops=4.0 * after.entries)
    if op == "conv_local":
        equal = replace(after, support=((0,),) * len(after.spatial))
        return replace(cost, elementwise_flops=_convolution(layer, before, equal, kernels))
    if op == "resize":
        return replace(cost, elementwise_flops=kernels * _resizing(layer, before, after))
    if op in ("conv", "conv_transpose"):
        return replace(cost, elementwise_flops=_convolution(layer, before, after, kernels))
    if op in ("avg_pool", "sum_pool"):
        return replace(cost, elementwise_flops=kernels * _pooling(layer, before, after))
    if op == "global_self_attention":
        pixels = math.prod(before.spatial)
        # Two products of pixels x pixels matrices for each kernel; elementwise: the layer's own NTK, scales and biases.
        made = replace(cost, product_flops=kernels * 4.0 * pixels**3, elementwise_flops=6.0 * pixels**2)
        return replace(made, seen=pixels**2, entries=3 * pixels**2)
    if op == "layer_norm":
        return replace(cost, elementwise_flops=(1.0 + kernels) * before.entries, seen=math.prod(before.spatial))
    if "branches" in layer:
        return _joined_cost(layer, step, kernels, cost)
    if op == "repeat":
        return _repeat_cost(layer, step, kernels)
    fields, flops = _nonlinearity(layer)
    return replace(cost, elementwise_flops=flops * before.entries, seen=fields * math.prod(before.spatial))


def _convolution(layer: Mapping[str, Any], before: Signature, after: Signature, kernels: int) -> float:
    """Return the operations of the sums over taps along rows and columns, the scale, the bias and the own gradients."""
    height, *others = acting_filter(layer)
    width = math.prod(others)
    between = _along(after, 0) * _along(before, 1)
    masks = 0 if layer["padding"] == "VALID" else 1
    sums = between * (height - 1 + masks) + after.entries * (width - 1 + masks)
    bias = 0 if layer["b_std"] is None else 1
    return float(kernels * (sums + after.entries) + after.entries * (bias + (kernels - 1)))


def _pooling(layer: Mapping[str, Any], before: Signature, after: Signature) -> float:
    """Return the operations of the sums along columns, then along rows; adjacent windows read every entry once."""
    total, entries = 0, before.entries
    for axis in (1, 0):
        size, stride = (math.prod(layer[name][axis:] if axis else layer[name][:1]) for name in ("window", "strides"))
        left = entries // max(_along(before, axis), 1) * _along(after, axis)
        total += (entries if size == stride else left * size**2) + left
        entries = left
    return float(total)


def _resizing(layer: Mapping[str, Any], before: Signature, after: Signature) -> float:
    """Return the operations: one product and one sum per pair of contributions, along columns, then along rows."""
    total, entries = 0.0, before.entries
    for axis in (1, 0):
        entries = entries // max(_along(before, axis), 1) * _along(after, axis)
        ratio = before.spatial[axis] / after.spatial[axis]
        most = 1 if layer["method"] == "nearest" or ratio == 1 else 2 * (math.ceil(ratio) if layer["antialias"] else 1)
        total += 2.0 * min(most, before.spatial[axis]) ** 2 * entries
    return total


def _joined_cost(layer: Mapping[str, Any], step: Step, kernels: int, cost: LayerCost) -> LayerCost:
    pairs = zip(layer["branches"], step.branches, strict=True)
    branches = tuple(_costs(spec, steps, trained=kernels == 2) for spec, steps in pairs)
    inner = [c for branch in branches for c in branch]
    # A sum adds both kernels of each branch after the first; a mean also scales them; a product takes three products
    # and a sum.
    each = {"residual_sum": 2.0, "fan_in_concat": 4.0, "fan_in_product": 4.0}[layer["op"]]
    added = each * (len(branches) - 1) * step.outgoing.entries
    return LayerCost(
        elementwise_flops=sum(c.elementwise_flops for c in inner) + added,
        product_flops=sum(c.product_flops for c in inner),
        # The input is kept for the other branches, and the results of earlier branches until they are joined.
        entries=max([cost.entries, *(c.entries + cost.entries for c in inner)]),
        seen=sum(c.seen for c in inner),
        branches=branches,
    )


def _repeat_cost(layer: Mapping[str, Any], step: Step, kernels: int) -> LayerCost:
    trained = kernels == 2
    each = []
    for steps in step.branches:
        each.append(_costs(layer["layers"], steps, trained=trained))
        trained = trained or _has_weights(layer)
    counted = [(cost, step.more if step.more and costs is each[-1] else 1) for costs in each for cost in costs]
    return LayerCost(
        elementwise_flops=sum(times * cost.elementwise_flops for cost, times in counted),
        product_flops=sum(times * cost.product_flops for cost, times in counted),
        entries=max(cost.entries for cost, _ in counted),
        seen=sum(times * cost.seen for cost, times in counted),
        branches=(each[-1],),
        times=layer["times"],
    )


def _nonlinearity(layer: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of features per pixel, and the operations per covariance."""
    if "nodes" in layer and layer.get("nngp") is None:
        # Two series by Horner's rule, where each coefficient is a product of two. Features: the coefficients and three
        # more.
        terms = 2 * ((layer["degree"] or USUAL_DEGREE) + 3)
        return terms + 1, 3.0 * terms
    return 2, _ELEMENTWISE[layer["op"]]


def _along(signature: Signature, axis: int) -> int:
    """Return the number of pairs of pixels along one axis."""
    return len(signature.support[axis]) * signature.spatial[axis]
