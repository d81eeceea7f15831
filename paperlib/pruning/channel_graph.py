"""Which channels must go together: the channel graph of a network (Section 3.1, Fig. 2).

The network is traced with torch.fx and every channel of every tensor gets a number. A convolution makes new
numbers; a shortcut ties the numbers of its operands; concatenation and `ChannelSplit` rearrange them. Whoever
removes a channel then reads off which filters, batch norm entries and input slices carry its number.

The channel counts of `torch.chunk`, `torch.split` and slices `x[:, a:b]` are constants in the traced code and
cannot be changed from outside: channels that reach one are never pruned. Use `ChannelSplit` instead.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from paperlib.pruning.fx_ops import Walk, classify_node, flattens_channels, joins_channels, trace

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
    """Channels of which some must stay: a prunable convolution's outputs, or one part of a split."""

    layer: str
    channels: IntArray


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a network and what couples them; made by `trace_channels`.

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
    """The channel graph of `module`, traced through the method that its `traced_method` names (or `forward`).

    Raises:
        ValueError: a prunable channel flows through an operation whose effect on channels is not known.
    """
    return _Numbering(module, trace(module)).graph()


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

    def new(self, count: int) -> IntArray:
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, left: IntArray, right: IntArray) -> None:
        self.pairs.append(np.stack([left, right]))

    def roots(self) -> IntArray:
        """For each number, the least one that it is tied to, directly or through others."""
        roots, pairs = np.arange(self.count), np.concatenate(self.pairs, axis=1)
        while (roots[pairs[0]] != roots[pairs[1]]).any():
            ends = roots[pairs]
            np.minimum.at(roots, ends.ravel(), np.tile(ends.min(axis=0), 2))
            while (roots[roots] != roots).any():
                roots = roots[roots]
        return roots


class _Numbering(Walk):
    """Gives every tensor its channel numbers; None stands for an opaque value, where nothing is prunable."""

    def __init__(self, module: nn.Module, recorded: fx.Graph) -> None:
        super().__init__(module, recorded)
        self.ties = _Ties()
        self.layers: dict[str, Layer] = {}
        self.norms: dict[str, set[str | None]] = {}
        self.fixed: list[IntArray] = []
        self.unknown: list[tuple[fx.Node, IntArray]] = []

    def graph(self) -> ChannelGraph:
        self.run()
        norm_of = self._sole_norms()
        for name in self.norms.keys() - norm_of.keys():
            if self.layers[name].kind == "conv":
                self.fixed.append(self.layers[name].outputs)
        roots = self.ties.roots()
        fixed = np.zeros(len(roots), dtype=bool)
        for numbers in self.fixed:
            fixed[roots[numbers]] = True
        self._refuse_unknown(fixed[roots])
        layers = {
            name: Layer(at.kind, roots[at.inputs], roots[at.outputs], norm_of.get(name))
            for name, at in self.layers.items()
        }
        prunable = {name: norm for name, norm in norm_of.items() if not fixed[layers[name].outputs].all()}
        opaque = frozenset(node for node, value in self.values.items() if value is None)
        return ChannelGraph(layers, fixed, prunable, self._segments(layers, prunable), self.recorded, opaque)

    def _sole_norms(self) -> dict[str, str]:
        """Convolutions that one batch norm, serving no other, follows at every call."""
        found = {name: next(iter(norms)) for name, norms in self.norms.items() if len(norms) == 1}
        calls = [node.target for node in self.recorded.nodes if node.op == "call_module"]
        return {name: bn for name, bn in found.items() if bn is not None and calls.count(bn) == calls.count(name)}

    def _refuse_unknown(self, fixed: BoolArray) -> None:
        for node, numbers in self.unknown:
            if not fixed[numbers].all():
                what = self.modules[node.target] if node.op == "call_module" else node.target
                what = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", what)
                raise ValueError(f"cannot prune through {node.name}: what {what} does to channels is not known")

    def _segments(self, layers: dict[str, Layer], prunable: dict[str, str]) -> list[Segment]:
        parts = [
            Segment(name, part)
            for name, layer in layers.items()
            if layer.kind == "split"
            for part in np.split(layer.outputs, np.cumsum(self.modules[name].sizes)[:-1])
        ]
        return parts + [Segment(name, layers[name].outputs) for name in prunable]

    def _axis(self, node: fx.Node, count: int) -> _Axis:
        """The axis that `node` reads, or new fixed numbers where it reads an opaque value."""
        axis = self.inputs(node)[0]
        if isinstance(axis, _Axis):
            return axis
        numbers = self.ties.new(count)
        self.fixed.append(numbers)
        return _Axis(numbers)

    def _record(self, node: fx.Node, kind: str, inputs: IntArray, outputs: IntArray) -> None:
        if known := self.layers.get(node.target):
            self.ties.tie(known.inputs, inputs)
            self.ties.tie(known.outputs, outputs)
        else:
            self.layers[node.target] = Layer(kind, inputs, outputs)

    def _follow(self, node: fx.Node) -> None:
        """Note which batch norm, if any, is the only reader of this call of a convolution."""
        users = list(node.users)
        follower = users[0].target if len(users) == 1 and classify_node(users[0], self.modules) == "norm" else None
        self.norms.setdefault(node.target, set()).add(follower)

    def _all_axes(self, value: Any) -> list[_Axis]:
        if isinstance(value, _Axis):
            return [value]
        return [axis for part in value for axis in self._all_axes(part)] if isinstance(value, tuple) else []

    def visit_opaque(self, node: fx.Node) -> None:
        return None

    def visit_unknown(self, node: fx.Node) -> None:
        self.unknown += [(node, axis.numbers) for axis in self._all_axes(tuple(self.inputs(node)))]

    def visit_hard_sized(self, node: fx.Node) -> None:
        self.fixed += [axis.numbers for axis in self._all_axes(tuple(self.inputs(node)))]

    visit_output = visit_hard_sized

    def visit_conv(self, node: fx.Node) -> _Axis:
        conv = self.modules[node.target]
        inputs, outputs = self._axis(node, conv.in_channels).numbers, self.ties.new(conv.out_channels)
        self._record(node, "conv", inputs, outputs)
        self._follow(node)
        return _Axis(outputs)

    def visit_depthwise(self, node: fx.Node) -> _Axis:
        axis = self._axis(node, self.modules[node.target].in_channels)
        self._record(node, "depthwise", axis.numbers, axis.numbers)
        self._follow(node)
        return axis

    def visit_linear(self, node: fx.Node) -> _Axis | None:
        linear = self.modules[node.target]
        axis = self._axis(node, linear.in_features)
        positions, rest = divmod(linear.in_features, len(axis.numbers))
        if rest or not (axis.flat or self.inputs(node)[0] is None):
            return self.visit_unknown(node)
        outputs = self.ties.new(linear.out_features)
        self.fixed.append(outputs)
        self._record(node, "linear", np.repeat(axis.numbers, positions), outputs)
        return _Axis(outputs, flat=True)

    def visit_norm(self, node: fx.Node) -> _Axis:
        axis = self._axis(node, self.modules[node.target].num_features)
        self._record(node, "norm", axis.numbers, axis.numbers)
        return axis

    def visit_activation(self, node: fx.Node) -> _Axis | None:
        return self.inputs(node)[0]

    visit_pass_through = visit_activation

    def visit_flatten(self, node: fx.Node) -> _Axis | None:
        axis = self.inputs(node)[0]
        if axis is None or not flattens_channels(node, self.modules):
            return self.visit_unknown(node)
        return _Axis(axis.numbers, flat=True)

    def visit_split(self, node: fx.Node) -> tuple[_Axis, ...]:
        sizes = self.modules[node.target].sizes
        axis = self._axis(node, sum(sizes))
        self._record(node, "split", axis.numbers, axis.numbers)
        return tuple(_Axis(part) for part in np.split(axis.numbers, np.cumsum(sizes)[:-1]))

    def visit_bypass(self, node: fx.Node) -> _Axis | None:
        shift = self.modules[node.target].shift
        if shift is None:
            return self.inputs(node)[0]
        axis = self._axis(node, len(shift))
        self._record(node, "bypass", axis.numbers, axis.numbers)
        return axis

    def visit_item(self, node: fx.Node) -> Any:
        value = self.inputs(node)[0]
        if isinstance(value, tuple) and isinstance(node.args[1], int):
            return value[node.args[1]]
        return self.visit_hard_sized(node)

    def visit_concatenation(self, node: fx.Node) -> _Axis | None:
        tensors = node.args[0] if node.args else node.kwargs["tensors"]
        parts = [self.values[tensor] for tensor in tensors]
        if not joins_channels(node):
            return self.visit_unknown(node)
        if not all(isinstance(part, _Axis) and not part.flat for part in parts):
            return self.visit_hard_sized(node)
        return _Axis(np.concatenate([part.numbers for part in parts]))

    def visit_arithmetic(self, node: fx.Node) -> _Axis | None:
        axes = self.inputs(node)
        if not all(isinstance(axis, _Axis) for axis in axes):
            return self.visit_hard_sized(node)
        widest = max(axes, key=lambda axis: len(axis.numbers))
        for axis in axes:
            if axis.flat != widest.flat or len(axis.numbers) not in (1, len(widest.numbers)):
                return self.visit_unknown(node)
            if len(axis.numbers) == len(widest.numbers):
                self.ties.tie(widest.numbers, axis.numbers)
            else:
                self.fixed.append(axis.numbers)
        return widest
