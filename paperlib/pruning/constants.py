"""What removed channels emit: a constant each, wherever a consumer reads them (see `compensation`)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from paperlib.pruning.axes import BoolArray
from paperlib.pruning.channel_graph import ChannelGraph
from paperlib.pruning.fx_ops import GraphWalk, arguments_of, execute_node, target_name
from paperlib.pruning.tracing import has_own_forward
from paperlib.structure import shallow_copy

_AVERAGE_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")


def find_constants(module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> dict[str, Tensor]:
    """Return per consumer with removed inputs the constant at each input, [V, in], for V calls that differ.

    Args:
        module: the network before its channels are removed; it is only read.
        graph: its channels.
        removed: for each channel number, whether it is removed.

    Raises:
        ValueError: a removed channel is not constant where it is consumed.
    """
    walk = _ConstantWalk(module, graph, removed)
    with torch.no_grad():
        walk.visit_all(graph.opaque)
    return {name: torch.stack(constants) for name, constants in walk.seen.items()}


def pads_with_zeros(layer: Any) -> bool:
    """Tell whether a convolution pads with zeros, or may do so in a forward method of its own."""
    if isinstance(layer, nn.Linear) or has_own_forward(layer):
        return not isinstance(layer, nn.Linear)
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return max(layer.kernel_size) > 1 if layer.padding == "same" else max(layer.padding) > 0


class _ConstantWalk(GraphWalk):
    """Computes what removed channels emit, as [1, C, 1, 1] vectors; NaN marks a channel that is not constant.

    Tensors of any shape are represented so: operations on pixels leave a constant as it is.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> None:
        super().__init__(module, graph.nodes)
        self.root, self.graph, self.removed = module, graph, removed
        self.norms = set(graph.prunable.values())
        self.seen: dict[str, list[Tensor]] = {}

    def _record_constants(self, node: fx.Node, x: Tensor | None) -> None:
        name = target_name(node)
        removed = positions_of(self.removed[self.graph.layers[name].inputs])
        if x is None or len(removed) == 0:
            return
        constants = x.flatten()
        if constants[removed].isnan().any():
            raise ValueError(
                f"{name}: a removed channel does not reach it as a constant (zero padding in a depthwise convolution, "
                "an average pooling or a gate on the way); use compensate='off'"
            )
        known = self.seen.setdefault(name, [])
        if not any(torch.equal(other[removed], constants[removed]) for other in known):
            known.append(constants)

    def visit_conv(self, node: fx.Node) -> Tensor:
        """Record what the convolution reads; its outputs vary."""
        conv = self.module_of(node)
        self._record_constants(node, self._input(node))
        return _varying(conv.weight, conv.out_channels)

    def visit_linear(self, node: fx.Node) -> Tensor:
        """Record what the linear layer reads; its outputs vary."""
        linear, x = self.module_of(node), self._input(node)
        if x is not None:
            self._record_constants(node, x.repeat_interleave(linear.in_features // x.shape[1], dim=1))
        return _varying(linear.weight, linear.out_features)

    def visit_depthwise(self, node: fx.Node) -> Tensor:
        """Multiply each constant by the sum of its kernel."""
        conv, x = self.module_of(node), self._input(node)
        if x is None:
            return _varying(conv.weight, conv.out_channels)
        gain = conv.weight.flatten(1).sum(1).reshape(1, -1, 1, 1)
        bias = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
        # Padding changes the border of a plane, unless the plane is zero too.
        uneven = pads_with_zeros(conv) or isinstance(conv, _ConvTransposeNd)
        return torch.where((x != 0) & uneven, torch.nan, x * gain) + bias

    def visit_norm(self, node: fx.Node) -> Tensor:
        """Apply the batch norm; the gamma of a removed channel counts as zero, so that its input does not matter."""
        norm, x, name = self.module_of(node), self._input(node), target_name(node)
        if x is None:
            return _varying(norm.weight, norm.num_features)
        own = positions_of(self.removed[self.graph.layers[name].outputs]) if name in self.norms else None
        if has_own_forward(norm):
            return self._execute_norm(norm, x, own)
        out = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        if own is not None:
            out[0, own, 0, 0] = norm.bias[own]
        return out

    def _execute_norm(self, norm: _BatchNorm, x: Tensor, removed: Tensor | None) -> Tensor:
        """Run a batch norm that does more than that, such as an activation; at its mean it emits beta."""
        if removed is not None and norm.running_mean is not None:
            x = x.clone()
            x[0, removed, 0, 0] = norm.running_mean[removed]
        varying = x.isnan()
        return shallow_copy(norm).eval()(x).masked_fill(varying, torch.nan)

    def visit_activation(self, node: fx.Node) -> Tensor | None:
        """Apply the activation."""
        x = self._input(node)
        if x is None:
            return None
        varying = x.isnan()  # before the activation, which may work in place
        return self._execute(node).masked_fill_(varying, torch.nan)

    visit_bypass = visit_activation
    visit_slope = visit_activation

    def visit_pass_through(self, node: fx.Node) -> Tensor | None:
        """Keep the constants, unless an average counts padding or divides by another number than it adds."""
        x = self._input(node)
        if x is not None and self._averages_unevenly(node):
            return torch.where(x != 0, torch.nan, x)
        return None if x is None else x.clone()

    visit_permutation = visit_pass_through
    visit_flatten = visit_pass_through
    visit_squeeze = visit_pass_through
    visit_unsqueeze = visit_pass_through
    visit_expansion = visit_pass_through

    def _averages_unevenly(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            given = vars(self.module_of(node))
            average = isinstance(self.module_of(node), nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d)
        else:
            names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            given = {"count_include_pad": True, **arguments_of(node, *names)}
            average = target_name(node) in _AVERAGE_POOLS
        padding = given.get("padding", 0)
        padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
        return average and (padded and given["count_include_pad"] or given.get("divisor_override") is not None)

    def visit_pixel_norm(self, node: fx.Node) -> Tensor | None:
        """Turn every constant into zero, the mean of which is taken away."""
        x = self._input(node)
        return None if x is None else x * 0

    def visit_pad(self, node: fx.Node) -> Tensor | None:
        """Keep the constants that padding continues."""
        x = self._input(node)
        if x is None:
            return None
        if node.op == "call_module":
            mode, value = "constant", self.module_of(node).value
        else:
            given = {"mode": "constant", **arguments_of(node, "input", "pad", "mode", "value")}
            mode, value = given["mode"], given.get("value") or 0.0
        return torch.where(x != value, torch.nan, x) if mode == "constant" else x.clone()

    def visit_reduction(self, node: fx.Node) -> Any:
        """Keep the constants through a mean or maximum; a sum depends on the number of pixels."""
        if len(node.all_input_nodes) > 1:
            return self.visit_arithmetic(node)
        x, name = self._input(node), target_name(node)
        if x is not None and name == "sum":
            return torch.where(x != 0, torch.nan, x)
        return (x, None) if name in ("max", "min") else x

    def visit_view(self, node: fx.Node) -> Tensor | None:
        """Keep the constants, in the order after a channel shuffle."""
        x = self._input(node)
        return x if x is None or node not in self.graph.moves else x[:, self.graph.moves[node]]

    def visit_rearrangement(self, node: fx.Node) -> Tensor | None:
        """Rearrange the constants; channels that become the pixels of one are constant only if all are equal."""
        x, moves = self._input(node), self.graph.moves[node]
        if x is None or len(moves) >= x.shape[1]:
            return None if x is None else x[:, moves]
        parts = x.reshape(1, len(moves), -1, 1)
        return torch.where((parts == parts[:, :, :1]).all(2, keepdim=True), parts[:, :, :1], torch.nan)

    def visit_split(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        """Split the constants."""
        split, x = self.module_of(node), self._input(node)
        return (None,) * len(split.sizes) if x is None else split(x)

    def visit_parts(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        """Give each part its constants."""
        x = self._input(node)
        return tuple(None if x is None else x[:, part] for part in self.graph.moves[node])

    def visit_item(self, node: fx.Node) -> Any:
        """Return one part, or the constants that a slice of pixels has."""
        value: Any = self.input_values(node)[0]
        index: Any = node.args[1]
        return value[index] if isinstance(value, tuple) else value

    def visit_concatenation(self, node: fx.Node) -> Tensor | None:
        """Join the constants."""
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        parts = [self.values[tensor] for tensor in tensors]
        return None if any(part is None for part in parts) else torch.cat(parts, dim=1)

    def visit_arithmetic(self, node: fx.Node) -> Tensor | None:
        """Combine the constants; a product with zero is zero, whatever the other factor is."""
        values = self.input_values(node)
        if any(value is None for value in values):
            return None
        out, name = self._execute(node), target_name(node)
        factors = values if "mul" in name else values[:1] if "div" in name and values[0] is self._operand(node) else []
        for factor in factors:
            out = torch.where(factor == 0, 0.0, out)
        return out

    def _operand(self, node: fx.Node) -> Any:
        return self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None

    def visit_constant(self, node: fx.Node) -> Tensor:
        """Return a parameter or buffer that is one number."""
        value: Any = self.root
        for part in target_name(node).split("."):
            value = getattr(value, part)
        return value.detach().reshape(1, 1, 1, 1)

    def visit_output(self, node: fx.Node) -> None:
        """Follow no further."""
        return None

    visit_unknown = visit_output
    visit_opaque = visit_output
    visit_size = visit_output

    def _input(self, node: fx.Node) -> Any:
        return next(iter(self.input_values(node)), None)

    def _execute(self, node: fx.Node) -> Tensor:
        return execute_node(node, self.modules, self.values)


def positions_of(mask: BoolArray) -> Tensor:
    """Return the positions at which `mask` is true."""
    return torch.from_numpy(np.flatnonzero(mask))


def _varying(like: Tensor, channels: int) -> Tensor:
    return like.new_full((1, channels, 1, 1), torch.nan)
