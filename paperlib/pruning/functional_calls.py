"""Calls such as `F.conv2d(x, self.layer.weight)`, recorded as calls of the layer that has the tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperlib.pruning.fx_ops import arguments_of, target_name
from paperlib.pruning.tracing import has_own_forward

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CALLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.conv1d: (nn.Conv1d, _CONVOLUTION),
    torch.conv2d: (nn.Conv2d, _CONVOLUTION),
    torch.conv3d: (nn.Conv3d, _CONVOLUTION),
    F.linear: (nn.Linear, ("input", "weight", "bias")),
    F.batch_norm: (
        _BatchNorm,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "eps": 1e-5}
"""Arguments that must be those of the layer, with their defaults in a call."""


def call_layers(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """Replace, in place, functional calls with all tensors of one layer, and its settings, by calls of that layer.

    Calls with other tensors, and grouped convolutions, whose number of groups stands in the code, stay as they are.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and (name := _find_layer(node, module)):
            with graph.inserting_before(node):
                call = graph.call_module(name, (arguments_of(node, "input")["input"],))
            call.meta, read = node.meta, node.all_input_nodes
            node.replace_all_uses_with(call)
            for each in (node, *(source for source in read if source.op == "get_attr")):
                if not each.users:
                    graph.erase_node(each)
    return graph


def _find_layer(node: fx.Node, module: nn.Module) -> str:
    """Return the name of the layer that a functional call stands for; empty if there is none."""
    kind, names = _CALLS.get(node.target, (None, ()))
    given = arguments_of(node, *names)
    weight = given.get("weight")
    if kind is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ""
    name = target_name(weight).rpartition(".")[0]
    layer = module.get_submodule(name)
    own = {f"{name}.{key}" for key in _TENSORS if getattr(layer, key, None) is not None}
    read = {target_name(each) if isinstance(each, fx.Node) else None for key in _TENSORS if (each := given.get(key))}
    same = isinstance(layer, kind) and own == read and all(_is_same(layer, key, given) for key in _SETTINGS)
    plain = getattr(layer, "padding_mode", "zeros") == "zeros" and getattr(layer, "groups", 1) == 1
    return name if same and plain and not has_own_forward(layer) else ""


def _is_same(layer: Any, key: str, given: dict[str, Any]) -> bool:
    """Tell whether a call has the same setting as a layer; one number stands for all dimensions."""
    own, value = getattr(layer, key, None), given.get(key, _SETTINGS[key])
    if isinstance(own, tuple) and isinstance(value, int):
        return own == (value,) * len(own)
    return own is None or own == (tuple(value) if isinstance(value, list) else value)
