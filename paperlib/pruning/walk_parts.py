"""The part of the walk that takes tensors apart, joins them, and rearranges their channels."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import fx
from torch.fx.node import map_aggregate

from paperlib.pruning.axes import (
    Axis,
    IntArray,
    Size,
    index_axis,
    index_parts,
    normalise_dim,
    reduce_axis,
    shuffled,
    unsqueeze_axis,
)
from paperlib.pruning.code_sizes import CodeSize
from paperlib.pruning.fx_ops import arguments_of, describe_target, joins_channels, target_name
from paperlib.pruning.walk_base import Hold, WalkBase, level_array, pick_item

_FACTORS = ("upscale_factor", "downscale_factor", "groups")


class PartWalk(WalkBase):
    """Visits the operations that make tensors out of parts of others."""

    def visit_item(self, node: fx.Node) -> Any:
        """Return one part of a tuple, or the axis of a slice."""
        value, index = self._argument(node.args[0]), map_aggregate(node.args[1], self._index_value)
        if isinstance(value, tuple) and isinstance(index, int | slice):
            return pick_item(value, index)
        parts = index_parts(value, index) if isinstance(value, Axis) else None
        if parts is None or not isinstance(value, Axis):
            return self.visit_unknown(node)
        axis, chosen = index_axis(value, parts)
        return axis if chosen == slice(None) else self._choose_channels(node, axis, chosen)

    def visit_named_part(self, node: fx.Node) -> Any:
        """Return the values of a maximum over one dimension."""
        value = self._argument(node.args[0])
        return value[0] if isinstance(value, tuple) else self.visit_unknown(node)

    def _index_value(self, leaf: Any) -> Any:
        """Return what stands for a part of an index, where None has a meaning of its own."""
        value = self.values[leaf] if isinstance(leaf, fx.Node) else leaf
        return Size("opaque") if isinstance(leaf, fx.Node) and value is None else value

    def visit_narrow(self, node: fx.Node) -> Axis | None:
        """Follow `narrow`, a slice that is given by its start and length."""
        axis, args = self._axis_and_arguments(node)
        dim = normalise_dim(args[0], axis.ndim) if axis is not None and axis.plain and len(args) == 3 else None
        if axis is None or dim is None:
            return self.visit_unknown(node)
        if dim != axis.dim:
            return axis
        start, length = args[1:]
        if start == 0 and length is not None:
            return self._choose_channels(node, axis, slice(0, length))
        if isinstance(start, int) and isinstance(length, int) and start > 0:
            return self._choose_channels(node, axis, slice(start, start + length))
        return self.visit_unknown(node)

    def _choose_channels(self, node: fx.Node, axis: Axis, chosen: Any) -> Axis | None:
        """Return some of the channels of a tensor, as an index or a slice chooses them.

        A bound that is a number holds the channels between it and the end from which it is counted: without one of
        them the code would choose others. `x.shape[1] // 2` holds nothing, but both halves keep equally many.
        """
        count = len(axis.numbers)
        if isinstance(chosen, int):
            self._hold_up_to(node, axis, chosen if chosen < 0 else chosen + 1)
            return None
        if not isinstance(chosen, slice):
            return self.visit_unknown(node)
        start, stop = self._bound(node, axis, chosen.start, 0), self._bound(node, axis, chosen.stop, count)
        step = 1 if chosen.step is None else chosen.step
        positions = np.arange(count)[start : stop : step if isinstance(step, int) else 1]
        if start is None or stop is None or not isinstance(step, int) or len(positions) == 0:
            return self.visit_unknown(node)
        # A group of one part: of that one channel at least must be kept, so that the slice does not become empty.
        self.balanced.append([axis.numbers[positions]])
        self._tie_strides(node, axis, int(positions[0]), step)
        self.moves[node] = positions
        return axis.take(positions)

    def _bound(self, node: fx.Node, axis: Axis, given: Any, end: int) -> int | None:
        """Return the position of a bound of a slice, and hold or balance what that needs; None if it is not known."""
        if given is None or (isinstance(given, int) and given == end and not isinstance(given, CodeSize)):
            return end
        if isinstance(given, CodeSize) and 0 < given <= len(axis.numbers):
            self._use_size(node, given, axis.numbers[: given.plain])
            return given.plain
        if isinstance(given, int):
            self._hold_up_to(node, axis, given)
            return given if given >= 0 else max(len(axis.numbers) + given, 0)
        if isinstance(given, Size) and _counts(given, axis):
            self.balanced.append(np.split(axis.numbers, given.divisor))
            return len(axis.numbers) // given.divisor
        return None

    def _hold_up_to(self, node: fx.Node, axis: Axis, bound: int) -> None:
        """Hold the channels before a bound, or from it on if it is counted from the end."""
        held = axis.numbers[bound:] if bound < 0 else axis.numbers[:bound]
        self.holds.append(Hold(held, f"a slice at {node.name}"))

    def _tie_strides(self, node: fx.Node, axis: Axis, start: int, step: int) -> None:
        """Tie every `step` channels that follow each other: with all of them gone, the others keep their turn."""
        if step > 1:
            whole = start + (len(axis.numbers) - start) // step * step
            self._tie_parts(list(axis.numbers[start:whole].reshape(-1, step).T))
            # Those after the last whole turn, which would begin a new one if others went.
            self.holds.append(Hold(axis.numbers[whole:], f"a slice at {node.name}"))

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

    def _move(self, node: fx.Node, axis: Axis, positions: IntArray) -> Axis:
        self.moves[node] = positions
        return axis.take(positions)

    def visit_parts(self, node: fx.Node) -> Any:
        """Follow `chunk`, of whose parts equally many channels must be kept, and parts of pixels."""
        axis, args = self._axis_and_arguments(node)
        if (sizes := self._code_sizes(node, axis)) is not None and axis is not None:
            return self._split_by_code(node, axis, sizes)
        given = {"dim": 0, **node.kwargs, **dict(zip(("count", "dim"), args, strict=False))}
        first = given.get("count", given.get("chunks", given.get("split_size_or_sections", given.get("split_size"))))
        dim = normalise_dim(given["dim"], axis.ndim) if axis is not None and axis.plain else None
        if axis is not None and dim not in (None, axis.dim) and isinstance(first, list | tuple):
            self.moves[node] = (np.arange(len(axis.numbers)),) * len(first)
            return (axis,) * len(first)
        count = self._part_count(node, axis, first)
        if axis is None or count is None or not axis.plain:
            return self.visit_unknown(node)
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

    def _code_sizes(self, node: fx.Node, axis: Axis | None) -> list[CodeSize] | None:
        """Return the sizes of a split of channels if all of them are numbers in the code that may change."""
        raw = arguments_of(node, "input", "split_size_or_sections", "dim")
        given = raw.get("split_size_or_sections", raw.get("split_size"))
        if axis is None or not axis.plain or normalise_dim(raw.get("dim", 0), axis.ndim) != axis.dim:
            return None
        count = len(axis.numbers)
        if isinstance(given, CodeSize) and given > 0 and count % given.plain == 0 and target_name(node) == "split":
            return [given] * (count // given.plain)
        sizes = list(given) if isinstance(given, list | tuple) else []
        whole = sizes and all(isinstance(size, CodeSize) for size in sizes)
        return sizes if whole and sum(size.plain for size in sizes) == count else None

    def _split_by_code(self, node: fx.Node, axis: Axis, sizes: list[CodeSize]) -> tuple[Axis, ...]:
        positions = np.split(np.arange(len(axis.numbers)), np.cumsum([size.plain for size in sizes])[:-1])
        self.moves[node] = tuple(positions)
        for size, part in zip(sizes, positions, strict=True):
            self._use_size(node, size, axis.numbers[part])
        return tuple(axis.take(part) for part in positions)

    def _part_count(self, node: fx.Node, axis: Axis | None, given: Any) -> int | None:
        """Return into how many equal parts a tensor is divided; None if the sizes are numbers in the code."""
        if target_name(node) in ("chunk", "tensor_split"):
            return given if isinstance(given, int) else None
        size = node.kwargs.get("split_size", node.kwargs.get("split_size_or_sections", given))
        if isinstance(size, Size) and axis is not None and size.numbers is not None:
            if not _counts(size, axis):  # those of a tensor that has as many channels, and must go on to do so
                self.balanced.append([size.numbers, axis.numbers])
            return size.divisor if len(size.numbers) == len(axis.numbers) else None
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
            return self._tie_tensors(node, parts)
        levels = None
        if any(part.levels is not None for part in parts):
            levels = np.concatenate([level_array(part) for part in parts])
        return replace(first, numbers=np.concatenate([part.numbers for part in parts]), levels=levels)

    def _tie_tensors(self, node: fx.Node, parts: list[Axis]) -> Axis | None:
        """Tie the channels of tensors that are joined along another axis, such as that of pixels."""
        if len({len(part.numbers) for part in parts}) > 1:
            return self.visit_unknown(node)
        self._tie_parts([part.numbers for part in parts])
        self.moves[node] = np.arange(len(parts[0].numbers))
        return replace(parts[0], levels=np.max([level_array(part) for part in parts], axis=0))

    def visit_stack(self, node: fx.Node) -> Axis | None:
        """Tie the channels of tensors that are stacked along a new axis."""
        given = {"dim": 0, **arguments_of(node, "tensors", "dim")}
        tensors: Any = given["tensors"]
        parts = [self._argument(tensor) for tensor in tensors] if isinstance(tensors, list | tuple) else []
        if not parts or not all(isinstance(part, Axis) and part.plain for part in parts):
            return self.visit_unknown(node)
        if any((part.dim, part.ndim) != (parts[0].dim, parts[0].ndim) for part in parts):
            return self.visit_unknown(node)
        axis = self._tie_tensors(node, parts)
        return axis and self._known(node, unsqueeze_axis(axis, given["dim"]))

    def visit_unbind(self, node: fx.Node) -> Any:
        """Follow the parts of a tensor along an axis of known size that is not that of channels."""
        axis, args = self._axis_and_arguments(node)
        found = axis and reduce_axis(axis, args[0] if args else 0, keepdim=False)
        if found is None or "value" not in node.meta:
            return self.visit_unknown(node)
        return (found,) * len(node.meta["value"])


def _counts(size: Size, axis: Axis) -> bool:
    """Tell whether a size counts the channels of an axis."""
    return size.numbers is not None and np.array_equal(size.numbers, axis.numbers)
