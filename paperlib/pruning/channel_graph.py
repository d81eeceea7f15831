"""Which channels must be removed together: the channel graph of a network (Section 3.1, Fig. 2).

The network is traced with torch.fx and every channel of every tensor gets a number. A convolution makes new numbers; a
shortcut ties the numbers of its operands; concatenation and `ChannelSplit` rearrange them. The filters, batch norm
entries and input slices that carry the number of a removed channel are removed with it.

The channel counts of `torch.chunk`, `torch.split` and slices `x[:, a:b]` are constants in the traced code and
cannot be changed from outside: channels that reach one are never pruned. Use `ChannelSplit` instead.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from paperlib.pruning.fx_ops import (
    GraphWalk,
    classify_node,
    describe_target,
    flattens_channels,
    joins_channels,
    target_name,
    trace_graph,
)

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One module that has channels: the number of each of its input and output channels.

    Tied channels have the same number. `norm` is the batch norm that alone reads a convolution's output.
    """

    kind: str
    inputs: IntArray
    outputs: IntArray
    norm: str | None = None


@dataclass(frozen=True)
class Segment:
    """Channels that may not all be removed: a prunable convolution's outputs, or one part of a split."""

    layer: str
    channels: IntArray


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a network and their couplings; made by `trace_channels`.

    Attributes:
        layers: every convolution, linear layer, batch norm, split and shift that the trace reaches, by name.
        fixed: for each channel number, whether it can never be removed (a network output, for instance).
        prunable: name of each prunable convolution -> name of the batch norm after it, in forward order.
        segments: parts of splits first, then the outputs of prunable convolutions.
        recorded: the traced computation.
        opaque: its nodes whose channels are not followed; nothing prunable flows through them.
    """

    layers: dict[str, Layer]
    fixed: BoolArray
    prunable: dict[str, str]
    segments: list[Segment]
    recorded: fx.Graph
    opaque: frozenset[fx.Node]


def trace_channels(module: nn.Module) -> ChannelGraph:
    """Trace the channel graph of `module` through the method that its `traced_method` names, or `forward`.

    Raises:
        ValueError: a prunable channel flows through an operation whose effect on channels is not known.
    """
    return _ChannelWalk(module, trace_graph(module)).build_graph()


@dataclass(frozen=True)
class _Axis:
    """The channel numbers of one tensor; `flat` where [B, C, H, W] has become [B, C*H*W]."""

    numbers: IntArray
    flat: bool = False


@dataclass
class _Ties:
    """Channel numbers and pairs of them that are tied."""

    count: int = 0
    pairs: list[IntArray] = field(default_factory=lambda: [np.empty((2, 0), dtype=np.int64)])

    def new_numbers(self, count: int) -> IntArray:
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie_numbers(self, left: IntArray, right: IntArray) -> None:
        self.pairs.append(np.stack([left, right]))

    def find_roots(self) -> IntArray:
        """Return for each number the least one that it is tied to, directly or through others."""
        roots = np.arange(self.count)
        pairs = np.concatenate(self.pairs, axis=1)
        while (roots[pairs[0]] != roots[pairs[1]]).any():
            ends = roots[pairs]
            np.minimum.at(roots, ends.ravel(), np.tile(ends.min(axis=0), 2))
            # Shorten every chain of roots before the next round of pairs.
            while (roots[roots] != roots).any():
                roots = roots[roots]
        return roots


class _ChannelWalk(GraphWalk):
    """Gives every tensor its channel numbers; None stands for an opaque value, which holds no prunable channel."""

    def __init__(self, module: nn.Module, recorded: fx.Graph) -> None:
        super().__init__(module, recorded)
        self.ties = _Ties()
        self.layers: dict[str, Layer] = {}
        self.followers: dict[str, set[str | None]] = {}
        self.fixed: list[IntArray] = []
        self.unknown: list[tuple[fx.Node, IntArray]] = []

    def build_graph(self) -> ChannelGraph:
        self.visit_all()
        norm_of = self._sole_norms()
        for name in self.followers.keys() - norm_of.keys():
            # The outputs of a depthwise convolution are its inputs, which another layer may make prunable.
            if self.layers[name].kind == "conv":
                self.fixed.append(self.layers[name].outputs)
        roots = self.ties.find_roots()
        fixed = np.zeros(len(roots), dtype=bool)
        for numbers in self.fixed:
            fixed[roots[numbers]] = True
        self._refuse_unknown(fixed[roots])
        layers = {
            name: Layer(layer.kind, roots[layer.inputs], roots[layer.outputs], norm_of.get(name))
            for name, layer in self.layers.items()
        }
        prunable = {name: norm for name, norm in norm_of.items() if not fixed[layers[name].outputs].all()}
        opaque = frozenset(node for node, value in self.values.items() if value is None)
        return ChannelGraph(layers, fixed, prunable, self._segments(layers, prunable), self.recorded, opaque)

    def _sole_norms(self) -> dict[str, str]:
        """Map each convolution to the batch norm that follows it at every call and follows no other."""
        calls = [node.target for node in self.recorded.nodes if node.op == "call_module"]
        found = {}
        for name, followers in self.followers.items():
            norm = next(iter(followers))
            if len(followers) == 1 and norm is not None and calls.count(norm) == calls.count(name):
                found[name] = norm
        return found

    def _refuse_unknown(self, fixed: BoolArray) -> None:
        for node, numbers in self.unknown:
            if not fixed[numbers].all():
                operation = describe_target(node, self.modules)
                raise ValueError(f"cannot prune through {node.name}: the effect of {operation} on channels is unknown")

    def _segments(self, layers: dict[str, Layer], prunable: dict[str, str]) -> list[Segment]:
        segments = []
        for name, layer in layers.items():
            if layer.kind == "split":
                segments += [Segment(name, part) for part in self._split_parts(name, layer.outputs)]
        return segments + [Segment(name, layers[name].outputs) for name in prunable]

    def _split_parts(self, name: str, numbers: IntArray) -> list[IntArray]:
        sizes: Any = self.modules[name].sizes
        return np.split(numbers, np.cumsum(sizes)[:-1])

    def _axis(self, node: fx.Node, count: int) -> _Axis:
        """Return the axis that `node` reads, or new fixed numbers if it reads an opaque value."""
        axis = self.input_values(node)[0]
        if isinstance(axis, _Axis):
            return axis
        numbers = self.ties.new_numbers(count)
        self.fixed.append(numbers)
        return _Axis(numbers)

    def _record(self, node: fx.Node, kind: str, inputs: IntArray, outputs: IntArray) -> None:
        """Add a layer. At every further call of it, tie its channels to those of the first call."""
        name = target_name(node)
        if known := self.layers.get(name):
            self.ties.tie_numbers(known.inputs, inputs)
            self.ties.tie_numbers(known.outputs, outputs)
        else:
            self.layers[name] = Layer(kind, inputs, outputs)

    def _record_follower(self, node: fx.Node) -> None:
        """Note which batch norm, if any, is the only reader of this call of a convolution."""
        users = list(node.users)
        is_norm = len(users) == 1 and classify_node(users[0], self.modules) == "norm"
        self.followers.setdefault(target_name(node), set()).add(target_name(users[0]) if is_norm else None)

    def _all_axes(self, value: Any) -> list[_Axis]:
        if isinstance(value, _Axis):
            return [value]
        return [axis for part in value for axis in self._all_axes(part)] if isinstance(value, tuple) else []

    def visit_opaque(self, node: fx.Node) -> None:
        return None

    def visit_unknown(self, node: fx.Node) -> None:
        self.unknown += [(node, axis.numbers) for axis in self._all_axes(tuple(self.input_values(node)))]

    def visit_fixed_size(self, node: fx.Node) -> None:
        self.fixed += [axis.numbers for axis in self._all_axes(tuple(self.input_values(node)))]

    visit_output = visit_fixed_size

    def visit_conv(self, node: fx.Node) -> _Axis:
        conv = self.module_of(node)
        inputs = self._axis(node, conv.in_channels).numbers
        outputs = self.ties.new_numbers(conv.out_channels)
        self._record(node, "conv", inputs, outputs)
        self._record_follower(node)
        return _Axis(outputs)

    def visit_depthwise(self, node: fx.Node) -> _Axis:
        axis = self._axis(node, self.module_of(node).in_channels)
        self._record(node, "depthwise", axis.numbers, axis.numbers)
        self._record_follower(node)
        return axis

    def visit_linear(self, node: fx.Node) -> _Axis | None:
        linear = self.module_of(node)
        axis = self._axis(node, linear.in_features)
        positions, rest = divmod(linear.in_features, len(axis.numbers))
        if rest or not (axis.flat or self.input_values(node)[0] is None):
            return self.visit_unknown(node)
        # Outputs of linear layers have no batch norm, so they are never pruned.
        outputs = self.ties.new_numbers(linear.out_features)
        self.fixed.append(outputs)
        self._record(node, "linear", np.repeat(axis.numbers, positions), outputs)
        return _Axis(outputs, flat=True)

    def visit_norm(self, node: fx.Node) -> _Axis:
        axis = self._axis(node, self.module_of(node).num_features)
        self._record(node, "norm", axis.numbers, axis.numbers)
        return axis

    def visit_activation(self, node: fx.Node) -> _Axis | None:
        return self.input_values(node)[0]

    visit_pass_through = visit_activation

    def visit_flatten(self, node: fx.Node) -> _Axis | None:
        axis = self.input_values(node)[0]
        if axis is None or not flattens_channels(node, self.modules):
            return self.visit_unknown(node)
        return _Axis(axis.numbers, flat=True)

    def visit_split(self, node: fx.Node) -> tuple[_Axis, ...]:
        axis = self._axis(node, sum(self.module_of(node).sizes))
        self._record(node, "split", axis.numbers, axis.numbers)
        return tuple(_Axis(part) for part in self._split_parts(target_name(node), axis.numbers))

    def visit_bypass(self, node: fx.Node) -> _Axis | None:
        shift = self.module_of(node).shift
        if shift is None:
            return self.input_values(node)[0]
        axis = self._axis(node, len(shift))
        self._record(node, "bypass", axis.numbers, axis.numbers)
        return axis

    def visit_item(self, node: fx.Node) -> Any:
        value, index = self.input_values(node)[0], node.args[1]
        # One part of a split; a slice of a tensor has constant bounds.
        if isinstance(value, tuple) and isinstance(index, int):
            return value[index]
        return self.visit_fixed_size(node)

    def visit_concatenation(self, node: fx.Node) -> _Axis | None:
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        # Not `input_values`: that names a tensor only once, even if it is joined to itself.
        parts = [self.values[tensor] for tensor in tensors]
        if not joins_channels(node):
            return self.visit_unknown(node)
        if not all(isinstance(part, _Axis) and not part.flat for part in parts):
            return self.visit_fixed_size(node)
        return _Axis(np.concatenate([part.numbers for part in parts]))

    def visit_arithmetic(self, node: fx.Node) -> _Axis | None:
        axes = self.input_values(node)
        if not all(isinstance(axis, _Axis) for axis in axes):
            return self.visit_fixed_size(node)
        widest = max(axes, key=lambda axis: len(axis.numbers))
        for axis in axes:
            if axis.flat != widest.flat or len(axis.numbers) not in (1, len(widest.numbers)):
                return self.visit_unknown(node)
            if len(axis.numbers) == len(widest.numbers):
                self.ties.tie_numbers(widest.numbers, axis.numbers)
            else:
                # One channel that is broadcast to all cannot be removed.
                self.fixed.append(axis.numbers)
        return widest
