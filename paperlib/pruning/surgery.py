"""Carrying out a plan: a smaller network (Section 3.1, Fig. 2), and the masked one that it must equal."""

import copy

import numpy as np
import torch
from torch import nn

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, trace_channels
from paperlib.pruning.compensation import Compensation
from paperlib.pruning.fx_ops import classify_module
from paperlib.pruning.layers import make_bypasses, removable_blocks, without_blocks
from paperlib.pruning.plan import PruningPlan, removed_channels
from paperlib.structure import select_channels, shallow_copy

COMPENSATIONS = ("off", "bias", "exact")


def apply_plan(detector: nn.Module, plan: PruningPlan, *, compensate: str = "bias") -> nn.Module:
    """A new network without what `plan` removes (Section 3.1, Fig. 2); `detector` is untouched.

    Args:
        detector: the network that the plan was made for.
        plan: which channels stay, and which blocks go.
        compensate: what happens to the constants that removed channels and blocks emitted in evaluation mode.
            `off`: they are dropped, as in the paper.
            `bias`: they move into the consumer's bias, or its batch norm's running mean. Exact for a consumer
            without padding; wrong along the border of a zero-padded one, where the plane had ended; for a
            transposed convolution right only on the average over its output positions, for a consumer called with
            several sets of constants on their average.
            `exact`: where a bias will not do, one removed channel stays as a carrier: with gamma 0 it emits a
            constant plane, from which the consumer makes all that it lost. Exact to rounding everywhere,
            borders included; costs a channel a consumer at most (V channels, called with V sets of constants),
            which may break a multiple of `round_to`.
            Either way a removed block leaves a shift of one value a channel behind, and that is exact.

    Returns:
        A network of the same class; training mode and requires_grad are kept.

    Raises:
        ValueError: `compensate` is unknown; the plan does not fit the network (see `removed_channels`); or a
            constant cannot be made up for, with the name of the layer that loses it.
    """
    if compensate not in COMPENSATIONS:
        raise ValueError(f"compensate {compensate!r} is not known; choose one of: {', '.join(COMPENSATIONS)}")
    whole = without_blocks(detector, make_bypasses(detector, plan.blocks, shifted=compensate != "off"))
    graph = trace_channels(whole)
    removed = removed_channels(graph, plan)
    if compensate == "off":
        return _cut(whole, graph, removed)
    compensation = Compensation(whole, graph, removed, exact=compensate == "exact")
    pruned = _cut(whole, graph, compensation.removed)
    compensation.fill_(pruned)
    return pruned


@torch.no_grad()
def mask_plan(detector: nn.Module, plan: PruningPlan, *, keep_beta: bool = False) -> nn.Module:
    """A full-size copy in which what `plan` removes has gamma 0, and beta 0 unless `keep_beta`.

    A removed block is masked in the batch norm that ends its branch. The reference for surgery: in evaluation mode
    it computes what the pruned network computes.

    Raises:
        ValueError: the plan does not fit the network.
    """
    graph = trace_channels(without_blocks(detector, make_bypasses(detector, plan.blocks, shifted=False)))
    removed = removed_channels(graph, plan)
    off = {norm: removed[graph.layers[name].outputs] for name, norm in graph.prunable.items()}
    if plan.blocks:
        blocks = removable_blocks(detector)
        off |= {blocks[name].norm: np.True_ for name in plan.blocks}
    masked = copy.deepcopy(detector)
    for name, channels in off.items():
        norm = masked.get_submodule(name)
        at = torch.from_numpy(np.broadcast_to(channels, norm.num_features).copy())
        norm.weight[at] = 0.0
        if not keep_beta:
            norm.bias[at] = 0.0
    return masked


def _cut(whole: nn.Module, graph: ChannelGraph, removed: BoolArray) -> nn.Module:
    """A copy of `whole` without the channels at `removed`."""
    modules = dict(whole.named_modules())
    # What the memo of a deep copy names is taken for copied already.
    copied = {
        id(module): shallow_copy(module) for module in modules.values() if classify_module(module) == "activation"
    }
    for name, layer in graph.layers.items():
        inputs, outputs = (torch.from_numpy(np.flatnonzero(~removed[ids])) for ids in (layer.inputs, layer.outputs))
        copied[id(modules[name])] = select_channels(modules[name], inputs, outputs)
    return copy.deepcopy(whole, copied)
