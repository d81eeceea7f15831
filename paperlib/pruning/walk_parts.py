"""The part of the walk that takes tensors apart, joins them, and rearranges their channels."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import fx

from paperlib.pruning.axes import Axis, IntArray, Size, index_axis, normalise_dim, shuffled
from paperlib.pruning.fx_ops import describe_target, joins_channels, target_name
from paperlib.pruning.walk_base import WalkBase, loud_array, pick_item

_FACTORS = ("upscale_factor", "downscale_factor", "groups")


class PartWalk(WalkBase):
    """Visits the operations that make tensors out of parts of others."""

    def visit_item(self, node: fx.Node) -> Any:
        """Return one part of a tuple, or the axis of a slice of pixels."""
        value, index = self._argument(node.args[0]), self._argument(node.args[1])
        if isinstance(value, tuple) and isinstance(index, int | slice):
            return pick_item(value, index)
        if not isinstance(value, Axis):
            return self.visit_unknown(node)
        return self._known(node, index_axis(value, index))

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
            loud = np.concatenate([loud_array(part) for part in parts])
        return replace(first, numbers=np.concatenate([part.numbers for part in parts]), loud=loud)
