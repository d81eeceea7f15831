"""The walk that gives every channel of every traced tensor its number (see `channel_graph`)."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from paperlib.pruning.axes import Axis, BoolArray, combine_sizes
from paperlib.pruning.fx_ops import arguments_of, target_name
from paperlib.pruning.walk_base import Hold, Layer, loud_array
from paperlib.pruning.walk_layers import LayerWalk
from paperlib.pruning.walk_parts import PartWalk
from paperlib.pruning.walk_shapes import ShapeWalk

__all__ = ["ChannelWalk", "Hold", "Layer"]


class ChannelWalk(LayerWalk, ShapeWalk, PartWalk):
    """Gives every tensor its channel numbers; see `WalkBase` for what it finds."""

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

    def visit_pad(self, node: fx.Node) -> Axis | None:
        """Keep the numbers if pixels are padded, not channels."""
        axis = self._first(node)
        if node.op == "call_module" or axis is None:
            return axis
        pads = arguments_of(node, "input", "pad")["pad"]
        beside = None if axis.ndim is None else 2 * (axis.ndim - 1 - axis.dim)
        inside = isinstance(pads, list | tuple) and beside is not None and len(pads) <= beside
        return axis if inside and axis.plain else self.visit_unknown(node)

    def visit_arithmetic(self, node: fx.Node) -> Any:
        """Tie the numbers of operands that are combined channel by channel."""
        values = [self._argument(value) for value in node.args[:2]]
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
        ndim = widest.ndim if any(a.ndim is None for a in axes) else max(a.ndim or 0 for a in axes)
        return replace(widest, loud=_combined_loudness(node, values, widest), ndim=ndim, dim=_shifted_dim(widest, ndim))


def _from_the_right(axis: Axis) -> int:
    return axis.dim - (axis.ndim or 0)


def _shifted_dim(axis: Axis, ndim: int | None) -> int:
    return axis.dim if ndim is None or axis.ndim is None else axis.dim + ndim - axis.ndim


def _combined_loudness(node: fx.Node, values: list[Any], widest: Axis) -> BoolArray | None:
    """Tell what is loud: a product only where all factors are, a sum where one term is, a quotient as its dividend."""
    if all(value.loud is None for value in values if isinstance(value, Axis)):
        return None
    nothing = np.zeros(len(widest.numbers), dtype=bool)
    loud = [loud_array(value) | nothing for value in values if isinstance(value, Axis)]
    name = target_name(node).strip("_").lstrip("i")
    if name in ("truediv", "div"):
        found = loud[0] if isinstance(values[0], Axis) else ~nothing
    else:
        found = np.all(loud, axis=0) if name == "mul" and len(loud) == len(values) else np.any(loud, axis=0)
    return found if found.any() else None
