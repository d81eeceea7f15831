"""The channel axis of a tensor, and what reshaping, permuting, reducing and indexing do to it.

An `Axis` is what the channel graph knows of a tensor. The functions here return the axis of the result, or None where
the effect is not known; the channels are then held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SILENT, CONSTANT, LOUD = range(3)


@dataclass(frozen=True)
class Axis:
    """The channel axis of one tensor.

    Attributes:
        numbers: the number of each channel.
        dim, ndim: position of the axis, and how many axes the tensor has; `ndim` is None where that is not known.
        flat: whether [B, C, H, W] has become [B, C*H*W].
        levels: what each channel still is once the norms of its number are silenced: SILENT (zero), CONSTANT, as after
            a sigmoid, or LOUD, as the output of a convolution without batch norm. A loud channel can be removed only
            if it is multiplied by a silent one. None if all are silent.
        groups: [B, C, ...] has become [B, groups, C / groups, ...].
        swapped: that has become [B, C / groups, groups, ...].
    """

    numbers: IntArray
    dim: int = 1
    ndim: int | None = 4
    flat: bool = False
    levels: IntArray | None = None
    groups: int = 1
    swapped: bool = False

    @property
    def plain(self) -> bool:
        """Tell whether the channels form one axis, each of them once."""
        return not self.flat and self.groups == 1

    def take(self, positions: Any) -> "Axis":
        """Return the axis of the channels at `positions`, an index array or slice."""
        levels = None if self.levels is None else self.levels[positions]
        return replace(self, numbers=self.numbers[positions], levels=levels)


@dataclass(frozen=True)
class Size:
    """The size of one dimension of a tensor, as traced code asks for it.

    Attributes:
        kind: `batch`, `channels` or `pixels`.
        numbers: the channels that are counted.
        divisor: the number of channels is divided by this.
    """

    kind: str
    numbers: IntArray | None = None
    divisor: int = 1


def axis_sizes(axis: Axis) -> tuple[Size, ...] | None:
    """Return the sizes of all dimensions of a tensor."""
    if axis.ndim is None or not axis.plain or axis.dim == 0:
        return None
    sizes = [Size("pixels")] * axis.ndim
    sizes[0], sizes[axis.dim] = Size("batch"), Size("channels", axis.numbers)
    return tuple(sizes)


def combine_sizes(operation: str, left: Any, right: Any) -> Size | None:
    """Return the size that an arithmetic operation computes; None if it is not one of those known here."""
    if isinstance(left, Size) and isinstance(right, int) and operation == "floordiv" and left.kind == "channels":
        whole = left.numbers is not None and right > 0 and len(left.numbers) % (left.divisor * right) == 0
        return replace(left, divisor=left.divisor * right) if whole else None
    kinds = {value.kind for value in (left, right) if isinstance(value, Size)}
    return Size("pixels") if operation == "mul" and kinds == {"pixels"} else None


def normalise_dim(dim: Any, ndim: int | None) -> int | None:
    """Return a dimension counted from the first; None if that is not known."""
    if not isinstance(dim, int) or (dim < 0 and ndim is None):
        return None
    return dim + ndim if dim < 0 and ndim is not None else dim


def permute_axis(axis: Axis, order: Sequence[Any]) -> Axis | None:
    """Return the axis after the dimensions are put in the given order."""
    dims = [normalise_dim(dim, axis.ndim) for dim in order]
    if axis.ndim is None or sorted(d for d in dims if d is not None) != list(range(axis.ndim)):
        return None
    if axis.groups > 1:
        swaps = dims == [0, 2, 1, *range(3, axis.ndim)]
        return replace(axis, swapped=not axis.swapped) if swaps else None
    return None if axis.flat else replace(axis, dim=dims.index(axis.dim))


def transpose_axis(axis: Axis, first: Any, second: Any) -> Axis | None:
    """Return the axis after two dimensions are exchanged."""
    first, second = normalise_dim(first, axis.ndim), normalise_dim(second, axis.ndim)
    if axis.ndim is None or first is None or second is None:
        return None
    order = list(range(axis.ndim))
    order[first], order[second] = order[second], order[first]
    return permute_axis(axis, order)


def move_axis(axis: Axis, source: Any, target: Any) -> Axis | None:
    """Return the axis after one dimension is moved to another place."""
    source, target = normalise_dim(source, axis.ndim), normalise_dim(target, axis.ndim)
    if axis.ndim is None or source is None or target is None:
        return None
    order = [dim for dim in range(axis.ndim) if dim != source]
    order.insert(target, source)
    return permute_axis(axis, order)


def reduce_axis(axis: Axis, dims: Any, *, keepdim: bool) -> Axis | None:
    """Return the axis after a mean, maximum or sum over the given dimensions."""
    found = [normalise_dim(dim, axis.ndim) for dim in (dims if isinstance(dims, list | tuple) else [dims])]
    if (
        not axis.plain
        or not found
        or any(dim is None or dim == axis.dim or (dim == 0 and axis.dim < 2) for dim in found)
    ):
        return None
    if keepdim:
        return axis
    before = sum(dim < axis.dim for dim in found if dim is not None)
    return replace(axis, dim=axis.dim - before, ndim=None if axis.ndim is None else axis.ndim - len(found))


def squeeze_axis(axis: Axis, dims: Any) -> Axis | None:
    """Return the axis after dimensions of size 1 are dropped; without `dims`, all that are not batch or channels."""
    if dims is None:
        return replace(axis, ndim=2) if axis.plain and axis.dim == 1 else None
    return axis if axis.ndim is None and axis.flat else reduce_axis(axis, dims, keepdim=False)


def unsqueeze_axis(axis: Axis, dim: Any) -> Axis | None:
    """Return the axis after a dimension of size 1 is inserted."""
    found = normalise_dim(dim, None if axis.ndim is None else axis.ndim + 1)
    if found is None or axis.groups > 1 or axis.ndim is None:
        return None
    return replace(axis, dim=axis.dim + (found <= axis.dim), ndim=axis.ndim + 1)


def flatten_axis(axis: Axis, start: Any, end: Any) -> Axis | None:
    """Return the axis after the dimensions from `start` to `end` are merged into one."""
    if axis.ndim is None:
        return axis if axis.flat and (start, end) == (1, -1) else None
    start, end = normalise_dim(start, axis.ndim), normalise_dim(end, axis.ndim)
    if start is None or end is None or axis.groups > 1:
        return None
    if axis.ndim == 2 and start >= 1 or start == end:
        return axis
    merged = axis.ndim - (end - start)
    if start > axis.dim:
        return None if axis.flat else replace(axis, ndim=merged)
    whole = start == axis.dim == 1 and end == axis.ndim - 1
    return replace(axis, ndim=merged, flat=True) if whole else None


def view_axis(axis: Axis, sizes: Sequence[Any]) -> Axis | None:
    """Return the axis after a view of the given sizes: numbers, or each a `Size`.

    A number in place of the channel count would be wrong once channels are removed: None then.
    """
    if axis.ndim == 1 and [size for size in sizes if size != 1] == [-1]:
        return replace(axis, dim=list(sizes).index(-1), ndim=len(sizes))
    if len(sizes) < 2 or axis.dim != 1:
        return None
    first, second, rest = sizes[0], sizes[1], list(sizes[2:])
    whole = _counts_channels(second, axis, 1)
    if not (_is_batch(first) or (first == -1 and whole)) or any(_unclear(size) for size in rest[1:]):
        return None
    if len(sizes) == 2 and second == -1:
        return axis if axis.ndim == 2 else flatten_axis(axis, 1, -1)
    inferred = second == -1 and all(size == 1 or _is_pixels(size) for size in rest)
    if axis.groups > 1 and not (whole or inferred):
        return None
    if whole or (inferred and not axis.flat):
        return None if any(_unclear(size) for size in rest) else replace(_ungroup(axis), ndim=len(sizes), flat=False)
    # [B, groups, C / groups, ...]
    if type(second) is int and second > 1 and rest and axis.plain and len(axis.numbers) % second == 0:
        inferred = rest[0] == -1 and all(size == 1 or _is_pixels(size) for size in rest[1:])
        if inferred or _counts_channels(rest[0], axis, second):
            return replace(axis, ndim=len(sizes), groups=second)
    return None


def index_parts(axis: Axis, index: Any) -> list[Any] | None:
    """Return the parts of an index, one for each dimension and for each new one; None if it is not a plain index."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if axis.ndim is None or not axis.plain or not all(_is_plain_index(part) for part in parts):
        return None
    given = sum(part is not None and part is not Ellipsis for part in parts)
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[at : at + 1] = [slice(None)] * (axis.ndim - given)
    return parts


def index_axis(axis: Axis, parts: Sequence[Any]) -> tuple[Axis, Any]:
    """Return the axis after an index (see `index_parts`), with all its channels, and what selects among these."""
    source = dim = position = 0
    chosen: Any = slice(None)
    for part in parts:
        if part is not None and source == axis.dim:
            chosen, position = part, dim
        source += part is not None
        dim += part is None or isinstance(part, slice)
    return replace(axis, dim=position, ndim=dim), chosen


def shuffled(count: int, groups: int) -> IntArray:
    """Return where each channel comes from after [groups, count / groups] is transposed and flattened."""
    return np.arange(count).reshape(groups, -1).T.ravel()


def _ungroup(axis: Axis) -> Axis:
    if axis.groups == 1:
        return axis
    order = shuffled(len(axis.numbers), axis.groups) if axis.swapped else slice(None)
    return replace(axis.take(order), groups=1, swapped=False)


def _is_batch(size: Any) -> bool:
    return isinstance(size, Size) and size.kind == "batch"


def _is_pixels(size: Any) -> bool:
    return isinstance(size, Size) and size.kind == "pixels"


def _unclear(size: Any) -> bool:
    return not (type(size) is int or _is_pixels(size))


def _counts_channels(size: Any, axis: Axis, divisor: int) -> bool:
    if not isinstance(size, Size) or size.kind != "channels" or size.numbers is None:
        return False
    return size.divisor == divisor and len(size.numbers) == len(axis.numbers)


def _is_plain_index(part: Any) -> bool:
    if isinstance(part, slice):
        return all(end is None or isinstance(end, int | Size) for end in (part.start, part.stop, part.step))
    return part is None or part is Ellipsis or isinstance(part, int | Size) and not isinstance(part, bool)
