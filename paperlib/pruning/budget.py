"""What a network costs once channels are gone, and how many must go for it to fit a target.

By arithmetic on the channel graph: no plan is carried out to learn its size.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from torch import nn

from paperlib.costs import Cost, make_cost
from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray


class CostModel:
    """The cost of `module` for any set of removed channels.

    Compensation may add to it when a plan is carried out: a carrier a consumer, a shift a removed block.

    Args:
        module: the network, its blocks removed already.
        graph: its channels.
        places: how often each weight is used in one pass, by layer (`paperlib.costs.kernel_positions`).
        image_size: side of the square image that `places` are for, in pixels.
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph, places: Mapping[str, int], image_size: int) -> None:
        self.graph, self.image_size = graph, image_size
        self.inputs, self.input_starts = _joined([layer.inputs for layer in graph.layers.values()])
        self.outputs, self.output_starts = _joined([layer.outputs for layer in graph.layers.values()])
        prices = [_prices(module.get_submodule(name), layer.kind) for name, layer in graph.layers.items()]
        self.per_pair, self.per_output, self.extras, self.statistics = np.array(prices, dtype=np.int64).T
        self.places = np.array([places.get(name, 0) for name in graph.layers], dtype=np.int64)
        followed = {id(module.get_submodule(name)) for name in graph.layers}
        others = {name: m for name, m in module.named_modules() if id(m) not in followed}
        self.other_parameters = sum(p.numel() for m in others.values() for p in m.parameters(recurse=False))
        self.other_statistics = sum(2 * m.num_features for m in others.values() if isinstance(m, nn.BatchNorm2d))
        self.other_macs = sum(m.weight.numel() * places[name] for name, m in others.items() if name in places)

    def of(self, removed: BoolArray) -> Cost:
        """The cost without the channel numbers at `removed`."""
        weights, parameters, statistics = self._amounts(removed)
        return make_cost(
            int(parameters.sum()) + self.other_parameters,
            int(statistics.sum()) + self.other_statistics,
            int(weights @ self.places) + self.other_macs,
            self.image_size,
        )

    def by_layer(self, removed: BoolArray) -> dict[str, tuple[int, int]]:
        """Parameters and multiply-accumulates of each layer; a convolution's with those of its batch norm."""
        weights, parameters, _ = self._amounts(removed)
        own = dict(zip(self.graph.layers, parameters.tolist(), strict=True))
        macs = (weights * self.places).tolist()
        return {
            name: (own[name] + own.get(layer.norm, 0), spent)
            for (name, layer), spent in zip(self.graph.layers.items(), macs, strict=True)
        }

    def _amounts(self, removed: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
        """Per layer: values of its weight, of all its parameters, and of its running statistics."""
        inputs = np.add.reduceat(~removed[self.inputs], self.input_starts, dtype=np.int64)
        outputs = np.add.reduceat(~removed[self.outputs], self.output_starts, dtype=np.int64)
        weights = inputs * outputs * self.per_pair + outputs * self.per_output
        return weights, weights + outputs * self.extras, outputs * self.statistics


def fewest_candidates(cost: Callable[[int], float], target: float, most: int, what: str) -> int:
    """The least number of candidates for removal, `most` at most, whose plan costs no more than `target`.

    Found by bisection: one candidate fewer does not fit.

    Args:
        cost: what the plan for so many candidates costs, in units of `target`.
        target: what it may cost.
        most: the largest number of candidates.
        what: the name of the target, for the message.

    Raises:
        ValueError: not even `most` candidates are enough; the smallest cost is named.
    """
    found = bisect_left(range(most + 1), True, key=lambda candidates: cost(candidates) <= target)
    if found > most:
        raise ValueError(f"{what} {target:g} cannot be reached; the smallest is {cost(most):.4g}")
    return found


def _joined(parts: list[IntArray]) -> tuple[IntArray, IntArray]:
    """The parts in one array, and where each of them starts."""
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])


def _prices(layer: nn.Module, kind: str) -> tuple[int, int, int, int]:
    """Values of the weight per pair of input and output and per output; other parameters and statistics per output."""
    match kind:
        case "conv":
            return prod(layer.kernel_size), 0, int(layer.bias is not None), 0
        case "depthwise":
            return 0, prod(layer.kernel_size), int(layer.bias is not None), 0
        case "linear":
            return 1, 0, int(layer.bias is not None), 0
        case "norm":
            return 0, 0, 2, 2
        case "bypass":
            return 0, 0, 1, 0
    return 0, 0, 0, 0
