"""Numbers of channels that traced code reads from attributes, such as `self.width` in `torch.split(x, self.width, 1)`.

While a network is traced, the whole numbers among its modules' attributes are replaced by marked ones that remember
where they stand. A size that splits or slices channels, and does nothing else, can then change with them.
"""

from typing import Any, NamedTuple

from torch import nn

from paperlib.structure import MODULE_FIELDS, set_code_sizes


class Place(NamedTuple):
    """Where a number stands: the attribute of a module, or an item of a list or tuple there."""

    module: str
    attribute: str
    item: int | None = None


class CodeSize(int):
    """A whole number that remembers its place, and what it has been divided by since.

    Attributes:
        place: where it stands.
        divisor: the number there is this many times as large.
        computed_with: places of numbers that took part in any other arithmetic; they must not change.
    """

    place: Place
    divisor: int
    computed_with: set[Place]

    def __new__(cls, value: int, place: Place, computed_with: set[Place], divisor: int = 1) -> "CodeSize":
        """Mark a number."""
        size = super().__new__(cls, value)
        size.place, size.divisor, size.computed_with = place, divisor, computed_with
        return size

    @property
    def plain(self) -> int:
        """Return the number without its mark."""
        return int.__add__(self, 0)

    def __floordiv__(self, other: Any) -> Any:
        """Keep the mark if nothing remains; a marked divisor, such as a number of parts, must not change."""
        if type(other) is CodeSize:
            self.computed_with.add(other.place)
            other = other.plain
        if type(other) is int and other > 0 and self.plain % other == 0:
            return CodeSize(self.plain // other, self.place, self.computed_with, self.divisor * other)
        return self._compute("__floordiv__", other)

    def _compute(self, operation: str, *others: Any) -> Any:
        self.computed_with.add(self.place)
        if not all(type(other) in (int, float, bool, CodeSize) for other in others):
            return NotImplemented  # a stand-in for a size records it
        return getattr(int, operation)(self.plain, *others)


def _computing(operation: str) -> Any:
    def compute(self: CodeSize, *others: Any) -> Any:
        return self._compute(operation, *others)

    return compute


for _name in ("add", "sub", "mul", "mod", "pow", "truediv", "divmod", "lshift", "rshift"):
    for _operation in (f"__{_name}__", f"__r{_name}__"):
        setattr(CodeSize, _operation, _computing(_operation))
for _operation in ("__rfloordiv__", "__neg__", "__int__", "__float__"):
    setattr(CodeSize, _operation, _computing(_operation))


def mark_sizes(traced: nn.Module, name: str, computed_with: set[Place]) -> None:
    """Mark the whole numbers among the attributes of a module that will be traced, in place."""
    for attribute, value in vars(traced).items():
        if attribute in MODULE_FIELDS:
            continue
        if type(value) is int:
            vars(traced)[attribute] = CodeSize(value, Place(name, attribute), computed_with)
        elif type(value) in (list, tuple) and value and all(type(item) is int for item in value):
            items = [CodeSize(item, Place(name, attribute, i), computed_with) for i, item in enumerate(value)]
            vars(traced)[attribute] = type(value)(items)


def write_sizes(network: nn.Module, sizes: dict[Place, int]) -> None:
    """Give the attributes of a network the numbers that its code needs after pruning."""
    by_module: dict[str, dict[str, Any]] = {}
    for place, size in sizes.items():
        values = by_module.setdefault(place.module, {})
        if place.item is None:
            values[place.attribute] = size
        else:
            items = values.setdefault(
                place.attribute, list(getattr(network.get_submodule(place.module), place.attribute))
            )
            items[place.item] = size
    for name, values in by_module.items():
        set_code_sizes(network.get_submodule(name), values)
