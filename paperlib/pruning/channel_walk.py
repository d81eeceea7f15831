"""The walk that gives every channel of every traced tensor its number (see `channel_graph`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm3d
from torch.nn.modules.conv import _ConvNd

from paperlib.pruning.axes import (
    Axis,
    BoolArray,
    IntArray,
    Size,
    axis_sizes,
    combine_sizes,
    flatten_axis,
    index_axis,
    normalise_dim,
    permute_axis,
    reduce_axis,
    shuffled,
    squeeze_axis,
    transpose_axis,
    unsqueeze_axis,
    view_axis,
)
from paperlib.pruning.fx_ops import (
    GraphWalk,
    arguments_of,
    classify_node,
    describe_target,
    joins_channels,
    target_name,
)


@dataclass(frozen=True)
class Layer:
    """One module that has channels: the number of each of its input and output channels.

    Tied channels have the same number. `norm` is the batch norm that alone reads a convolution's output.
    """

    kind: str
    inputs: IntArray
    outputs: IntArray
    norm: str | None = None


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


class ChannelWalk(GraphWalk):
    """Gives every tensor its channel numbers; None stands for an opaque value, which holds no prunable channel.

    Attributes:
        ties, layers: the numbers, and the layers that have them.
        followers: per convolution or linear layer the batch norms that read it; None stands for any other reader.
        holds: channels that must be kept.
        balanced: groups of channels of which equally many must be kept, such as the parts of a chunk.
        moves: for a node that rearranges channels, where each channel of its result, or of each part, comes from.
    """

    def __init__(self, module: nn.Module, nodes: Iterable[fx.Node]) -> None:
        super().__init__(module, nodes)
        self.root = module
        self.ties = Ties()
        self.layers: dict[str, Layer] = {}
        self.followers: dict[str, set[str | None]] = {}
        self.holds: list[Hold] = []
        self.balanced: list[list[IntArray]] = []
        self.moves: dict[fx.Node, IntArray | tuple[IntArray, ...]] = {}

    # --- Holding -----------------------------------------------------------------------------------------------------

    def visit_unknown(self, node: fx.Node) -> None:
        """Hold the channels that reach an operation whose effect is not known."""
        self._hold(node, f"{describe_target(node, self.modules)} at {node.name}")

    def visit_output(self, node: fx.Node) -> None:
        """Hold the channels that the network returns."""
        self._hold(node, "being an output of the network")

    def _hold(self, node: fx.Node, reason: str) -> None:
        for axis in _all_axes(tuple(self.input_values(node))):
            self.holds.append(Hold(axis.numbers, reason))

    def _consume(self, axis: Axis, node: fx.Node) -> Axis:
        """Hold the loud channels of a tensor that a layer reads: they cannot be removed."""
        if axis.loud is not None and axis.loud.any():
            self.holds.append(Hold(axis.numbers[axis.loud], f"having no batch norm where {node.name} reads them"))
        return axis

    def _axis(self, node: fx.Node, count: int, ndim: int | None) -> Axis:
        """Return the axis that `node` reads, or new fixed numbers if it reads an opaque value."""
        axis = self.input_values(node)[0] if node.all_input_nodes else None
        if isinstance(axis, Axis):
            return self._consume(axis, node)
        numbers = self.ties.new_numbers(count)
        self.holds.append(Hold(numbers, "being an input"))
        return Axis(numbers, ndim=ndim)

    # --- Layers ------------------------------------------------------------------------------------------------------

    def _record(self, node: fx.Node, kind: str, inputs: IntArray, outputs: IntArray) -> None:
        """Add a layer. At every further call of it, tie its channels to those of the first call."""
        name = target_name(node)
        if known := self.layers.get(name):
            self.ties.tie_numbers(known.inputs, inputs)
            self.ties.tie_numbers(known.outputs, outputs)
        else:
            self.layers[name] = Layer(kind, inputs, outputs)

    def _record_follower(self, node: fx.Node) -> bool:
        """Note which batch norm, if any, is the only reader of this call of a layer; tell whether there is one."""
        users = list(node.users)
        is_norm = len(users) == 1 and classify_node(users[0], self.modules) == "norm"
        self.followers.setdefault(target_name(node), set()).add(target_name(users[0]) if is_norm else None)
        return is_norm

    def visit_conv(self, node: fx.Node) -> Axis | None:
        """Give the outputs of a convolution new numbers."""
        conv, ndim = self.module_of(node), _layer_dims(self.module_of(node))
        axis = self._axis(node, conv.in_channels, ndim)
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != conv.in_channels:
            return self.visit_unknown(node)
        outputs = self.ties.new_numbers(conv.out_channels)
        self._record(node, "conv", axis.numbers, outputs)
        return Axis(outputs, ndim=ndim, loud=self._loudness(node, outputs))

    def _loudness(self, node: fx.Node, outputs: IntArray) -> BoolArray | None:
        return None if self._record_follower(node) else np.ones(len(outputs), dtype=bool)

    def visit_depthwise(self, node: fx.Node) -> Axis | None:
        """Keep the numbers: each output has the number of its only input."""
        conv = self.module_of(node)
        axis = self._axis(node, conv.in_channels, _layer_dims(conv))
        if not axis.plain or axis.dim != 1:
            return self.visit_unknown(node)
        self._record(node, "depthwise", axis.numbers, axis.numbers)
        self._record_follower(node)
        return replace(axis, loud=None)

    def visit_linear(self, node: fx.Node) -> Axis | None:
        """Give the outputs of a linear layer new numbers; it may read flattened maps."""
        linear = self.module_of(node)
        opaque = self.input_values(node)[0] is None
        axis = self._axis(node, linear.in_features, None)
        positions, rest = divmod(linear.in_features, len(axis.numbers))
        last = axis.ndim is None or axis.dim == axis.ndim - 1
        fits = axis.groups == 1 and last and (axis.flat or positions == 1)
        if rest or not (fits or opaque):
            return self.visit_unknown(node)
        outputs = self.ties.new_numbers(linear.out_features)
        self._record(node, "linear", np.repeat(axis.numbers, positions), outputs)
        loud = self._loudness(node, outputs)
        # Without batch norm of its own nothing but a gate can remove an output of a linear layer.
        return Axis(outputs, dim=axis.dim, ndim=None if opaque else axis.ndim, loud=loud)

    def visit_norm(self, node: fx.Node) -> Axis | None:
        """Keep the numbers; a batch norm silences its outputs once gamma and beta are 0."""
        norm = self.module_of(node)
        axis = self._axis(node, norm.num_features, _norm_dims(norm))
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != norm.num_features:
            return self.visit_unknown(node)
        self._record(node, "norm", axis.numbers, axis.numbers)
        return replace(axis, loud=None)

    def visit_slope(self, node: fx.Node) -> Axis | None:
        """Keep the numbers through a module that treats each channel alone, such as a PReLU per channel."""
        axis = self.input_values(node)[0]
        if axis is None or not axis.plain or axis.dim != 1:
            return self.visit_unknown(node)
        self._record(node, classify_node(node, self.modules), axis.numbers, axis.numbers)
        return axis

    visit_pixel_norm = visit_slope

    def visit_split(self, node: fx.Node) -> tuple[Axis, ...]:
        """Give each part of a `ChannelSplit` its share of the numbers."""
        axis = self._axis(node, sum(self.module_of(node).sizes), 4)
        self._record(node, "split", axis.numbers, axis.numbers)
        ends = np.cumsum(self.module_of(node).sizes)
        return tuple(axis.take(slice(*ends_)) for ends_ in zip([0, *ends[:-1]], ends, strict=True))

    def visit_bypass(self, node: fx.Node) -> Axis | None:
        """Keep the numbers through the replacement of a removed block."""
        shift = self.module_of(node).shift
        if shift is None:
            return self.input_values(node)[0]
        axis = self._axis(node, len(shift), 4)
        self._record(node, "bypass", axis.numbers, axis.numbers)
        return axis

    # --- Operations of the traced code -------------------------------------------------------------------------------

    def visit_opaque(self, node: fx.Node) -> None:
        """Follow nothing: the value has no channels that could be removed."""
        return None

    def visit_constant(self, node: fx.Node) -> Any:
        """Return a parameter or buffer that is one number for all channels as 1; any other is opaque."""
        value: Any = self.root
        for part in target_name(node).split("."):
            value = getattr(value, part, None)
        return 1 if getattr(value, "numel", lambda: 0)() == 1 else None

    def visit_activation(self, node: fx.Node) -> Any:
        """Keep the numbers, if the only other operands are numbers."""
        others = self.input_values(node)[1:]
        return self.visit_unknown(node) if any(value is None for value in others) else self._first(node)

    def visit_pass_through(self, node: fx.Node) -> Any:
        """Keep the numbers; other operands, such as sizes, do not matter."""
        return self._first(node)

    def _first(self, node: fx.Node) -> Any:
        """Return the axis of the only operand that has one."""
        axes = _all_axes(tuple(self.input_values(node)))
        return axes[0] if len(axes) == 1 else self.visit_unknown(node)

    def visit_pad(self, node: fx.Node) -> Axis | None:
        """Keep the numbers if pixels are padded, not channels."""
        axis = self._first(node)
        if node.op == "call_module" or axis is None:
            return axis
        pads = arguments_of(node, "input", "pad")["pad"]
        beside = None if axis.ndim is None else 2 * (axis.ndim - 1 - axis.dim)
        inside = isinstance(pads, list | tuple) and beside is not None and len(pads) <= beside
        return axis if inside and axis.plain else self.visit_unknown(node)

    def visit_size(self, node: fx.Node) -> Any:
        """Return sizes: of a tensor, or computed from others."""
        value = self._argument(node.args[0])
        if target_name(node) == "floordiv":
            divided = combine_sizes("floordiv", value, self._argument(node.args[1]))
            return self.visit_unknown(node) if divided is None else divided
        if isinstance(value, Axis):
            sizes = axis_sizes(value)
            at = node.args[1] if node.target == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            return sizes if at is None or sizes is None else _pick(sizes, normalise_dim(at, value.ndim))
        return None

    def visit_item(self, node: fx.Node) -> Any:
        """Return one part of a tuple, or the axis of a slice of pixels."""
        value, index = self._argument(node.args[0]), self._argument(node.args[1])
        if isinstance(value, tuple) and isinstance(index, int | slice):
            return _pick(value, index)
        if not isinstance(value, Axis):
            return self.visit_unknown(node)
        return self._known(node, index_axis(value, index))

    def visit_reduction(self, node: fx.Node) -> Any:
        """Drop or keep the dimensions over which a mean, sum or maximum is computed."""
        axes = _all_axes(tuple(self.input_values(node)))
        if len(axes) == 2 and target_name(node) in ("max", "min"):
            return self.visit_arithmetic(node)
        given = arguments_of(node, "input", "dim", "keepdim")
        if not axes or len(node.all_input_nodes) > 1 or "dim" not in given:
            return self.visit_unknown(node)
        axis = self._known(node, reduce_axis(axes[0], given["dim"], keepdim=bool(given.get("keepdim"))))
        # The maximum over one dimension comes with its positions.
        return (axis, None) if axis is not None and target_name(node) in ("max", "min") else axis

    def visit_permutation(self, node: fx.Node) -> Axis | None:
        """Put the dimensions in another order."""
        axis, args = self._axis_and_arguments(node)
        if axis is None:
            return self.visit_unknown(node)
        if target_name(node) == "permute":
            args = list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else args
            return self._known(node, permute_axis(axis, args))
        return self._known(node, transpose_axis(axis, *args) if len(args) == 2 else None)

    def visit_view(self, node: fx.Node) -> Axis | None:
        """Follow a view: [B, C, H, W] to [B, C * H * W], [B, C] to [B, C, 1, 1], a channel shuffle and others."""
        axis, sizes = self._axis_and_arguments(node)
        sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
        if axis is None:
            return self.visit_unknown(node)
        if target_name(node) == "unflatten":
            known = axis_sizes(axis)
            if len(sizes) != 2 or sizes[0] != axis.dim or known is None:
                return self.visit_unknown(node)
            sizes = [known[0], *sizes[1], *known[2:]]
        found = self._known(node, view_axis(axis, sizes))
        if found is not None:
            self._tie_sizes(axis, sizes)
            self._tie_groups(axis, found, node)
        return found

    def _tie_sizes(self, axis: Axis, sizes: list[Any]) -> None:
        """Tie the channels of a tensor to those of another whose channel count it is viewed by."""
        for size in sizes:
            if isinstance(size, Size) and size.numbers is not None:
                self.ties.tie_numbers(axis.numbers, size.numbers)

    def _tie_groups(self, before: Axis, after: Axis, node: fx.Node) -> None:
        if after.groups > before.groups:
            parts = np.split(after.numbers, after.groups)
            for part in parts[1:]:
                self.ties.tie_numbers(parts[0], part)
        if before.swapped and after.groups == 1:
            self.moves[node] = shuffled(len(before.numbers), before.groups)

    def visit_rearrangement(self, node: fx.Node) -> Axis | None:
        """Follow a channel shuffle, or pixels that become channels and the reverse."""
        axis = self._first(node)
        operation = describe_target(node, self.modules).replace("_", "").lower()
        if axis is None or not axis.plain or axis.dim != 1:
            return self.visit_unknown(node)
        if node.op == "call_module":
            module = self.module_of(node)
            factor = cast(int, next(getattr(module, n) for n in _FACTORS if hasattr(module, n)))
        else:
            factor = cast(int, (*node.args[1:], *node.kwargs.values())[0])
        count, square = len(axis.numbers), factor**2
        if operation == "channelshuffle" and count % factor == 0:
            self._tie_parts(np.split(axis.numbers, factor))
            return self._move(node, axis, shuffled(count, factor))
        if operation == "pixelshuffle" and count % square == 0:
            self._tie_parts(list(axis.numbers.reshape(-1, square).T))
            return self._move(node, axis, np.arange(0, count, square))
        if operation == "pixelunshuffle":
            return self._move(node, axis, np.repeat(np.arange(count), square))
        return self.visit_unknown(node)

    def _tie_parts(self, parts: list[IntArray]) -> None:
        for part in parts[1:]:
            self.ties.tie_numbers(parts[0], part)

    def _move(self, node: fx.Node, axis: Axis, positions: IntArray) -> Axis:
        self.moves[node] = positions
        return axis.take(positions)

    def visit_flatten(self, node: fx.Node) -> Axis | None:
        """Merge dimensions."""
        axis = self._first(node)
        if node.op == "call_module":
            given = vars(self.module_of(node))
        else:
            given = {"start_dim": 0, "end_dim": -1, **arguments_of(node, "input", "start_dim", "end_dim")}
        return self._known(node, axis and flatten_axis(axis, given["start_dim"], given["end_dim"]))

    def visit_squeeze(self, node: fx.Node) -> Axis | None:
        """Drop dimensions of size 1."""
        axis, args = self._axis_and_arguments(node)
        return self._known(node, axis and squeeze_axis(axis, args[0] if args else None))

    def visit_unsqueeze(self, node: fx.Node) -> Axis | None:
        """Insert a dimension of size 1."""
        axis, args = self._axis_and_arguments(node)
        return self._known(node, axis and unsqueeze_axis(axis, args[0] if args else None))

    def visit_expansion(self, node: fx.Node) -> Axis | None:
        """Follow an expansion over pixels; a single channel that is expanded to many is followed as one."""
        axis, args = self._axis_and_arguments(node)
        if axis is None or axis.dim != 1 or not axis.plain:
            return self.visit_unknown(node)
        if target_name(node) == "expand_as":
            args: Any = axis_sizes(args[0]) if isinstance(args[0], Axis) else None
        args = list(args[0]) if args and len(args) == 1 and isinstance(args[0], list | tuple) else args
        if not args or len(args) != axis.ndim:
            return self.visit_unknown(node)
        count = args[axis.dim]
        if isinstance(count, Size) and count.numbers is not None and len(count.numbers) == len(axis.numbers):
            self.ties.tie_numbers(axis.numbers, count.numbers)
        elif count != -1 and len(axis.numbers) > 1:
            return self.visit_unknown(node)
        return axis

    def visit_parts(self, node: fx.Node) -> Any:
        """Follow `chunk`, of whose parts equally many channels must be kept, and parts of pixels."""
        axis, args = self._axis_and_arguments(node)
        given = {"dim": 0, **node.kwargs, **dict(zip(("count", "dim"), args, strict=False))}
        count = self._part_count(node, axis, given.get("count", given.get("chunks")))
        if axis is None or count is None or not axis.plain:
            return self.visit_unknown(node)
        dim = normalise_dim(given["dim"], axis.ndim)
        if dim is None or dim == axis.dim and len(axis.numbers) % count:
            return self.visit_unknown(node)
        positions = np.arange(len(axis.numbers))
        if dim != axis.dim:
            self.moves[node] = (positions,) * count
            return (axis,) * count
        self.moves[node] = tuple(np.split(positions, count))
        parts = tuple(axis.take(part) for part in self.moves[node])
        self.balanced.append([part.numbers for part in parts])
        return parts

    def _part_count(self, node: fx.Node, axis: Axis | None, given: Any) -> int | None:
        """Return into how many equal parts a tensor is divided; None if the sizes are numbers in the code."""
        if target_name(node) == "chunk":
            return given if isinstance(given, int) else None
        size = given if isinstance(given, Size) else node.kwargs.get("split_size_or_sections", given)
        if isinstance(size, Size) and axis is not None and size.numbers is axis.numbers:
            return size.divisor
        return None

    def visit_concatenation(self, node: fx.Node) -> Axis | None:
        """Join the numbers of all operands."""
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        # Not `input_values`: that names a tensor only once, even if it is joined to itself.
        parts = [self._argument(tensor) for tensor in tensors] if isinstance(tensors, list | tuple) else []
        if not all(isinstance(part, Axis) and part.plain for part in parts) or not parts:
            return self.visit_unknown(node)
        first = parts[0]
        if any((part.dim, part.ndim) != (first.dim, first.ndim) for part in parts):
            return self.visit_unknown(node)
        if not joins_channels(node, first.dim, first.ndim):
            return self.visit_unknown(node)
        loud = None
        if any(part.loud is not None for part in parts):
            loud = np.concatenate([_loud_array(part) for part in parts])
        return replace(first, numbers=np.concatenate([part.numbers for part in parts]), loud=loud)

    def visit_arithmetic(self, node: fx.Node) -> Any:
        """Tie the numbers of operands that are combined channel by channel."""
        values = [self._argument(value) for value in node.args[:2]]
        axes = [value for value in values if isinstance(value, Axis)]
        if not axes and len(values) == 2:
            return combine_sizes(target_name(node).lstrip("i"), *values)
        if not axes or len(values) < 2 or not all(isinstance(value, Axis | int | float) for value in values):
            return self.visit_unknown(node)
        widest = max(axes, key=lambda axis: len(axis.numbers))
        for axis in axes:
            aligned = axis.ndim == widest.ndim or not (axis.ndim is None or widest.ndim is None)
            aligned = aligned and _from_the_right(axis) == _from_the_right(widest)
            if not aligned or axis.flat != widest.flat or len(axis.numbers) not in (1, len(widest.numbers)):
                return self.visit_unknown(node)
            if len(axis.numbers) == len(widest.numbers):
                self.ties.tie_numbers(widest.numbers, axis.numbers)
            else:
                # One channel that is broadcast to all cannot be removed.
                self.holds.append(Hold(axis.numbers, f"being broadcast at {node.name}"))
        ndim = widest.ndim if any(a.ndim is None for a in axes) else max(a.ndim or 0 for a in axes)
        return replace(widest, loud=_combined_loudness(node, values, widest), ndim=ndim, dim=_shifted_dim(widest, ndim))

    # --- Small ones --------------------------------------------------------------------------------------------------

    def _argument(self, value: Any) -> Any:
        """Return what stands for an argument of a traced call."""
        return map_arg(value, self.values.__getitem__) if not isinstance(value, fx.Node) else self.values[value]

    def _axis_and_arguments(self, node: fx.Node) -> tuple[Axis | None, list[Any]]:
        """Return the tensor that an operation changes, and its other arguments."""
        values = [self._argument(value) for value in (*node.args, *node.kwargs.values())]
        axis = values[0] if values and isinstance(values[0], Axis) else None
        return axis, values[1:]

    def _known(self, node: fx.Node, axis: Axis | None) -> Axis | None:
        return self.visit_unknown(node) if axis is None else axis


_FACTORS = ("upscale_factor", "downscale_factor", "groups")


def _all_axes(value: Any) -> list[Axis]:
    if isinstance(value, Axis):
        return [value]
    return [axis for part in value for axis in _all_axes(part)] if isinstance(value, tuple) else []


def _pick(values: tuple[Any, ...], index: Any) -> Any:
    try:
        return values[index]
    except (IndexError, TypeError):
        return None


def _layer_dims(layer: nn.Module) -> int:
    assert isinstance(layer, _ConvNd)
    return len(layer.kernel_size) + 2


def _norm_dims(norm: nn.Module) -> int | None:
    return None if isinstance(norm, BatchNorm1d) else 5 if isinstance(norm, BatchNorm3d) else 4


def _loud_array(axis: Axis) -> BoolArray:
    return np.zeros(len(axis.numbers), dtype=bool) if axis.loud is None else axis.loud


def _from_the_right(axis: Axis) -> int:
    return axis.dim - (axis.ndim or 0)


def _shifted_dim(axis: Axis, ndim: int | None) -> int:
    return axis.dim if ndim is None or axis.ndim is None else axis.dim + ndim - axis.ndim


def _combined_loudness(node: fx.Node, values: list[Any], widest: Axis) -> BoolArray | None:
    """Tell what is loud: a product only where all factors are, a sum where one term is, a quotient as its dividend."""
    if all(value.loud is None for value in values if isinstance(value, Axis)):
        return None
    nothing = np.zeros(len(widest.numbers), dtype=bool)
    loud = [_loud_array(value) | nothing for value in values if isinstance(value, Axis)]
    name = target_name(node).strip("_").lstrip("i")
    if name in ("truediv", "div"):
        found = loud[0] if isinstance(values[0], Axis) else ~nothing
    else:
        found = np.all(loud, axis=0) if name == "mul" and len(loud) == len(values) else np.any(loud, axis=0)
    return found if found.any() else None
