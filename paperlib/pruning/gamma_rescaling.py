"""Pretrained scale factors rescaled to one level, without changing what the network computes (Section 4.3).

The paper starts every gamma at 0.5, so that the L1 term of Eq. 4 treats all channels alike. Pretrained weights come
with scale factors of arbitrary size: if a channel's gamma and beta are multiplied by s and its consumers' weights are
divided by s, the function is the same wherever act(s x) = s act(x) for s > 0, as for ReLU and leaky ReLU.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from paperlib.pruning.channel_graph import ChannelGraph, trace_channels
from paperlib.pruning.fx_ops import NORMS, classify_node, describe_target, kernel_view, target_name

_HOMOGENEOUS_MODULES = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
_HOMOGENEOUS_CALLS = (F.relu, F.leaky_relu, torch.relu, "relu", "relu_")
_ADDITIONS = ("add", "add_", "sub", "sub_")
DEAD = 1e-4
"""Channels whose |gamma| is below this fraction of the level are not rescaled: that would amplify rounding errors."""


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
        raise ValueError(f"level {level} must be > 0")
    graph = trace_channels(module)
    _refuse_unscalable(module, graph)
    factors = _channel_factors(module, graph, level)
    for name, layer in graph.layers.items():
        # Batch norms that follow no prunable convolution keep their scale.
        if name in graph.prunable:
            norm = graph.prunable[name]
            for parameter in (module.get_parameter(f"{norm}.weight"), module.get_parameter(f"{norm}.bias")):
                parameter *= _to_tensor(factors[layer.outputs], parameter)
        if layer.kind in ("conv", "grouped", "linear"):
            reader = module.get_submodule(name)
            for group, inputs in enumerate(np.split(layer.inputs, getattr(reader, "groups", 1))):
                kernels = kernel_view(reader, group)
                kernels /= _to_tensor(factors[inputs], kernels).view(1, -1, *[1] * (kernels.dim() - 2))


def _channel_factors(module: nn.Module, graph: ChannelGraph, level: float) -> NDArray[np.float64]:
    """Return the factor by which the channel of each number is multiplied."""
    total = np.zeros(len(graph.fixed))
    count = np.zeros(len(graph.fixed))
    for name, norm in graph.prunable.items():
        ids = graph.layers[name].outputs
        np.add.at(total, ids, module.get_parameter(f"{norm}.weight").abs().double().cpu().numpy())
        np.add.at(count, ids, 1)
    # Tied channels count together: several batch norms may scale the same channel number.
    mean = total / np.maximum(count, 1)
    movable = (count > 0) & ~graph.fixed & (mean > DEAD * level)
    return np.where(movable, level / np.where(movable, mean, 1.0), 1.0)


def _refuse_unscalable(module: nn.Module, graph: ChannelGraph) -> None:
    """Check that prunable channels pass only through homogeneous operations between batch norm and consumers."""
    modules = dict(module.named_modules())
    own_norms = set(graph.prunable.values())
    shared = [name for name in graph.prunable if graph.layers[name].norm is None]
    if shared:
        raise ValueError(f"cannot rescale gamma: {shared[0]} is not followed by one batch norm of its own")
    for name, layer in graph.layers.items():
        # A depthwise convolution or a second batch norm adds a constant that is not scaled with its input.
        foreign = layer.kind in ("depthwise", "pixel_norm") or (layer.kind in NORMS and name not in own_norms)
        if foreign and not graph.fixed[layer.inputs].all():
            raise ValueError(f"cannot rescale gamma: {name} does not scale with its input")
    for node in graph.nodes:
        if node not in graph.opaque and not _is_homogeneous(node, modules):
            operation = describe_target(node, modules)
            raise ValueError(f"cannot rescale gamma: {operation} at {node.name} does not scale with its input")


def _is_homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether the output of a node is multiplied by s > 0 if its input is."""
    kind = classify_node(node, modules)
    operation: Any = modules[target_name(node)] if node.op == "call_module" else node.target
    if kind == "activation":
        return type(operation) in _HOMOGENEOUS_MODULES or operation in _HOMOGENEOUS_CALLS
    if kind == "bypass":
        after = operation.after
        return operation.shift is None and (after is None or type(after) in _HOMOGENEOUS_MODULES)
    if kind == "softmax":
        return False
    return kind != "arithmetic" or getattr(operation, "__name__", operation) in _ADDITIONS


def _to_tensor(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)
