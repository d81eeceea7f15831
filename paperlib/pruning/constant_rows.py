"""Constant planes with borders: the form in which `constants` computes what removed channels emit."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from paperlib.pruning.fx_ops import GraphWalk

FRACTION = "fractions at"
"""The beginning of the names of borders at which values are fractions of the constant."""


class RowWalk(GraphWalk):
    """Computes values of the form [R, C, 1, 1]: constants of C channels; NaN marks a channel that is not constant.

    Tensors of any shape are represented so: operations on pixels leave a constant as it is. R is 1, but for a padded
    plane: its inside and its border are two regions, the same in all channels, with a row each. A consumer that is
    right for each of them is right for the plane.

    Attributes:
        exact: whether borders have rows; otherwise only the inside counts.
        regions: the names of the borders that the rows of a value are, for values of several rows.
    """

    def __init__(self, module: nn.Module, nodes: Iterable[fx.Node], *, exact: bool) -> None:
        super().__init__(module, nodes)
        self.exact = exact
        self.regions: dict[fx.Node, tuple[str, ...]] = {}

    def visit(self, node: fx.Node) -> Any:
        """Return the constants of a node, and note which regions their rows are."""
        value = super().visit(node)
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, Tensor) and len(first) > 1 and node not in self.regions:
            read = [self.regions[source] for source in node.all_input_nodes if source in self.regions]
            self.regions[node] = read[0]
        return value

    def _input(self, node: fx.Node) -> Any:
        """Return the constants that a node reads, NaN where they differ between regions."""
        x = self._raw_input(node)
        return merge_rows(x) if isinstance(x, Tensor) else x

    def _raw_input(self, node: fx.Node) -> Any:
        """Return the constants that a node reads, with a row for each region."""
        return next(iter(self.input_values(node)), None)

    def _pointwise_input(self, node: fx.Node) -> Any:
        """Return what an operation on each value reads: a fraction of a constant does not stay the same fraction."""
        return self._aligned(node.all_input_nodes[:1])[0] if node.all_input_nodes else None

    def _aligned(self, sources: list[fx.Node], *, pointwise: bool = True) -> list[Any]:
        """Return the constants of several nodes with rows for the same regions."""
        values = [self.values[source] for source in sources]
        regions = {self.regions[source] for source in sources if source in self.regions}
        fractions = any(name.startswith(FRACTION) for names in regions for name in names)
        if len(regions) > 1 or (fractions and pointwise):
            return [merge_rows(value) if isinstance(value, Tensor) else value for value in values]
        rows = max([len(value) for value in values if isinstance(value, Tensor)], default=1)
        # Copied, because the operation may work in place.
        short = [isinstance(value, Tensor) and len(value) < rows for value in values]
        return [v.expand(rows, -1, -1, -1).clone() if s else v for v, s in zip(values, short, strict=True)]

    def _add_region(self, node: fx.Node, x: Tensor, border: Tensor, name: str) -> Tensor:
        """Return the rows of a plane with a border of other values; without `exact` only those of its inside."""
        if not self.exact or torch.equal(x, border):
            return x.clone()
        self.regions[node] = (*self.regions.get(node.all_input_nodes[0], ()), name)
        return torch.cat([x, border[:1]])


def merge_rows(x: Tensor) -> Tensor:
    """Return one row for all regions, NaN where they differ."""
    return x if len(x) == 1 else torch.where((x == x[:1]).all(0, keepdim=True), x[:1], torch.nan)
