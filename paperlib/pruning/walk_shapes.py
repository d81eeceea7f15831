"""The part of the walk that visits operations on the shape of a tensor: views, permutations, means, expansions."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import fx

from paperlib.pruning.axes import (
    LOUD,
    Axis,
    Size,
    axis_sizes,
    combine_sizes,
    flatten_axis,
    move_axis,
    normalise_dim,
    permute_axis,
    reduce_axis,
    shuffled,
    squeeze_axis,
    transpose_axis,
    unsqueeze_axis,
    view_axis,
)
from paperlib.pruning.fx_ops import arguments_of, target_name
from paperlib.pruning.walk_base import WalkBase, all_axes, pick_item


class ShapeWalk(WalkBase):
    """Visits the operations that change the shape of a tensor."""

    def visit_size(self, node: fx.Node) -> Any:
        """Return sizes: of a tensor, or computed from others."""
        value = self._argument(node.args[0])
        if target_name(node) == "floordiv":
            divided = combine_sizes("floordiv", value, self._argument(node.args[1]))
            return self.visit_unknown(node) if divided is None else divided
        if isinstance(value, Axis):
            sizes = axis_sizes(value)
            at = node.args[1] if node.target == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            return sizes if at is None or sizes is None else pick_item(sizes, normalise_dim(at, value.ndim))
        return None

    def visit_reduction(self, node: fx.Node) -> Any:
        """Drop or keep the dimensions over which a mean, sum or maximum is computed."""
        axes = all_axes(tuple(self.input_values(node)))
        if len(axes) == 2 and target_name(node) in ("max", "min"):
            return cast(Any, self).visit_arithmetic(node)
        given = arguments_of(node, "input", "dim", "keepdim")
        if not axes or len(node.all_input_nodes) > 1 or "dim" not in given:
            return self.visit_unknown(node)
        axis = self._known(node, reduce_axis(axes[0], given["dim"], keepdim=bool(given.get("keepdim"))))
        if axis is None or target_name(node) not in ("max", "min"):
            return axis
        # The maximum over one dimension comes with its positions, which no norm silences.
        return axis, replace(axis, levels=np.full(len(axis.numbers), LOUD))

    def visit_spread(self, node: fx.Node) -> Axis | None:
        """Drop or keep the dimensions over which a standard deviation or variance is computed."""
        axis = self._first(node)
        given = arguments_of(node, "input", "dim", "unbiased", "keepdim")
        if axis is None or "dim" not in given:
            return self.visit_unknown(node)
        return self._known(node, reduce_axis(axis, given["dim"], keepdim=bool(given.get("keepdim"))))

    def visit_permutation(self, node: fx.Node) -> Axis | None:
        """Put the dimensions in another order."""
        axis, args = self._axis_and_arguments(node)
        if axis is None:
            return self.visit_unknown(node)
        if args in ([], ["T"], ["mT"]):  # x.t(), x.T and x.mT
            return self._known(node, transpose_axis(axis, -2, -1) if args == ["mT"] or axis.ndim == 2 else None)
        if target_name(node) == "permute":
            args = list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else args
            return self._known(node, permute_axis(axis, args))
        if target_name(node) == "movedim":
            return self._known(node, move_axis(axis, *args) if len(args) == 2 else None)
        return self._known(node, transpose_axis(axis, *args) if len(args) == 2 else None)

    def visit_view(self, node: fx.Node) -> Axis | None:
        """Follow a view: [B, C, H, W] to [B, C * H * W], [B, C] to [B, C, 1, 1], a channel shuffle and others."""
        axis, args = self._axis_and_arguments(node)
        sizes: list[Any] = args
        sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
        if axis is None:
            return self.visit_unknown(node)
        if target_name(node) in ("view_as", "reshape_as"):
            other = axis_sizes(sizes[0]) if isinstance(sizes[0], Axis) else None
            sizes = list(other or ())
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
        if target_name(node) in ("repeat", "tile"):
            return axis if count == 1 else self.visit_unknown(node)
        if isinstance(count, Size) and count.numbers is not None and len(count.numbers) == len(axis.numbers):
            self.ties.tie_numbers(axis.numbers, count.numbers)
        elif count != -1 and len(axis.numbers) > 1:
            return self.visit_unknown(node)
        return axis
