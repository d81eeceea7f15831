"""Compensation for the constants that removed channels emitted (Section 3.1, which does not mention them).

A channel whose gamma is zero still emits act(beta), a constant plane, into the next convolution. With W the weights
of a consumer and c_k the constants of its removed inputs, it loses the convolution of a plane of ones with
sum_k c_k * W[:, k]. A consumer that is called more than once, as a head that several levels share, loses V such
kernels, one for each set of constants.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray
from paperlib.pruning.constants import find_constants, pads_with_zeros, positions_of
from paperlib.pruning.fx_ops import kernel_view

CARRIER_STRENGTH = 0.1
"""A carrier's constants are at least this fraction of the largest among the removed inputs of its consumer."""


class Compensation:
    """Lets the rest of a network emit what its removed channels emitted.

    Args:
        module: the network before its channels are removed; it is only read.
        graph: its channels.
        removed: for each channel number, whether it is to be removed.
        exact: use carriers where a bias is not enough.

    Attributes:
        removed: the channels that can be removed: those of the argument, except the carriers.

    Raises:
        ValueError: a constant cannot be compensated, with the name of the layer that loses it.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray, *, exact: bool) -> None:
        self.graph, self.modules = graph, dict(module.named_modules())
        constants = find_constants(module, graph, removed, exact=exact)
        self.consumers = _find_consumers(self.modules, graph, constants)
        by_carrier = [each for each in self.consumers if exact and self._needs_carrier(each)]
        self.lost = {}
        for each in self.consumers:
            lost = self._lost_kernels(each, removed) if each in by_carrier else self._lost_bias(each, removed)
            if lost.any():
                self.lost[each] = lost
        self.by_carrier = [each for each in by_carrier if each in self.lost]
        for each in self.lost:
            if each not in by_carrier and self._lacks_bias(each):
                raise ValueError(
                    f"{each.name} has neither batch norm nor bias to shift; use compensate='off' or 'exact'"
                )
        self.carriers = self._balance_carriers(self._choose_carriers(removed), removed)
        self.removed = removed & ~self.carriers

    def carrier_outputs(self) -> dict[str, list[int]]:
        """Return for each convolution the positions of its carriers, if any, among its outputs after pruning."""
        outputs = {name: self._carrier_positions(self.graph.layers[name].outputs) for name in self.graph.prunable}
        return {name: positions.tolist() for name, positions in outputs.items() if len(positions)}

    @torch.no_grad()
    def fill_(self, pruned: nn.Module) -> None:
        """Write the compensation into the network from which the channels at `removed` have been removed."""
        modules = dict(pruned.named_modules())
        if self.carriers.any():
            self._isolate_carriers(modules)
        for each, lost in self.lost.items():
            kept = ~self.removed[each.outputs]
            if each in self.by_carrier:
                self._fill_carrier_weights(modules, each, lost[:, positions_of(kept)])
            else:
                self._shift_bias(modules, each, lost[positions_of(kept)])

    def _isolate_carriers(self, pruned: Mapping[str, Any]) -> None:
        """Make the carriers emit only their constants, which no consumer reads yet."""
        for norm, loud in self.graph.silencing.items():
            numbers = self.graph.layers[norm].outputs
            kept = ~self.removed[numbers]
            pruned[norm].weight[positions_of((self.carriers[numbers] & loud)[kept])] = 0.0
        for each in self.consumers:
            each.kernels(pruned)[:, self._carrier_positions(each.inputs)] = 0.0

    def _carrier_positions(self, numbers: IntArray) -> Tensor:
        """Return the positions of the carriers among those of `numbers` that are kept."""
        return positions_of(self.carriers[numbers[~self.removed[numbers]]])

    def _lost_kernels(self, each: "_Consumer", removed: BoolArray) -> Tensor:
        """Return the kernels by which a consumer turned the removed constants into outputs: [V, out, *kernel]."""
        constants, kernels = each.removed_constants(removed), each.kernels(self.modules)
        flat = kernels.reshape(*kernels.shape[:2], -1)
        return (constants[:, None, None] @ flat).reshape(-1, len(kernels), *kernels.shape[2:])

    def _lost_bias(self, each: "_Consumer", removed: BoolArray) -> Tensor:
        """Return the sum of these kernels over their positions, averaged over the V sets of constants: [out]."""
        constants, kernels = each.removed_constants(removed), each.kernels(self.modules)
        flat = kernels.reshape(len(kernels), -1)
        return flat @ constants.mean(0).repeat_interleave(flat.shape[1] // constants.shape[1])

    def _choose_carriers(self, removed: BoolArray) -> BoolArray:
        """Choose few, strong removed channels, whose constants span all those that each consumer has lost."""
        spans = [_Span(each.constants, each.inputs, removed) for each in self.by_carrier]
        carriers = np.zeros_like(removed)
        while spans:
            # The channel that serves most consumers at once; among equals the one with the lowest number.
            votes = Counter(number for span in spans for number in span.strong_channels())
            best = min(votes, key=lambda number: (-votes[number], number))
            carriers[best] = True
            for span in spans:
                span.add_carrier(best)
            spans = [span for span in spans if not span.complete]
        return carriers

    def _balance_carriers(self, carriers: BoolArray, removed: BoolArray) -> BoolArray:
        """Add carriers until equally many channels are kept wherever that is needed."""
        kept, before = ~removed | carriers, None
        while before is None or (kept != before).any():
            before = kept.copy()
            for parts in self.graph.balanced:
                wanted = max(int(kept[part].sum()) for part in parts)
                for part in parts:
                    kept[part[~kept[part]][: wanted - int(kept[part].sum())]] = True
        return kept & removed

    def _needs_carrier(self, each: "_Consumer") -> bool:
        layer = self.modules[each.name]
        padded = isinstance(layer, _ConvTransposeNd) or pads_with_zeros(layer)
        return self._lacks_bias(each) or len(each.constants) > 1 or padded

    def _lacks_bias(self, each: "_Consumer") -> bool:
        return self._shifted_norm(each) is None and self.modules[each.name].bias is None

    def _shifted_norm(self, each: "_Consumer") -> str | None:
        """Return the norm after a consumer whose running mean can take up a shift, if there is one."""
        layer = self.graph.layers[each.name]
        norm = layer.norm if layer.adjacent else None
        means = norm and getattr(self.modules[norm], "running_mean", None)
        return norm if means is not None else None

    def _fill_carrier_weights(self, pruned: Mapping[str, Any], each: "_Consumer", lost: Tensor) -> None:
        """Set weights that turn the carriers' constants into all that was lost, for every set of constants."""
        constants = each.constants[:, positions_of(self.carriers[each.inputs])]
        # The least-squares solution with the smallest weights; in float64, because constants may be nearly dependent.
        solution = torch.linalg.pinv(constants.double(), rtol=_rounding_error(constants))
        kernels = each.kernels(pruned)
        weights = torch.tensordot(solution, lost.double(), 1).movedim(0, 1)
        kernels[:, self._carrier_positions(each.inputs)] = weights.to(kernels.dtype)

    def _shift_bias(self, pruned: Mapping[str, Any], each: "_Consumer", shift: Tensor) -> None:
        layer = pruned[each.name]
        norm = self._shifted_norm(each)
        if isinstance(layer, _ConvTransposeNd):
            # Each weight reaches only one in stride x stride output positions.
            shift = shift / prod(layer.stride)
        values: Any = layer.bias if norm is None else pruned[norm].running_mean
        own = values.unflatten(0, (getattr(layer, "groups", 1), -1))[each.group]
        own.add_(shift, alpha=1 if norm is None else -1)


@dataclass(frozen=True, eq=False)
class _Consumer:
    """A layer that has lost inputs, or one group of a grouped convolution.

    Attributes:
        name: name of the layer.
        group: index of the group.
        inputs, outputs: the channel numbers that it reads and writes.
        constants: [V, in], the constant of each input, for V calls that differ.
    """

    name: str
    group: int
    inputs: IntArray
    outputs: IntArray
    constants: Tensor

    def kernels(self, modules: Mapping[str, nn.Module]) -> Tensor:
        """Return its weights in a network, before or after pruning, as a view [out, in, *kernel]."""
        return kernel_view(modules[self.name], self.group)

    def removed_constants(self, removed: BoolArray) -> Tensor:
        """Return the constant of each input, 0 for an input that is kept: [V, in]."""
        mask = torch.from_numpy(removed[self.inputs]).to(self.constants.device)
        return torch.where(mask, self.constants, 0.0)


def _find_consumers(
    modules: Mapping[str, nn.Module], graph: ChannelGraph, constants: Mapping[str, Tensor]
) -> list[_Consumer]:
    """Return the layers that read constants, each group of a convolution by itself."""
    found = []
    for name, values in constants.items():
        layer, count = graph.layers[name], getattr(modules[name], "groups", 1)
        groups = zip(
            np.split(layer.inputs, count), np.split(layer.outputs, count), values.chunk(count, dim=1), strict=True
        )
        found += [_Consumer(name, group, *parts) for group, parts in enumerate(groups)]
    return found


class _Span:
    """The constants [V, n] of a consumer's removed inputs, minus the part that the chosen carriers can replace."""

    def __init__(self, constants: Tensor, inputs: IntArray, removed: BoolArray) -> None:
        positions = np.flatnonzero(removed[inputs])
        self.numbers = inputs[positions]
        self.rest = constants[:, positions].double().cpu()
        self.negligible = _rounding_error(constants) * float(self.rest.norm(dim=0).max())

    @property
    def complete(self) -> bool:
        return float(self.rest.norm(dim=0).max()) <= self.negligible

    def strong_channels(self) -> set[int]:
        """Return the channels with large constants: as carriers they need only small weights."""
        strength = self.rest.norm(dim=0)
        return set(self.numbers[(strength >= CARRIER_STRENGTH * strength.max()).numpy()].tolist())

    def add_carrier(self, number: int) -> None:
        """Make the channel of that number a carrier, if it is a strong one."""
        if number in self.strong_channels():
            columns = self.rest[:, np.flatnonzero(self.numbers == number)]
            strongest = columns[:, columns.norm(dim=0).argmax()]
            direction = strongest / strongest.norm()
            self.rest = self.rest - torch.outer(direction, direction @ self.rest)


def _rounding_error(like: Tensor) -> float:
    """Return a ratio so small that rounding alone may cause it."""
    return 10 * torch.finfo(like.dtype).eps
