"""The effect of traced operations on channels: the vocabulary of the channel graph.

`classify_node` names what each recorded node does to the channel axis, and a `GraphWalk` visits the nodes in order. An
operation that is not listed here is `unknown`: the channels that reach it are held.
"""

import operator
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.ops import stochastic_depth

from paperlib.structure import Bypass, ChannelSplit, cuts_whole_groups

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.CELU, nn.SELU,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softplus, nn.Softsign,
    nn.LogSigmoid, nn.Threshold, nn.RReLU,
)  # fmt: skip
_SAME_VALUES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
_CONSTANT_PADS = (
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
_MODULES: list[tuple[tuple[type[nn.Module], ...], str]] = [
    (_ACTIVATIONS, "activation"),
    (_SAME_VALUES, "pass_through"),
    (_CONSTANT_PADS, "pad"),
    ((nn.Linear,), "linear"),
    ((nn.Flatten,), "flatten"),
    ((nn.Softmax,), "softmax"),
    ((nn.GLU,), "gated_half"),
    ((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), "rearrangement"),
    ((ChannelSplit,), "split"),
    ((Bypass,), "bypass"),
]
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu6, F.leaky_relu, F.silu, F.mish, F.sigmoid, F.tanh, F.gelu), "activation"),
    **dict.fromkeys((F.elu, F.celu, F.selu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus), "activation"),
    **dict.fromkeys((F.softsign, F.logsigmoid, F.hardshrink, F.softshrink, F.threshold), "activation"),
    **dict.fromkeys((torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, torch.clip), "activation"),
    **dict.fromkeys((torch.clamp_min, torch.clamp_max, torch.abs, torch.neg, operator.neg, operator.abs), "activation"),
    **dict.fromkeys((torch.exp, torch.expm1, torch.log, torch.log1p, torch.sqrt, torch.square), "activation"),
    **dict.fromkeys((torch.rsqrt, torch.reciprocal, torch.sin, torch.cos, torch.erf, F.tanhshrink), "activation"),
    **dict.fromkeys((F.rrelu, torch.round, torch.sign, torch.nan_to_num, F.hardtanh_, F.elu_), "activation"),
    **dict.fromkeys((F.leaky_relu_, F.selu_, F.celu_, F.rrelu_, torch.threshold_, torch.clamp_), "activation"),
    **dict.fromkeys((torch.zeros_like, torch.ones_like, torch.full_like), "activation"),
    **dict.fromkeys((F.max_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.interpolate), "pass_through"),
    **dict.fromkeys((torch.max_pool2d, F.dropout, F.dropout2d, stochastic_depth), "pass_through"),
    **dict.fromkeys((F.max_pool1d, F.adaptive_avg_pool1d, F.max_pool3d, F.adaptive_avg_pool3d), "pass_through"),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.upsample), "pass_through"),
    **dict.fromkeys((F.dropout1d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), "pass_through"),
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), "arithmetic"),
    **dict.fromkeys((operator.iadd, operator.isub, operator.imul, operator.itruediv), "arithmetic"),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum), "arithmetic"),
    **dict.fromkeys((torch.subtract, torch.multiply, torch.divide, torch.true_divide, torch.rsub), "arithmetic"),
    **dict.fromkeys((operator.pow, torch.pow), "arithmetic"),
    **dict.fromkeys((operator.gt, operator.ge, operator.lt, operator.le), "comparison"),
    **dict.fromkeys((torch.gt, torch.ge, torch.lt, torch.le), "comparison"),
    **dict.fromkeys((torch.where, torch.masked_fill), "selection"),
    **dict.fromkeys((torch.mean, torch.amax, torch.amin, torch.sum, torch.max, torch.min), "reduction"),
    **dict.fromkeys((torch.std, torch.var), "spread"),
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes, torch.movedim), "permutation"),
    **dict.fromkeys((torch.reshape, torch.unflatten), "view"),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split), "parts"),
    **dict.fromkeys((torch.flip, torch.roll), "pixel_move"),
    **dict.fromkeys((F.softmax, torch.softmax), "softmax"),
    F.prelu: "functional_slope",
    torch.prelu: "functional_slope",
    F.glu: "gated_half",
    torch.t: "permutation",
    torch.tile: "expansion",
    torch.narrow: "narrow",
    torch.stack: "stack",
    torch.unbind: "unbind",
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.hstack), "concatenation"),
    **dict.fromkeys((F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle), "rearrangement"),
    F.pad: "pad",
    torch.flatten: "flatten",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    operator.getitem: "item",
    operator.floordiv: "size",
}
_METHODS: dict[Any, str] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "clamp", "clip", "clamp_min", "clamp_max"), "activation"),
    **dict.fromkeys(("abs", "neg", "exp", "sqrt", "nan_to_num"), "activation"),
    **dict.fromkeys(("square", "float", "double", "half", "bfloat16", "expm1", "log", "log1p", "rsqrt"), "activation"),
    **dict.fromkeys(("reciprocal", "sin", "cos", "erf", "round", "sign"), "activation"),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "type", "type_as"), "pass_through"),
    **dict.fromkeys(("subtract", "multiply", "divide", "true_divide"), "arithmetic"),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow"), "arithmetic"),
    **dict.fromkeys(("gt", "ge", "lt", "le"), "comparison"),
    **dict.fromkeys(("where", "masked_fill"), "selection"),
    **dict.fromkeys(("mean", "amax", "amin", "sum", "max", "min"), "reduction"),
    **dict.fromkeys(("std", "var"), "spread"),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "movedim", "t"), "permutation"),
    **dict.fromkeys(("flip", "roll"), "pixel_move"),
    **dict.fromkeys(("view", "reshape", "unflatten", "view_as", "reshape_as"), "view"),
    **dict.fromkeys(("chunk", "split", "tensor_split"), "parts"),
    **dict.fromkeys(("expand", "expand_as", "repeat", "tile"), "expansion"),
    **dict.fromkeys(("dim", "numel"), "opaque"),
    "size": "size",
    "narrow": "narrow",
    "unbind": "unbind",
    "softmax": "softmax",
    "flatten": "flatten",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
}
_FEW_VALUES = 1_000
"""The most values of a tensor from which a single number is computed."""
_ATTRIBUTES = {"shape": "size", "values": "named_part", "mT": "permutation", "T": "permutation"}
"""Attributes of tensors, and of the pair that a maximum over one dimension returns."""
_TRAITS = ("dtype", "device", "ndim", "is_cuda", "requires_grad")


NORMS = ("norm", "group_norm")
"""Kinds of layers that silence a channel once its gamma and beta are 0."""


class GraphWalk:
    """Visits traced nodes in order; a subclass computes a value for each node in `visit_<kind>`."""

    def __init__(self, module: nn.Module, nodes: Iterable[fx.Node]) -> None:
        self.modules = dict(module.named_modules())
        self.nodes = tuple(nodes)
        self.values: dict[fx.Node, Any] = {}
        self.numbers = find_numbers(module, self.nodes, self.modules)

    def visit_all(self, opaque: Container[fx.Node] = ()) -> None:
        """Fill `values`; nodes in `opaque` are not visited and have the value None."""
        for node in self.nodes:
            self.values[node] = None if node in opaque else self.visit(node)

    def visit(self, node: fx.Node) -> Any:
        """Return the value of one node."""
        if node in self.numbers:
            return getattr(self, "visit_number")(node)  # noqa: B009 (the subclasses define it)
        return getattr(self, f"visit_{classify_node(node, self.modules)}")(node)

    def input_values(self, node: fx.Node) -> list[Any]:
        """Return the values of the nodes that `node` reads, in the order of its arguments."""
        return [self.values[source] for source in node.all_input_nodes]

    def module_of(self, node: fx.Node) -> Any:
        """Return the module that a node of kind `call_module` calls.

        The kind of the node decides the type of the module, which a type checker cannot see.
        """
        return self.modules[target_name(node)]


def classify_node(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name the effect of a traced node on channels: the end of the name of a `visit_` method of `GraphWalk`."""
    if node.op == "call_module":
        return classify_module(modules[target_name(node)])
    if node.op == "call_method":
        name = target_name(node)
        # What works in place on each value has the name of what does not, with an underscore.
        found = _METHODS.get(name.removesuffix("_"), "unknown")
        return found if name in _METHODS or found in ("activation", "arithmetic") else "unknown"
    if node.op == "call_function":
        # `x.shape` is traced as getattr(x, "shape").
        if node.target is getattr:
            name = str(node.args[1])
            return _ATTRIBUTES.get(name, "opaque" if name in _TRAITS else "unknown")
        return _FUNCTIONS.get(node.target, "unknown")
    return "output" if node.op == "output" else "constant" if node.op == "get_attr" else "opaque"


def list_operations() -> dict[str, list[str]]:
    """Return the names of the modules, functions and methods that are followed, by their kind."""
    found: dict[str, set[str]] = {
        "conv": {"Conv1d … Conv3d", "ConvTranspose1d … 3d"},
        "grouped": {"convolutions with groups"},
        "depthwise": {"convolutions with one input or output per group"},
        "norm": {"BatchNorm1d … 3d", "SyncBatchNorm", "their subclasses"},
        "group_norm": {"GroupNorm", "InstanceNorm1d … 3d with affine=True"},
        "pixel_norm": {"InstanceNorm1d … 3d"},
        "slope": {"PReLU per channel"},
        "activation": {"PReLU"},
    }
    for types, kind in _MODULES:
        found.setdefault(kind, set()).update(each.__name__ for each in types)
    for function, kind in _FUNCTIONS.items():
        found.setdefault(kind, set()).add(getattr(function, "__name__", str(function)).strip("_"))
    for method, kind in _METHODS.items():
        found.setdefault(kind, set()).add(method.rstrip("_"))
    return {kind: sorted(names, key=str.lower) for kind, names in found.items()}


def classify_module(module: nn.Module) -> str:
    """Name the effect on channels of a module that is traced as one node."""
    if isinstance(module, _ConvNd):
        if module.groups == 1:
            return "conv"
        return "depthwise" if cuts_whole_groups(module) else "grouped"
    if isinstance(module, _InstanceNorm):
        # It treats each channel alone, and with parameters of its own it can silence one, as a batch norm can.
        return "unknown" if module.track_running_stats else "group_norm" if module.affine else "pixel_norm"
    if isinstance(module, nn.GroupNorm):
        return "group_norm" if module.affine else "unknown"
    if isinstance(module, _BatchNorm):
        # A subclass may hold an activation, as long as that has no parameters per channel.
        inner = module._modules and any(p.numel() > 1 for child in module.children() for p in child.parameters())
        return "norm" if module.affine and module.track_running_stats and not inner else "unknown"
    if isinstance(module, nn.PReLU):
        return "activation" if module.num_parameters == 1 else "slope"
    if getattr(module, "return_indices", False):
        return "unknown"
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


@torch.no_grad()
def find_numbers(root: nn.Module, nodes: Iterable[fx.Node], modules: Mapping[str, nn.Module]) -> dict[fx.Node, Tensor]:
    """Return the nodes that are single numbers computed from parameters and buffers alone, with their values.

    Such are the exponent of a pooling (`x.pow(1 / self.p)`) and the weights with which a detector adds its levels.
    """
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            value = read_attribute(root, target_name(node))
            value = node.meta.get("constant") if value is None else value
            if isinstance(value, Tensor) and value.numel() <= _FEW_VALUES:
                values[node] = value.detach().clone()  # an operation may work in place
        elif sources and all(source in values for source in sources) and classify_node(node, modules) != "unknown":
            with suppress(Exception):  # whatever it is, it is no number then
                values[node] = execute_node(node, modules, values)
    return {node: value for node, value in values.items() if isinstance(value, Tensor) and value.numel() == 1}


def read_attribute(root: Any, name: str) -> Any:
    """Return an attribute of a part of a network by its full name; None if there is none."""
    for part in name.split("."):
        root = getattr(root, part, None)
    return root


def target_name(node: fx.Node) -> str:
    """Return the target of a node as text: the name of the called module or method, or that of the function."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def describe_target(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name the operation of a node for a message: the class of a module, or the name of a function or method."""
    if node.op != "call_module":
        return target_name(node)
    return type(modules[target_name(node)]).__name__


def arguments_of(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return the arguments of a call of a function or method by name, given the names of those by position."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def joins_channels(node: fx.Node, dim: int, ndim: int | None) -> bool:
    """Tell whether a call of `torch.cat` joins along the channel axis, which is at `dim` of `ndim`."""
    if node.target is torch.hstack:
        return dim == 1
    given = cast(int, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0)))
    return given == dim or (ndim is not None and given == dim - ndim)


def kernel_view(layer: Any, group: int = 0) -> Tensor:
    """Return the weights of one group of a convolution or linear layer as a view [out, in, *kernel]."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight if groups == 1 else layer.weight.unflatten(0, (groups, -1))[group]
    return weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight
