"""Pretrained scale factors brought to one level, without changing what the network computes (Section 4.3).

The paper starts every gamma at 0.5, so that the L1 term of Eq. 4 meets equal opponents. Pretrained weights bring their
own: their scale is arbitrary, since a channel's gamma and beta times s and its consumers' weights divided by s are
the same function wherever act(s x) = s act(x) for s > 0, as for ReLU and leaky ReLU.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.pruning.channel_graph import ChannelGraph, trace_channels
from paperlib.pruning.fx_ops import classify_node

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, F.relu, F.leaky_relu, torch.relu, "relu", "relu_")
_ADDITIONS = ("add", "add_", "sub", "sub_")
_CONSUMERS = ("conv", "linear")
DEAD = 1e-4
"""Channels whose |gamma| is below this share of the level are left alone: to raise them would blow up rounding."""


@torch.no_grad()
def rescale_gamma_(module: nn.Module, level: float = 0.5) -> None:
    """Give each prunable channel |gamma| = `level`, in place; what the network computes stays the same.

    Tied channels share one factor, so that the mean |gamma| of each such group is at the level. Channels that can
    never be pruned, and dead ones, keep theirs.

    Args:
        module: any network that `trace_channels` can read, whose activations are ReLU-like.
        level: the common |gamma|, above 0; the paper's start is 0.5.

    Raises:
        ValueError: the level is not above 0, or a channel flows through something that does not scale with it; the
            module is untouched then.
    """
    if not level > 0:
        raise ValueError(f"level {level} is not above 0")
    graph = trace_channels(module)
    _refuse_unscalable(module, graph)
    factors = _factors(module, graph, level)
    for name, layer in graph.layers.items():
        at = module.get_submodule(name)
        if name in graph.prunable:
            norm = module.get_submodule(graph.prunable[name])
            factor = _like(norm.weight, factors[layer.outputs])
            norm.weight *= factor
            norm.bias *= factor
        if layer.kind in _CONSUMERS:
            kernels = at.weight.transpose(0, 1) if isinstance(at, nn.ConvTranspose2d) else at.weight
            kernels /= _like(kernels, factors[layer.inputs]).view(1, -1, *[1] * (kernels.dim() - 2))


def _factors(module: nn.Module, graph: ChannelGraph, level: float) -> np.ndarray:
    """What the channel of each number is multiplied by."""
    total, count = np.zeros(len(graph.fixed)), np.zeros(len(graph.fixed))
    for name, norm in graph.prunable.items():
        ids = graph.layers[name].outputs
        np.add.at(total, ids, module.get_submodule(norm).weight.abs().double().cpu().numpy())
        np.add.at(count, ids, 1)
    mean = total / np.maximum(count, 1)
    movable = (count > 0) & ~graph.fixed & (mean > DEAD * level)
    return np.where(movable, level / np.where(movable, mean, 1.0), 1.0)


def _refuse_unscalable(module: nn.Module, graph: ChannelGraph) -> None:
    """Prunable channels pass only through what scales with them, from their batch norm to their consumers."""
    modules = dict(module.named_modules())
    own_norms = set(graph.prunable.values())
    for name, layer in graph.layers.items():
        foreign = layer.kind == "depthwise" or (layer.kind == "norm" and name not in own_norms)
        if foreign and not graph.fixed[layer.inputs].all():
            raise ValueError(f"cannot level gamma: {name} does not scale with its input")
    for node in graph.recorded.nodes:
        what = modules[node.target] if node.op == "call_module" else node.target
        if node not in graph.opaque and not _scales(classify_node(node, modules), what):
            label = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", what)
            raise ValueError(f"cannot level gamma: {label} at {node.name} does not scale with its input")


def _scales(kind: str, what: Any) -> bool:
    if kind == "activation":
        return type(what) in _HOMOGENEOUS or what in _HOMOGENEOUS
    if kind == "bypass":
        return what.shift is None and (what.after is None or type(what.after) in _HOMOGENEOUS)
    return kind != "arithmetic" or getattr(what, "__name__", what) in _ADDITIONS


def _like(tensor: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(tensor.device, tensor.dtype)
