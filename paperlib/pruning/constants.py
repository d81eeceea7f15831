"""What removed channels emit: a constant each, wherever a consumer reads them (see `compensation`)."""

from collections import ChainMap
from math import prod
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from paperlib.pruning.axes import BoolArray
from paperlib.pruning.channel_graph import ChannelGraph
from paperlib.pruning.constant_rows import FRACTION, RowWalk, merge_rows
from paperlib.pruning.fx_ops import arguments_of, execute_node, read_attribute, target_name
from paperlib.pruning.tracing import has_own_forward
from paperlib.structure import shallow_copy

_IDLE = ("contiguous", "clone", "detach", "to", "type", "dropout", "dropout2d", "stochastic_depth")
_IDLE_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_AVERAGE_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_AVERAGE_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")


def find_constants(module: nn.Module, graph: ChannelGraph, removed: BoolArray, *, exact: bool) -> dict[str, Tensor]:
    """Return per consumer with removed inputs the constant at each input, [V, in], for V calls that differ.

    Args:
        module: the network before its channels are removed; it is only read.
        graph: its channels.
        removed: for each channel number, whether it is removed.
        exact: whether the border of a padded plane counts as a further call, or is left out.

    Raises:
        ValueError: a removed channel is not constant where it is consumed.
    """
    walk = _ConstantWalk(module, graph, removed, exact=exact)
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


class _ConstantWalk(RowWalk):
    """Computes what removed channels emit; see `RowWalk` for the form."""

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray, *, exact: bool) -> None:
        super().__init__(module, graph.nodes, exact=exact)
        self.root, self.graph, self.removed = module, graph, removed
        self.seen: dict[str, list[Tensor]] = {}

    def _record_constants(self, node: fx.Node, x: Tensor | None) -> None:
        name = target_name(node)
        removed = positions_of(self.removed[self.graph.layers[name].inputs])
        if x is None or len(removed) == 0:
            return
        if x[:, removed].isnan().any():
            raise ValueError(
                f"{name}: a removed channel does not reach it as a constant (a gate, a sum over pixels, or the border "
                "of a padded plane on the way); use compensate='off'"
            )
        known = self.seen.setdefault(name, [])
        for constants in x.flatten(1):
            if not any(torch.equal(other[removed], constants[removed]) for other in known):
                known.append(constants)

    def visit_conv(self, node: fx.Node) -> Tensor:
        """Record what the convolution reads; its outputs vary."""
        conv = self.module_of(node)
        self._record_constants(node, self._raw_input(node))
        return _varying(conv.weight, conv.out_channels)

    visit_grouped = visit_conv

    def visit_linear(self, node: fx.Node) -> Tensor:
        """Record what the linear layer reads; its outputs vary."""
        linear, x = self.module_of(node), self._input(node)
        if x is not None:
            self._record_constants(node, x.repeat_interleave(linear.in_features // x.shape[1], dim=1))
        return _varying(linear.weight, linear.out_features)

    def visit_depthwise(self, node: fx.Node) -> Tensor:
        """Multiply each constant by the sum of its kernel; several inputs of one group are added."""
        conv, x = self.module_of(node), self._input(node)
        if x is None:
            return _varying(conv.weight, conv.out_channels)
        gains = conv.weight.flatten(2).sum(2).unflatten(0, (conv.groups, -1))
        gains = gains.transpose(1, 2) if isinstance(conv, _ConvTransposeNd) else gains
        planes = x.reshape(conv.groups, -1, 1)
        bias = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
        # Padding changes the border of a plane, differently in each channel, unless the plane is zero, too.
        uneven = (self.exact and pads_with_zeros(conv)) or isinstance(conv, _ConvTransposeNd)
        varies = ((planes != 0) & uneven).any(1, keepdim=True)
        return torch.where(varies, torch.nan, gains @ planes).reshape(1, -1, 1, 1) + bias

    def visit_norm(self, node: fx.Node) -> Tensor:
        """Apply the batch norm; the gamma of a removed channel counts as zero, so that its input does not matter."""
        norm, x, name = self.module_of(node), self._pointwise_input(node), target_name(node)
        if x is None:
            return _varying(norm.weight, norm.num_features)
        silenced = self._silenced(name)
        if has_own_forward(norm):
            return self._execute_norm(norm, x, silenced)
        out = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return _replace_channels(out, silenced, norm.bias)

    def _silenced(self, name: str) -> Tensor:
        """Tell which channels are removed that a norm emits as beta, because its gamma counts as 0."""
        loud = self.graph.silencing.get(name, False)
        return torch.from_numpy(self.removed[self.graph.layers[name].outputs] & loud)

    def visit_group_norm(self, node: fx.Node) -> Tensor:
        """Apply the norm to constant planes, which have the same statistics as their constants alone."""
        norm, x, name = self.module_of(node), self._input(node), target_name(node)
        if x is None:
            return _varying(norm.weight, len(norm.weight))
        groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else len(norm.weight)
        # Of two pixels, because torch refuses the statistics of a single value.
        out = F.group_norm(x.expand(-1, -1, 2, -1), groups, norm.weight, norm.bias, norm.eps)[:, :, :1]
        return _replace_channels(out, self._silenced(name), norm.bias)

    def _execute_norm(self, norm: _BatchNorm, x: Tensor, silenced: Tensor) -> Tensor:
        """Run a batch norm that does more than that, such as an activation; at its mean it emits beta."""
        if norm.running_mean is not None:
            x = _replace_channels(x, silenced, norm.running_mean)
        varying = x.isnan()
        return shallow_copy(norm).eval()(x).masked_fill(varying, torch.nan)

    def visit_activation(self, node: fx.Node) -> Tensor | None:
        """Apply the activation."""
        x = self._pointwise_input(node)
        if x is None:
            return None
        varying = x.isnan()  # before the activation, which may work in place
        values = ChainMap({node.all_input_nodes[0]: x}, self.values)
        return execute_node(node, self.modules, values).masked_fill_(varying, torch.nan)

    def visit_functional_slope(self, node: fx.Node) -> Tensor | None:
        """Apply a PReLU whose slopes the code hands over."""
        x, slope = self._pointwise_input(node), self.values[node.all_input_nodes[-1]]
        return None if x is None else F.prelu(x, slope.flatten())

    visit_bypass = visit_activation
    visit_slope = visit_activation

    def visit_pass_through(self, node: fx.Node) -> Tensor | None:
        """Keep the constants, unless an average counts padding or divides by another number than it adds."""
        x = self._raw_input(node) if self._keeps_pixels(node) else self._input(node)
        pool = self._average_pool(node)
        if x is None or pool is None:
            return None if x is None else x.clone()
        divisor = pool.get("divisor_override")
        if divisor is not None:
            x = x * (prod(_sizes(pool["kernel_size"], pool["dims"])) / divisor)
        uneven = divisor is not None or pool["count_include_pad"]
        bent = uneven and (any(_sizes(pool.get("padding", 0), pool["dims"])) or pool.get("ceil_mode", False))
        # Near the border it is a fraction of the constant, the same in all channels: half of it stands for them all.
        return self._add_region(node, x, x / 2, f"{FRACTION} {node.name}") if bent else x.clone()

    visit_permutation = visit_pass_through
    visit_flatten = visit_pass_through
    visit_squeeze = visit_pass_through
    visit_unsqueeze = visit_pass_through
    visit_expansion = visit_pass_through
    visit_pixel_move = visit_pass_through

    def _keeps_pixels(self, node: fx.Node) -> bool:
        """Tell whether an operation moves no value to another pixel."""
        if node.op == "call_module":
            return isinstance(self.module_of(node), _IDLE_MODULES)
        return target_name(node) in _IDLE

    def _average_pool(self, node: fx.Node) -> dict[str, Any] | None:
        """Return the settings of an average pooling with a kernel, and how many dimensions it has."""
        if node.op == "call_module":
            module = self.module_of(node)
            dims = next((i for i, kind in enumerate(_AVERAGE_MODULES, 1) if isinstance(module, kind)), None)
            return {**vars(module), "dims": dims} if dims else None
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = {"count_include_pad": True, **arguments_of(node, *names)}
        name = target_name(node)
        return {**given, "dims": _AVERAGE_POOLS.index(name) + 1} if name in _AVERAGE_POOLS else None

    def visit_softmax(self, node: fx.Node) -> Tensor | None:
        """Return values of unknown size: they depend on how many are compared."""
        x = self._input(node)
        if x is not None and node in self.graph.moves:
            x = x[:, self.graph.moves[node]]
        return None if x is None else torch.full_like(x, torch.nan)

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
        if mode != "constant":
            return x.clone()
        x = self._pointwise_input(node)
        return self._add_region(node, x, torch.full_like(x[:1], value), node.name)

    def visit_reduction(self, node: fx.Node) -> Any:
        """Keep the constants through a mean or maximum; a sum depends on the number of pixels."""
        if len(node.all_input_nodes) > 1:
            return self.visit_arithmetic(node)
        x, name = self._input(node), target_name(node)
        if x is not None and name == "sum":
            return torch.where(x != 0, torch.nan, x)
        positions = None if x is None else torch.full_like(x, torch.nan)
        return (x, positions) if name in ("max", "min") else x

    def visit_spread(self, node: fx.Node) -> Tensor | None:
        """Turn every constant into zero, its spread."""
        x = self._input(node)
        return None if x is None else x * 0

    def visit_gated_half(self, node: fx.Node) -> Tensor | None:
        """Multiply the constants of the first half by their gates; zero stays zero."""
        x = self._pointwise_input(node)
        if x is None:
            return None
        values, gates = x.chunk(2, dim=1)
        return torch.where(values == 0, 0.0, values * gates.sigmoid())

    def visit_comparison(self, node: fx.Node) -> Tensor | None:
        """Compare the constants: 1 where it holds, 0 where not."""
        values = self._aligned(node.all_input_nodes)
        if any(value is None for value in values):
            return None
        operands = ChainMap(dict(zip(node.all_input_nodes, values, strict=True)), self.values)
        return torch.where(_any_varies(values), torch.nan, execute_node(node, self.modules, operands).to(values[0]))

    def visit_selection(self, node: fx.Node) -> Tensor | None:
        """Select constants by constants."""
        values = self._aligned(node.all_input_nodes)
        if any(value is None for value in values):
            return None
        known = dict(zip(node.all_input_nodes, values, strict=True))
        first, second, third = (known.get(each, each) for each in cast(Any, node.args))
        # torch.where(condition, taken, other), taken.where(condition, other), other.masked_fill(condition, taken)
        condition, taken, other = (first, second, third) if node.op == "call_function" else (second, first, third)
        if target_name(node) == "masked_fill":
            condition, taken, other = second, third, first
        found = torch.where(condition != 0, taken, other)
        return torch.where(_any_varies(values), torch.nan, found)

    def visit_view(self, node: fx.Node) -> Tensor | None:
        """Keep the constants, in the order after a channel shuffle."""
        x = self._raw_input(node)
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
        split, x = self.module_of(node), self._raw_input(node)
        return (None,) * len(split.sizes) if x is None else split(x)

    def visit_parts(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        """Give each part its constants."""
        x = self._raw_input(node)
        return tuple(None if x is None else x[:, part] for part in self.graph.moves[node])

    def visit_item(self, node: fx.Node) -> Any:
        """Return one part, or the constants that a slice has."""
        value: Any = self.input_values(node)[0]
        index: Any = node.args[1]
        return value[index] if isinstance(value, tuple) else self.visit_view(node)

    def visit_named_part(self, node: fx.Node) -> Any:
        """Return the values of a maximum."""
        return self.input_values(node)[0][0]

    def visit_narrow(self, node: fx.Node) -> Tensor | None:
        """Return the constants of the channels that a slice chooses."""
        return self.visit_view(node)

    def visit_concatenation(self, node: fx.Node) -> Tensor | None:
        """Join the constants, or compare them where tensors are joined along another axis."""
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        parts = self._aligned(list(tensors), pointwise=False)
        if any(part is None for part in parts):
            return None
        return torch.cat(parts, dim=1) if node not in self.graph.moves else merge_rows(torch.cat(parts))

    visit_stack = visit_concatenation

    def visit_unbind(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        """Give each part its zeros: how many parts there are, and so what they add up to, may depend on the input."""
        x = self._input(node)
        return (None if x is None else torch.where(x != 0, torch.nan, x),) * len(node.meta["value"])

    def visit_arithmetic(self, node: fx.Node) -> Tensor | None:
        """Combine the constants; a product with zero is zero, whatever the other factor is."""
        sources = node.all_input_nodes
        values = self._aligned(sources)
        if any(value is None for value in values):
            return None
        name = target_name(node)
        out = execute_node(node, self.modules, ChainMap(dict(zip(sources, values, strict=True)), self.values))
        dividends = values[:1] if "div" in name and sources[0] is node.args[0] else []
        factors = values if "mul" in name else dividends
        for factor in factors:
            out = torch.where(factor == 0, 0.0, out)
        return out

    def visit_constant(self, node: fx.Node) -> Tensor:
        """Return a parameter or buffer of one number per channel."""
        return read_attribute(self.root, target_name(node)).detach().reshape(1, -1, 1, 1)

    def visit_number(self, node: fx.Node) -> Tensor:
        """Return a single number."""
        return self.numbers[node].reshape(1, 1, 1, 1)

    def visit_output(self, node: fx.Node) -> None:
        """Follow no further."""
        return None

    visit_unknown = visit_output
    visit_opaque = visit_output
    visit_size = visit_output


def _sizes(value: Any, dims: int) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value] * dims


def positions_of(mask: BoolArray) -> Tensor:
    """Return the positions at which `mask` is true."""
    return torch.from_numpy(np.flatnonzero(mask))


def _any_varies(values: list[Tensor]) -> Tensor:
    """Tell for each channel whether any of the values is not constant."""
    return torch.stack(torch.broadcast_tensors(*(value.isnan() for value in values))).any(0)


def _replace_channels(x: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Return `x` [R, C, 1, 1] with the values [C] in the channels at which `mask` [C] is true."""
    return torch.where(mask.to(x.device).view(-1, 1, 1), values.view(-1, 1, 1), x)


def _varying(like: Tensor, channels: int) -> Tensor:
    return like.new_full((1, channels, 1, 1), torch.nan)
