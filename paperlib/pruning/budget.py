"""The cost of a network after its channels are removed, and how many must be removed to reach a target.

Computed on the channel graph: no plan has to be carried out to learn its cost.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from paperlib.costs import Cost, make_cost
from paperlib.pairs import partner_layers
from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray


class CostModel:
    """The cost of `module` for any set of removed channels; partners (BPL) do not count, as in `paperlib.costs.cost`.

    Compensation may add to it when a plan is carried out: a carrier per consumer, a shift per removed block.

    Args:
        module: the network, its blocks removed already.
        graph: its channels.
        positions: how often each kernel is applied in one pass, by layer (`paperlib.costs.kernel_positions`).
        image_size: side of the square image for which `positions` are counted, in pixels.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph, positions: Mapping[str, int], image_size: int) -> None:
        self.graph = graph
        self.image_size = image_size
        self.inputs, self.input_starts = _concatenate([layer.inputs for layer in graph.layers.values()])
        self.outputs, self.output_starts = _concatenate([layer.outputs for layer in graph.layers.values()])
        # Fusion takes partners out, so the network that is left does not have their cost.
        partners = partner_layers(module)
        modules = dict(module.named_modules())
        unit_costs = [
            (0, 0, 0, 0) if name in partners else _unit_costs(modules[name], layer.kind)
            for name, layer in graph.layers.items()
        ]
        self.per_pair, self.per_output, self.extras, self.statistics = np.array(unit_costs, dtype=np.int64).T
        groups = [getattr(modules[name], "groups", 1) for name in graph.layers]
        self.groups = np.where(self.per_pair > 0, groups, 1)
        self.positions = np.array([positions.get(name, 0) for name in graph.layers], dtype=np.int64)
        # Layers outside the channel graph never change: their cost is a constant.
        others = {name: m for name, m in modules.items() if name not in graph.layers and name not in partners}
        learned = [each.numbers for each in graph.parameters.values() if isinstance(each.tensor, nn.Parameter)]
        self.own_numbers = np.concatenate([np.empty(0, dtype=np.int64), *learned])
        self.other_parameters = sum(p.numel() for m in others.values() for p in m.parameters(recurse=False))
        self.other_statistics = sum(2 * m.num_features for m in others.values() if isinstance(m, _BatchNorm))
        weights = {name: others[name].get_parameter("weight").numel() for name in others if name in positions}
        self.other_macs = sum(count * positions[name] for name, count in weights.items())

    def total_cost(self, removed: BoolArray) -> Cost:
        """Return the cost without the channel numbers at `removed`."""
        weights, parameters, statistics = self._count_values(removed)
        return make_cost(
            int(parameters.sum()) + self.other_parameters - int(removed[self.own_numbers].sum()),
            int(statistics.sum()) + self.other_statistics,
            int(weights @ self.positions) + self.other_macs,
            self.image_size,
        )

    def layer_costs(self, removed: BoolArray) -> dict[str, tuple[int, int]]:
        """Return parameters and multiply-accumulates of each layer.

        The parameters of a convolution include those of its batch norm.
        """
        weights, parameters, _ = self._count_values(removed)
        own = dict(zip(self.graph.layers, parameters.tolist(), strict=True))
        macs = (weights * self.positions).tolist()
        return {
            name: (own[name] + (own[layer.norm] if layer.norm else 0), layer_macs)
            for (name, layer), layer_macs in zip(self.graph.layers.items(), macs, strict=True)
        }

    def _count_values(self, removed: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
        """Count per layer the values of its weight, of all its parameters, and of its running statistics."""
        # Sums over the segment of each layer in the concatenated arrays.
        inputs = np.add.reduceat(~removed[self.inputs], self.input_starts, dtype=np.int64)
        outputs = np.add.reduceat(~removed[self.outputs], self.output_starts, dtype=np.int64)
        weights = inputs * outputs * self.per_pair // self.groups + outputs * self.per_output
        return weights, weights + outputs * self.extras, outputs * self.statistics


def fewest_candidates(cost: Callable[[int], float], target: float, most: int, name: str) -> int:
    """Return the least number of candidates for removal, at most `most`, whose plan costs no more than `target`.

    Found by bisection: one candidate fewer does not meet the target.

    Args:
        cost: computes the cost of the plan for a number of candidates, in units of `target`.
        target: the highest acceptable cost.
        most: the largest number of candidates.
        name: the name of the target, for the message.

    Raises:
        ValueError: not even `most` candidates are enough; the smallest cost is named.
    """
    found = bisect_left(range(most + 1), True, key=lambda candidates: cost(candidates) <= target)
    if found > most:
        raise ValueError(f"{name} {target:g} cannot be reached; the smallest is {cost(most):.4g}")
    return found


def _concatenate(parts: list[IntArray]) -> tuple[IntArray, IntArray]:
    """Return the parts in one array, and the index at which each of them starts."""
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])


def _unit_costs(layer: nn.Module, kind: str) -> tuple[int, int, int, int]:
    """Return four counts of values of a layer.

    Of the weight per pair of input and output, of the weight per output, of other parameters per output, and of
    running statistics per output.
    """
    bias = int(getattr(layer, "bias", None) is not None)
    match layer:
        case _ConvNd():
            if kind == "depthwise":
                return 0, layer.in_channels // layer.groups * prod(layer.kernel_size), bias, 0
            return prod(layer.kernel_size), 0, bias, 0
        case nn.Linear():
            return 1, 0, bias, 0
    return {"norm": (0, 0, 2, 2), "group_norm": (0, 0, 2, 0), "bypass": (0, 0, 1, 0), "slope": (0, 0, 1, 0)}.get(
        kind, (0, 0, 0, 0)
    )
