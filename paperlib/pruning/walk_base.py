"""What the walks that number channels have in common (see `channel_walk`)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from paperlib.pruning.axes import LOUD, SILENT, Axis, BoolArray, IntArray, Size
from paperlib.pruning.code_sizes import CodeSize, Place
from paperlib.pruning.fx_ops import GraphWalk, describe_target


@dataclass(frozen=True)
class Layer:
    """One module that has channels: the number of each of its input and output channels.

    Tied channels have the same number. `norm` is the batch norm that alone reads a convolution's output; it is
    `adjacent` unless an activation or a pooling comes between the two.
    """

    kind: str
    inputs: IntArray
    outputs: IntArray
    norm: str | None = None
    adjacent: bool = True


@dataclass(frozen=True, eq=False)
class NormRead:
    """Outputs of a convolution that a batch norm reads, and at which of its own channels.

    A norm that follows one convolution reads all outputs, in their order. One that follows a concatenation or a sum
    reads those of several convolutions, and those of one convolution may be read by several norms.
    """

    norm: str
    outputs: IntArray | slice = field(default_factory=lambda: slice(None))
    channels: IntArray | slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of one value per channel that the code of a module reads itself.

    Attributes:
        numbers: the number of each channel.
        dim: the axis of the tensor that they form.
        tensor: its values.
    """

    numbers: IntArray
    dim: int
    tensor: Tensor


@dataclass
class Ties:
    """Channel numbers and pairs of them that are tied."""

    count: int = 0
    pairs: list[IntArray] = field(default_factory=lambda: [np.empty((2, 0), dtype=np.int64)])

    def new_numbers(self, count: int) -> IntArray:
        """Return `count` numbers that no channel has."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie_numbers(self, left: IntArray, right: IntArray) -> None:
        """Tie channels pairwise."""
        if left is not right:
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


@dataclass(frozen=True)
class Hold:
    """Channels that must be kept, and why."""

    numbers: IntArray
    reason: str


@dataclass(frozen=True, eq=False)
class SizeUse:
    """Channels that an operation counts by a number in the code."""

    node: fx.Node
    numbers: IntArray
    size: CodeSize


class WalkBase(GraphWalk):
    """Gives every tensor its channel numbers; None stands for an opaque value, which holds no prunable channel.

    Attributes:
        ties, layers: the numbers, and the layers that have them.
        followers: per convolution or linear layer the batch norms that read it; None stands for any other reader.
        apart: convolutions whose batch norm reads them through an activation or a pooling.
        silencing: for each norm, which of its channels nothing but its own gamma and beta can silence.
        gates: outputs of convolutions that something silent is multiplied by.
        parameters: per-channel parameters that the code itself reads, such as a layer scale, by name.
        read_weights: other parameters that the code itself reads, by name.
        holds: channels that must be kept.
        balanced: groups of channels of which equally many must be kept, such as the parts of a chunk.
        size_uses: the channels that numbers in the code count.
        moves: for a node that rearranges channels, where each channel of its result, or of each part, comes from.
    """

    def __init__(self, module: nn.Module, nodes: Iterable[fx.Node]) -> None:
        super().__init__(module, nodes)
        self.root = module
        self.ties = Ties()
        self.layers: dict[str, Layer] = {}
        self.followers: dict[str, set[str | None]] = {}
        self.apart: set[str] = set()
        self.silencing: dict[str, BoolArray] = {}
        self.gates: list[IntArray] = []
        self.parameters: dict[str, Parameter] = {}
        self.read_weights: dict[str, Tensor] = {}
        self.holds: list[Hold] = []
        self.balanced: list[list[IntArray]] = []
        self.size_uses: dict[Place, list[SizeUse]] = {}
        self.moves: dict[fx.Node, IntArray | tuple[IntArray, ...]] = {}

    def visit_unknown(self, node: fx.Node) -> None:
        """Hold the channels that reach an operation whose effect is not known, or whose number does."""
        reason = f"{describe_target(node, self.modules)} at {node.name}"
        self._hold(node, reason)
        counted = [value.numbers for value in self.input_values(node) if isinstance(value, Size)]
        self.holds += [Hold(numbers, reason) for numbers in counted if numbers is not None]

    def visit_output(self, node: fx.Node) -> None:
        """Hold the channels that the network returns."""
        self._hold(node, "being an output of the network")

    def _hold(self, node: fx.Node, reason: str) -> None:
        for axis in all_axes(tuple(self.input_values(node))):
            self.holds.append(Hold(axis.numbers, reason))

    def _consume(self, axis: Axis, node: fx.Node) -> Axis:
        """Hold the loud channels of a tensor that a layer reads: they cannot be removed."""
        loud = level_array(axis) == LOUD
        if loud.any():
            self.holds.append(Hold(axis.numbers[loud], f"having no batch norm where {node.name} reads them"))
        return axis

    def _tie_parts(self, parts: list[IntArray]) -> None:
        """Tie the channels of all parts, by their positions."""
        for part in parts[1:]:
            self.ties.tie_numbers(parts[0], part)

    def _first(self, node: fx.Node) -> Any:
        """Return the axis of the only operand that has one."""
        axes = all_axes(tuple(self.input_values(node)))
        return axes[0] if len(axes) == 1 else self.visit_unknown(node)

    def _argument(self, value: Any) -> Any:
        """Return what stands for an argument of a traced call."""
        return map_aggregate(value, self._plain_value)

    def _plain_value(self, leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return self.values[leaf]
        return leaf.plain if isinstance(leaf, CodeSize) else leaf

    def _use_size(self, node: fx.Node, size: CodeSize, numbers: IntArray) -> None:
        """Note that a number in the code counts these channels."""
        self.size_uses.setdefault(size.place, []).append(SizeUse(node, numbers, size))

    def settle_sizes(self) -> dict[Place, SizeUse]:
        """Balance the channels that each number in the code counts; hold them if it counts anything else.

        Returns:
            one use of each number that can change.
        """
        used = Counter((use.node, place) for place, uses in self.size_uses.items() for use in uses)
        found = ((node, place, count) for node in self.nodes for place, count in _count_places(node).items())
        others = {place for node, place, count in found if count > used[node, place]}
        settled = {}
        for place, uses in self.size_uses.items():
            sizes = {(use.size.divisor, use.size.plain) for use in uses}
            if len(sizes) == 1 and place not in others | uses[0].size.computed_with:
                self.balanced.append([use.numbers for use in uses])
                settled[place] = uses[0]
            else:
                name = ".".join(place[:2])
                self.holds += [Hold(use.numbers, f"the number {name.lstrip('.')} in the code") for use in uses]
        return settled

    def _axis_and_arguments(self, node: fx.Node) -> tuple[Axis | None, list[Any]]:
        """Return the tensor that an operation changes, and its other arguments."""
        values = [self._argument(value) for value in (*node.args, *node.kwargs.values())]
        axis = values[0] if values and isinstance(values[0], Axis) else None
        return axis, values[1:]

    def _known(self, node: fx.Node, axis: Axis | None) -> Axis | None:
        return self.visit_unknown(node) if axis is None else axis


def _count_places(node: fx.Node) -> Counter[Place]:
    """Return how often the number at each place is among the arguments of a node."""
    found: Counter[Place] = Counter()

    def note_place(leaf: Any) -> Any:
        if isinstance(leaf, CodeSize):
            found[leaf.place] += 1
        return leaf

    map_aggregate((node.args, node.kwargs), note_place)
    return found


def all_axes(value: Any) -> list[Axis]:
    """Return the axes in a value, which may be a tuple of them."""
    if isinstance(value, Axis):
        return [value]
    return [axis for part in value for axis in all_axes(part)] if isinstance(value, tuple) else []


def pick_item(values: tuple[Any, ...], index: Any) -> Any:
    """Return an item of a tuple; None if there is none at that index."""
    try:
        return values[index]
    except (IndexError, TypeError):
        return None


def level_array(axis: Axis) -> IntArray:
    """Return the level of each channel of an axis."""
    return np.full(len(axis.numbers), SILENT) if axis.levels is None else axis.levels
