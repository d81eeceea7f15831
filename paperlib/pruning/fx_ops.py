"""The effect of traced operations on channels: the vocabulary of the channel graph.

`trace_graph` records a network with torch.fx, `classify_node` names what each recorded node does to the channel axis,
and a `GraphWalk` visits the nodes in order.
"""

import operator
from collections.abc import Container, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

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
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu6, F.leaky_relu, F.silu, F.mish, F.sigmoid, F.tanh, F.gelu), "activation"),
    **dict.fromkeys((F.elu, F.hardswish, F.hardsigmoid, F.softplus, torch.relu), "activation"),
    **dict.fromkeys((torch.sigmoid, torch.tanh), "activation"),
    **dict.fromkeys((F.max_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.interpolate), "pass_through"),
    **dict.fromkeys((torch.max_pool2d, F.dropout, F.dropout2d), "pass_through"),
    **dict.fromkeys((operator.add, operator.sub, operator.mul), "arithmetic"),
    **dict.fromkeys((torch.add, torch.sub, torch.mul), "arithmetic"),
    # Their sizes are constants in the traced code.
    **dict.fromkeys((torch.chunk, torch.split), "fixed_size"),
    torch.cat: "concatenation",
    torch.flatten: "flatten",
    operator.getitem: "item",
}
_METHODS: dict[Any, str] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"), "activation"),
    **dict.fromkeys(("contiguous", "clone"), "pass_through"),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "mul", "mul_"), "arithmetic"),
    **dict.fromkeys(("chunk", "split"), "fixed_size"),
    **dict.fromkeys(("size", "dim", "numel"), "opaque"),
    "flatten": "flatten",
}


class GraphWalk:
    """Visits the nodes of a trace in order; a subclass computes a value for each node in `visit_<kind>`."""

    def __init__(self, module: nn.Module, recorded: fx.Graph) -> None:
        self.modules = dict(module.named_modules())
        self.recorded = recorded
        self.values: dict[fx.Node, Any] = {}

    def visit_all(self, opaque: Container[fx.Node] = ()) -> None:
        """Fill `values`; nodes in `opaque` are not visited and have the value None."""
        for node in self.recorded.nodes:
            visit = f"visit_{classify_node(node, self.modules)}"
            self.values[node] = None if node in opaque else getattr(self, visit)(node)

    def input_values(self, node: fx.Node) -> list[Any]:
        """Return the values of the nodes that `node` reads, in the order of its arguments."""
        return [self.values[source] for source in node.all_input_nodes]

    def module_of(self, node: fx.Node) -> Any:
        """Return the module that a node of kind `call_module` calls.

        The kind of the node decides the type of the module, which a type checker cannot see.
        """
        return self.modules[target_name(node)]


class _Tracer(fx.Tracer):
    """Records a module as one node if it inherits its forward method from torch.nn.

    `nn.Mish` is recorded as one node too, even if a subclass computes it in another way.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inherited = type(m).forward.__module__.startswith("torch.nn.")
        return isinstance(m, ChannelSplit | Bypass | nn.Mish) or (inherited and not isinstance(m, nn.Sequential))


def trace_graph(module: nn.Module) -> fx.Graph:
    """Record the method of `module` that its `traced_method` names, or `forward`."""
    tracer = _Tracer()
    tracer.traced_func_name = getattr(module, "traced_method", "forward")
    return tracer.trace(module)


def classify_node(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name the effect of a traced node on channels: the end of the name of a `visit_` method of `GraphWalk`."""
    if node.op == "call_module":
        return classify_module(modules[target_name(node)])
    if node.op == "call_method":
        return _METHODS.get(node.target, "unknown")
    if node.op == "call_function":
        # `x.shape` is traced as getattr(x, "shape").
        if node.target is getattr:
            return "opaque" if node.args[1] in ("shape", "dtype", "device", "ndim") else "unknown"
        return _FUNCTIONS.get(node.target, "unknown")
    return "output" if node.op == "output" else "opaque"


def classify_module(module: nn.Module) -> str:
    """Name the effect on channels of a module that is traced as one node."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.groups == 1:
            return "conv"
        depthwise = module.groups == module.in_channels == module.out_channels
        return "depthwise" if depthwise else "fixed_size"
    if isinstance(module, nn.BatchNorm2d):
        return "norm" if module.affine and module.track_running_stats else "unknown"
    if isinstance(module, nn.PReLU):
        # With one slope per channel its parameters would have to be pruned too.
        return "activation" if module.num_parameters == 1 else "unknown"
    return next((kind for types, kind in _MODULES if isinstance(module, types)), "unknown")


def execute_node(node: fx.Node, modules: Mapping[str, nn.Module], values: Mapping[fx.Node, Any]) -> Any:
    """Run the operation of a traced call on the `values` of the nodes that it reads."""
    args: Any = map_arg(node.args, values.__getitem__)
    kwargs: Any = map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return modules[target_name(node)](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target_name(node))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def target_name(node: fx.Node) -> str:
    """Return the target of a node as text: the name of the called module or method, or that of the function."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def describe_target(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name the operation of a node for a message: the class of a module, or the name of a function or method."""
    return type(modules[target_name(node)]).__name__ if node.op == "call_module" else target_name(node)


def joins_channels(node: fx.Node) -> bool:
    """Tell whether a call of `torch.cat` joins along the channel axis."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return dim in (1, -3)


def flattens_channels(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether `node` turns [B, C, H, W] into [B, C*H*W]."""
    if node.op == "call_module":
        flatten: Any = modules[target_name(node)]
        return (flatten.start_dim, flatten.end_dim) == (1, -1)
    positional = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False))
    given = {"start_dim": 0, "end_dim": -1, **positional, **node.kwargs}
    return (given["start_dim"], given["end_dim"]) == (1, -1)


def kernel_view(module: nn.Module, name: str) -> Tensor:
    """Return the weights of the convolution or linear layer at `name` as a view [out, in, *kernel]."""
    weight = module.get_parameter(f"{name}.weight")
    return weight.transpose(0, 1) if isinstance(module.get_submodule(name), nn.ConvTranspose2d) else weight
