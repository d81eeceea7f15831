"""What traced operations do to channels: the vocabulary of the channel graph.

`trace` records a network with torch.fx, `classify_node` names what each recorded node does to the channel axis, and
a `Walk` visits the nodes in order.
"""

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from paperlib.structure import Bypass, ChannelSplit

_MODULES: list[tuple[tuple[type[nn.Module], ...], str]] = [
    ((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh), "activation"),
    ((nn.GELU, nn.ELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus), "activation"),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Upsample), "pass_through"),
    ((nn.Dropout, nn.Dropout2d, nn.Identity), "pass_through"),
    ((nn.Linear,), "linear"),
    ((nn.Flatten,), "flatten"),
    ((ChannelSplit,), "split"),
    ((Bypass,), "bypass"),
]
_FUNCTIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.relu, F.relu6, F.leaky_relu, F.silu, F.mish, F.sigmoid, F.tanh, F.gelu), "activation"),
    **dict.fromkeys((F.elu, F.hardswish, F.hardsigmoid, F.softplus, torch.relu), "activation"),
    **dict.fromkeys((torch.sigmoid, torch.tanh), "activation"),
    **dict.fromkeys((F.max_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.interpolate), "pass_through"),
    **dict.fromkeys((torch.max_pool2d, F.dropout, F.dropout2d), "pass_through"),
    **dict.fromkeys((operator.add, operator.sub, operator.mul), "arithmetic"),
    **dict.fromkeys((torch.add, torch.sub, torch.mul), "arithmetic"),
    **dict.fromkeys((torch.chunk, torch.split), "hard_sized"),
    torch.cat: "concatenation",
    torch.flatten: "flatten",
    operator.getitem: "item",
}
_METHODS: dict[str, str] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"), "activation"),
    **dict.fromkeys(("contiguous", "clone"), "pass_through"),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "mul", "mul_"), "arithmetic"),
    **dict.fromkeys(("chunk", "split"), "hard_sized"),
    **dict.fromkeys(("size", "dim", "numel"), "opaque"),
    "flatten": "flatten",
}


def trace(module: nn.Module) -> fx.Graph:
    """Record the method of `module` that its `traced_method` names, or `forward`."""
    tracer = _Tracer()
    tracer.traced_func_name = getattr(module, "traced_method", "forward")
    return tracer.trace(module)


def classify_node(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """What a traced node does to channels; names a `visit_` method of `Walk`."""
    if node.op == "call_module":
        return classify_module(modules[node.target])
    if node.op == "call_method":
        return _METHODS.get(node.target, "unknown")
    if node.op == "call_function":
        if node.target is getattr:
            return "opaque" if node.args[1] in ("shape", "dtype", "device", "ndim") else "unknown"
        return _FUNCTIONS.get(node.target, "unknown")
    return "output" if node.op == "output" else "opaque"


class Walk:
    """Visits the nodes of a trace in order; a subclass says in `visit_<kind>` what each one gives."""

    def __init__(self, module: nn.Module, recorded: fx.Graph) -> None:
        self.modules = dict(module.named_modules())
        self.recorded = recorded
        self.values: dict[fx.Node, Any] = {}

    def run(self, opaque: Container[fx.Node] = ()) -> None:
        """Fill `values`; nodes in `opaque` are not visited and give None."""
        for node in self.recorded.nodes:
            visit = f"visit_{classify_node(node, self.modules)}"
            self.values[node] = None if node in opaque else getattr(self, visit)(node)

    def inputs(self, node: fx.Node) -> list[Any]:
        """The values of the nodes that `node` reads, in the order of its arguments."""
        return [self.values[source] for source in node.all_input_nodes]


class _Tracer(fx.Tracer):
    """Records a module as one node if its forward is torch.nn's own, as that of a plain heir of nn.Conv2d.

    An heir of nn.Mish is an activation, however it computes it.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inherited = type(m).forward.__module__.startswith("torch.nn.")
        return isinstance(m, ChannelSplit | Bypass | nn.Mish) or (inherited and not isinstance(m, nn.Sequential))


def execute(node: fx.Node, modules: dict[str, nn.Module], values: Mapping[fx.Node, Any]) -> Any:
    """Run the operation of a traced call for real, on the `values` of the nodes that it reads."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_module":
        return modules[node.target](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def joins_channels(node: fx.Node) -> bool:
    """Whether a call of `torch.cat` joins along the channel axis."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return dim in (1, -3)


def flattens_channels(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether `node` turns [B, C, H, W] into [B, C*H*W]."""
    if node.op == "call_module":
        return (modules[node.target].start_dim, modules[node.target].end_dim) == (1, -1)
    start, end = (*node.args[1:], *(0, -1)[max(len(node.args) - 1, 0) :])
    return (node.kwargs.get("start_dim", start), node.kwargs.get("end_dim", end)) == (1, -1)


def classify_module(module: nn.Module) -> str:
    """What a module that is traced as one node does to channels."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.groups == 1:
            return "conv"
        depthwise = module.groups == module.in_channels == module.out_channels
        return "depthwise" if depthwise else "hard_sized"
    if isinstance(module, nn.BatchNorm2d):
        return "norm" if module.affine and module.track_running_stats else "unknown"
    if isinstance(module, nn.PReLU):
        return "activation" if module.num_parameters == 1 else "unknown"
    return next((kind for types, kind in _MODULES if isinstance(module, types)), "unknown")
