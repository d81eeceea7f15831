"""Carrying out a plan: a smaller network (Section 3.1, Fig. 2), and the masked one that it must equal."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, trace_channels
from paperlib.pruning.code_sizes import write_sizes
from paperlib.pruning.compensation import Compensation
from paperlib.pruning.constants import positions_of
from paperlib.pruning.fx_ops import NORMS, read_attribute
from paperlib.pruning.layers import make_bypasses, removable_blocks, without_blocks
from paperlib.pruning.plan import PruningPlan, removed_channels
from paperlib.pruning.tracing import unwrap
from paperlib.structure import (
    copy_network,
    note_resized,
    select_channels,
    select_values,
)

COMPENSATIONS = ("off", "bias", "exact")


def apply_plan(
    detector: nn.Module, plan: PruningPlan, *, compensate: str = "bias", example_inputs: Any = None
) -> nn.Module:
    """Return a new network without what `plan` removes (Section 3.1, Fig. 2); `detector` is untouched.

    Args:
        detector: the network that the plan was made for.
        plan: which channels are kept, and which blocks are removed.
        compensate: how to treat the constants that removed channels and blocks emitted in evaluation mode.
            `off`: they are dropped, as in the paper.
            `bias`: they move into the consumer's bias, or its batch norm's running mean. This is exact for a consumer
            without padding. It is wrong along the border of a zero-padded one, where the constant plane ended. For a
            transposed convolution it is right only on the average over its output positions, and for a consumer
            called with several sets of constants on the average over these.
            `exact`: where a bias is not enough, one removed channel is kept as a carrier: with gamma 0 it emits a
            constant plane, from which the consumer computes all that it lost. Exact to rounding everywhere,
            borders included; costs at most one channel per consumer (V channels if called with V sets of constants),
            so that the count may no longer be a multiple of `round_to`.
            In both cases a removed block leaves a shift of one value per channel behind, and that is exact.
        example_inputs: those of `plan_pruning`, if it needed some to trace the network (see `trace_channels`).

    Returns:
        A network of the same class; training mode and requires_grad are kept.

    Raises:
        ValueError: `compensate` is unknown; the plan does not fit the network (see `removed_channels`); or a
            constant cannot be compensated, with the name of the layer that loses it.
    """
    if compensate not in COMPENSATIONS:
        raise ValueError(f"compensate {compensate!r} is not known; choose one of: {', '.join(COMPENSATIONS)}")
    detector = unwrap(detector)
    base = without_blocks(detector, make_bypasses(detector, plan.blocks, shifted=compensate != "off"))
    graph = trace_channels(base, example_inputs)
    removed = removed_channels(graph, plan)
    if compensate == "off":
        return _remove_channels(base, graph, removed)
    compensation = Compensation(base, graph, removed, exact=compensate == "exact")
    pruned = _remove_channels(base, graph, compensation.removed)
    compensation.fill_(pruned)
    return pruned


def find_carriers(detector: nn.Module, plan: PruningPlan) -> PruningPlan:
    """Return the plan with the carriers that `apply_plan(detector, plan, compensate="exact")` keeps.

    A comparison of features leaves them out: they emit constants, not features of `detector`.

    Raises:
        ValueError: see `apply_plan`.
    """
    base = without_blocks(detector, make_bypasses(detector, plan.blocks, shifted=True))
    graph = trace_channels(base)
    compensation = Compensation(base, graph, removed_channels(graph, plan), exact=True)
    return replace(plan, carriers=compensation.carrier_outputs())


@torch.no_grad()
def mask_plan(
    detector: nn.Module, plan: PruningPlan, *, keep_beta: bool = False, example_inputs: Any = None
) -> nn.Module:
    """Copy `detector` at full size and set gamma (and beta, unless `keep_beta`) of what `plan` removes to 0.

    Unless `keep_beta`, further norms, depthwise convolutions and per-channel parameters that such a channel passes add
    nothing to it, either.
    A removed block is masked in the batch norm that ends its branch. The reference for surgery: in evaluation mode
    it computes what the pruned network computes. The exception is an operation that turns 0 into something else, such
    as a sigmoid or 1 - x, before the next layer: `compensate="off"` drops that, too; only with `keep_beta` and
    `compensate="exact"` are both the same.

    Raises:
        ValueError: the plan does not fit the network.
    """
    detector = unwrap(detector)
    base = without_blocks(detector, make_bypasses(detector, plan.blocks, shifted=False))
    graph = trace_channels(base, example_inputs)
    removed = removed_channels(graph, plan)
    blocks = removable_blocks(detector) if plan.blocks else {}
    masked = copy_network(detector)
    masks = {
        norm: torch.from_numpy(removed[graph.layers[norm].outputs] & loud) for norm, loud in graph.silencing.items()
    }
    masks |= {norm: torch.ones((), dtype=torch.bool) for name in plan.blocks for norm in blocks[name].norms}
    if not keep_beta:
        passed = {name: layer for name, layer in graph.layers.items() if layer.kind in (*NORMS, "depthwise")}
        masks |= {name: torch.from_numpy(removed[layer.outputs]) for name, layer in passed.items()}
    if not keep_beta:
        for name, parameter in graph.parameters.items():
            tensor: Any = read_attribute(masked, name)
            tensor.movedim(parameter.dim, 0)[torch.from_numpy(removed[parameter.numbers])] = 0.0
    for name, mask in masks.items():
        layer = masked.get_submodule(name)
        if not isinstance(layer, _ConvNd):
            masked.get_parameter(f"{name}.weight")[mask] = 0.0
        if not keep_beta and layer.bias is not None:
            masked.get_parameter(f"{name}.bias")[mask] = 0.0
    return masked


def _remove_channels(base: nn.Module, graph: ChannelGraph, removed: BoolArray) -> nn.Module:
    """Copy `base` without the channel numbers at `removed`."""
    modules = dict(base.named_modules())
    memo: dict[int, Any] = {}
    kept = ~removed
    for name, layer in graph.layers.items():
        inputs, outputs = positions_of(kept[layer.inputs]), positions_of(kept[layer.outputs])
        memo[id(modules[name])] = select_channels(modules[name], inputs, outputs)
    _share_again(graph, modules, memo)
    cut = {name: each for name, each in graph.parameters.items() if removed[each.numbers].any()}
    for each in cut.values():
        memo[id(each.tensor)] = select_values(each.tensor, each.dim, positions_of(kept[each.numbers]))
    pruned = copy_network(base, memo)
    for name in cut:
        owner, _, key = name.rpartition(".")
        note_resized(pruned.get_submodule(owner), key)
    sizes = {place: (ids, times) for place, (ids, times) in graph.code_sizes.items() if removed[ids].any()}
    write_sizes(pruned, {place: int(kept[ids].sum()) * times for place, (ids, times) in sizes.items()})
    return pruned


def _share_again(graph: ChannelGraph, modules: dict[str, nn.Module], memo: dict[int, Any]) -> None:
    """Give layers that shared a parameter the same new one."""
    new: dict[int, nn.Parameter | None] = {}
    for name in graph.layers:
        copied = memo[id(modules[name])]._parameters
        for key, parameter in modules[name]._parameters.items():
            copied[key] = new.setdefault(id(parameter), copied[key])
