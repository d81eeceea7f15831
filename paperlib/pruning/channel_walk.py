"""The walk that gives every channel of every traced tensor its number (see `channel_graph`)."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from paperlib.pruning.axes import CONSTANT, LOUD, SILENT, Axis, IntArray, combine_sizes, normalise_dim
from paperlib.pruning.fx_ops import arguments_of, classify_node, describe_target, read_attribute, target_name
from paperlib.pruning.walk_base import Hold, Layer, NormRead, Parameter, level_array
from paperlib.pruning.walk_layers import LayerWalk
from paperlib.pruning.walk_parts import PartWalk
from paperlib.pruning.walk_shapes import ShapeWalk

__all__ = ["ChannelWalk", "Hold", "Layer", "NormRead", "Parameter"]


_LIFTING = (
    "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "exp", "threshold", "cos", "log", "rsqrt", "reciprocal",
    "ones_like", "full_like",
)  # fmt: skip
"""Activations that do not map zero to zero."""
_PRODUCTS = ("mul", "multiply")


class ChannelWalk(LayerWalk, ShapeWalk, PartWalk):
    """Gives every tensor its channel numbers; see `WalkBase` for what it finds."""

    def visit_opaque(self, node: fx.Node) -> None:
        """Follow nothing: the value has no channels that could be removed."""
        return None

    def visit_constant(self, node: fx.Node) -> Any:
        """Return a parameter or buffer of a number per channel as an axis; any other is opaque.

        A number per channel, such as a layer scale, goes with its channel, and is silent then.
        """
        name = target_name(node)
        value = read_attribute(self.root, name)
        if not isinstance(value, Tensor):
            return None
        long = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(long) != 1:
            self.read_weights[name] = value
            return None
        if name not in self.parameters:
            self.parameters[name] = Parameter(self.ties.new_numbers(value.numel()), long[0], value)
        return Axis(self.parameters[name].numbers, dim=long[0], ndim=value.dim())

    def visit_number(self, node: fx.Node) -> int:
        """Return 1 for a single number; parameters from which it is computed keep all their values."""
        self.visit_unknown(node)
        return 1

    def visit_activation(self, node: fx.Node) -> Any:
        """Keep the numbers, if the only other operands are numbers."""
        others = self.input_values(node)[1:]
        axis = self.visit_unknown(node) if any(value is None for value in others) else self._first(node)
        return axis if axis is None or self._keeps_zero(node) else replace(axis, levels=_lifted(axis))

    def _keeps_zero(self, node: fx.Node) -> bool:
        """Tell whether an activation maps zero to zero."""
        name = describe_target(node, self.modules).strip("_").lower()
        if name.startswith(("clamp", "clip")):
            given = arguments_of(node, "input", "min", "max")
            low, high = given.get("min"), given.get("max")
            return not (isinstance(low, int | float) and low > 0 or isinstance(high, int | float) and high < 0)
        return name not in _LIFTING

    def visit_pass_through(self, node: fx.Node) -> Any:
        """Keep the numbers; other operands, such as sizes, or a tensor whose type is taken, do not matter."""
        taken = target_name(node) in ("to", "type_as") and isinstance(node.args[0], fx.Node)
        return self.values[node.all_input_nodes[0]] if taken else self._first(node)

    def visit_pixel_move(self, node: fx.Node) -> Axis | None:
        """Keep the numbers if pixels are flipped or rolled, not channels."""
        axis, args = self._axis_and_arguments(node)
        dims = args[-1] if len(args) == 1 + (target_name(node) == "roll") else None
        found = (
            [normalise_dim(dim, axis.ndim) for dim in (dims if isinstance(dims, list | tuple) else [dims])]
            if axis
            else []
        )
        moved = axis is None or not axis.plain or None in found or axis.dim in found
        return self.visit_unknown(node) if moved else axis

    def visit_softmax(self, node: fx.Node) -> Axis | None:
        """Keep the numbers if pixels, stacked tensors, or groups of channels are compared, not channels."""
        axis, args = self._axis_and_arguments(node)
        dim = self.module_of(node).dim if node.op == "call_module" else args[0] if args else None
        if axis is not None and axis.groups > 1 and not axis.swapped and dim == 1:
            return self._compare_groups(node, axis)
        dim = normalise_dim(dim, axis.ndim) if axis is not None and axis.plain else None
        if axis is None or dim is None or dim == axis.dim:
            return self.visit_unknown(node)
        return replace(axis, levels=_lifted(axis))

    def _compare_groups(self, node: fx.Node, axis: Axis) -> Axis:
        """Return the channels of one of the groups, to which those of the others are tied."""
        part = np.arange(len(axis.numbers) // axis.groups)
        self.moves[node] = part
        levels = _lifted(axis).reshape(axis.groups, -1).max(0)
        return replace(axis.take(part), dim=2, groups=1, levels=levels)

    def visit_functional_slope(self, node: fx.Node) -> Axis | None:
        """Tie the slopes of a PReLU, which the code hands over, to the channels."""
        axis, args = self._axis_and_arguments(node)
        slope = args[0] if args else None
        if axis is None or not axis.plain or axis.dim != 1 or not isinstance(slope, Axis | int):
            return self.visit_unknown(node)
        if isinstance(slope, Axis):
            self.ties.tie_numbers(axis.numbers, slope.numbers)
        return axis

    def visit_pad(self, node: fx.Node) -> Axis | None:
        """Keep the numbers if pixels are padded, not channels."""
        axis = self._first(node)
        if node.op == "call_module" or axis is None:
            return axis
        pads = arguments_of(node, "input", "pad")["pad"]
        beside = None if axis.ndim is None else 2 * (axis.ndim - 1 - axis.dim)
        inside = isinstance(pads, list | tuple) and beside is not None and len(pads) <= beside
        return axis if inside and axis.plain else self.visit_unknown(node)

    def visit_gated_half(self, node: fx.Node) -> Axis | None:
        """Tie the channels of a gated linear unit to those of their gates, which are the second half."""
        axis, args = self._axis_and_arguments(node)
        given = self.module_of(node).dim if node.op == "call_module" else args[0] if args else -1
        half, odd = divmod(len(axis.numbers), 2) if axis else (0, 1)
        if axis is None or odd or not axis.plain or normalise_dim(given, axis.ndim) != axis.dim:
            return self.visit_unknown(node)
        values, gates = axis.take(slice(half)), axis.take(slice(half, None))
        self.ties.tie_numbers(values.numbers, gates.numbers)
        low, high = level_array(values), level_array(gates)
        levels = np.where(low == SILENT, SILENT, np.maximum(low, high))
        self._note_gates([gates], levels)
        return replace(values, levels=levels)

    def visit_comparison(self, node: fx.Node) -> Axis | None:
        """Keep the numbers; whatever is compared, the result is a constant where the operands are."""
        axis = self.visit_arithmetic(node)
        return replace(axis, levels=_lifted(axis)) if isinstance(axis, Axis) else None

    def visit_selection(self, node: fx.Node) -> Axis | None:
        """Tie the numbers of a condition and of what it selects from."""
        return self.visit_arithmetic(node) if len(node.args) == 3 else self.visit_unknown(node)

    def visit_arithmetic(self, node: fx.Node) -> Any:
        """Tie the numbers of operands that are combined channel by channel."""
        count = 3 if classify_node(node, self.modules) == "selection" else 2
        values = [self._argument(value) for value in node.args[:count]]
        axes = [value for value in values if isinstance(value, Axis)]
        if not axes and len(values) == 2:
            found = combine_sizes(target_name(node).lstrip("i"), *values)
            return self.visit_unknown(node) if found is None else found
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
        levels = _combined_levels(node, values, widest)
        self._note_gates(axes, levels)
        ndim = widest.ndim if any(a.ndim is None for a in axes) else max(a.ndim or 0 for a in axes)
        return replace(widest, levels=levels, ndim=ndim, dim=_shifted_dim(widest, ndim))

    def _note_gates(self, axes: list[Axis], levels: IntArray | None) -> None:
        """Note the loud channels that a product with silent ones has silenced."""
        silent = np.full(1, SILENT) if levels is None else levels
        for axis in axes:
            silenced = (level_array(axis) == LOUD) & (silent == SILENT)
            if len(silenced) == len(axis.numbers):
                self.gates.append(axis.numbers[silenced])


def _from_the_right(axis: Axis) -> int:
    return axis.dim - (axis.ndim or 0)


def _shifted_dim(axis: Axis, ndim: int | None) -> int:
    return axis.dim if ndim is None or axis.ndim is None else axis.dim + ndim - axis.ndim


def _lifted(axis: Axis) -> IntArray:
    """Return levels after what is silent has become constant."""
    return np.maximum(level_array(axis), CONSTANT)


def _combined_levels(node: fx.Node, values: list[Any], widest: Axis) -> IntArray | None:
    """Return the levels of a result: a product is silent where one factor is, a quotient where its dividend is."""
    if all(isinstance(value, Axis) and value.levels is None for value in values):
        return None
    name = target_name(node).strip("_").lstrip("i")
    product = name in (*_PRODUCTS, "truediv", "div", "divide", "true_divide", "pow")
    levels = [np.full(len(widest.numbers), SILENT)]
    for value in values:
        if isinstance(value, Axis):
            levels.append(np.broadcast_to(level_array(value), levels[0].shape))
        else:
            levels.append(levels[0] + (CONSTANT if value else SILENT))
    found = np.max(levels, axis=0)
    if product:
        # Nothing is multiplied: what is divided, or raised to a power, decides alone.
        silencing = levels[1:] if name in _PRODUCTS else levels[1:2]
        found[np.min(silencing, axis=0) == SILENT] = SILENT
    return found if found.any() else None
