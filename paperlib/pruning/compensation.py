"""Compensation for the constants that removed channels emitted (Section 3.1, which does not mention them).

A channel whose gamma is zero still emits act(beta), a constant plane, into the next convolution. With W the weights
of a consumer and c_k the constants of its removed inputs, it loses the convolution of a plane of ones with
sum_k c_k * W[:, k]. A consumer that is called more than once, as a head that several levels share, loses V such
kernels, one for each set of constants.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray
from paperlib.pruning.fx_ops import GraphWalk, execute_node, kernel_view, target_name

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
        self.module, self.graph = module, graph
        self.constants = _ConstantWalk(module, graph, removed).find_constants()
        by_carrier = [name for name in self.constants if exact and self._needs_carrier(name)]
        self.lost = {}
        for name in self.constants:
            lost = self._lost_kernels(name, removed) if name in by_carrier else self._lost_bias(name, removed)
            if lost.any():
                self.lost[name] = lost
        self.by_carrier = [name for name in by_carrier if name in self.lost]
        for name in self.lost:
            if name not in by_carrier and self._lacks_bias(name):
                raise ValueError(f"{name} has neither batch norm nor bias to shift; use compensate='off' or 'exact'")
        self.carriers = self._choose_carriers(removed)
        self.removed = removed & ~self.carriers

    def carrier_outputs(self) -> dict[str, list[int]]:
        """Return for each convolution the positions of its carriers, if any, among its outputs after pruning."""
        outputs = {name: self._carrier_positions(self.graph.layers[name].outputs) for name in self.graph.prunable}
        return {name: positions.tolist() for name, positions in outputs.items() if len(positions)}

    @torch.no_grad()
    def fill_(self, pruned: nn.Module) -> None:
        """Write the compensation into the network from which the channels at `removed` have been removed."""
        if self.carriers.any():
            self._isolate_carriers(pruned)
        for name, lost in self.lost.items():
            outputs = _positions(~self.removed[self.graph.layers[name].outputs])
            if name in self.by_carrier:
                self._fill_carrier_weights(pruned, name, lost[:, outputs])
            else:
                self._shift_bias(pruned, name, lost[outputs])

    def _isolate_carriers(self, pruned: nn.Module) -> None:
        """Make the carriers emit only their constants, which no consumer reads yet."""
        for name, norm in self.graph.prunable.items():
            carriers = self._carrier_positions(self.graph.layers[name].outputs)
            pruned.get_parameter(f"{norm}.weight")[carriers] = 0.0
        for name in self.constants:
            kernel_view(pruned, name)[:, self._carrier_positions(self.graph.layers[name].inputs)] = 0.0

    def _carrier_positions(self, numbers: IntArray) -> Tensor:
        """Return the positions of the carriers among those of `numbers` that are kept."""
        return _positions(self.carriers[numbers[~self.removed[numbers]]])

    def _removed_constants(self, name: str, removed: BoolArray) -> Tensor:
        """Return the constant of each input, 0 for an input that is kept: [V, in]."""
        constants = self.constants[name]
        mask = torch.from_numpy(removed[self.graph.layers[name].inputs]).to(constants.device)
        return torch.where(mask, constants, 0.0)

    def _lost_kernels(self, name: str, removed: BoolArray) -> Tensor:
        """Return the kernels by which a consumer turned the removed constants into outputs: [V, out, *kernel]."""
        constants = self._removed_constants(name, removed)
        kernels = kernel_view(self.module, name)
        flat = kernels.reshape(*kernels.shape[:2], -1)
        return (constants[:, None, None] @ flat).reshape(-1, len(kernels), *kernels.shape[2:])

    def _lost_bias(self, name: str, removed: BoolArray) -> Tensor:
        """Return the sum of these kernels over their positions, averaged over the V sets of constants: [out]."""
        constants = self._removed_constants(name, removed)
        kernels = kernel_view(self.module, name)
        flat = kernels.reshape(len(kernels), -1)
        return flat @ constants.mean(0).repeat_interleave(flat.shape[1] // constants.shape[1])

    def _choose_carriers(self, removed: BoolArray) -> BoolArray:
        """Choose few, strong removed channels, whose constants span all those that each consumer has lost."""
        spans = {name: _Span(self.constants[name], self.graph.layers[name].inputs, removed) for name in self.by_carrier}
        carriers = np.zeros_like(removed)
        while spans:
            # The channel that serves most consumers at once; among equals the one with the lowest number.
            votes = Counter(number for span in spans.values() for number in span.strong_channels())
            best = min(votes, key=lambda number: (-votes[number], number))
            carriers[best] = True
            for span in spans.values():
                span.add_carrier(best)
            spans = {name: span for name, span in spans.items() if not span.complete}
        return carriers

    def _needs_carrier(self, name: str) -> bool:
        consumer = self.module.get_submodule(name)
        several = len(self.constants[name]) > 1
        padded = isinstance(consumer, nn.ConvTranspose2d) or _pads_with_zeros(consumer)
        return self._lacks_bias(name) or several or padded

    def _lacks_bias(self, name: str) -> bool:
        return self.graph.layers[name].norm is None and self.module.get_submodule(name).bias is None

    def _fill_carrier_weights(self, pruned: nn.Module, name: str, lost: Tensor) -> None:
        """Set weights that turn the carriers' constants into all that was lost, for every set of constants."""
        inputs = self.graph.layers[name].inputs
        constants = self.constants[name][:, _positions(self.carriers[inputs])]
        # The least-squares solution with the smallest weights; in float64, because constants may be nearly dependent.
        solution = torch.linalg.pinv(constants.double(), rtol=_rounding_error(constants))
        kernels = kernel_view(pruned, name)
        weights = torch.tensordot(solution, lost.double(), 1).movedim(0, 1)
        kernels[:, self._carrier_positions(inputs)] = weights.to(kernels.dtype)

    def _shift_bias(self, pruned: nn.Module, name: str, shift: Tensor) -> None:
        consumer = pruned.get_submodule(name)
        norm = self.graph.layers[name].norm
        if isinstance(consumer, nn.ConvTranspose2d):
            # Each weight reaches only one in stride x stride output positions.
            shift = shift / (consumer.stride[0] * consumer.stride[1])
        if norm is None:
            pruned.get_parameter(f"{name}.bias").add_(shift)
        else:
            pruned.get_buffer(f"{norm}.running_mean").sub_(shift)


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


class _ConstantWalk(GraphWalk):
    """Computes what removed channels emit, as [1, C, 1, 1] vectors; NaN marks a channel that is not constant."""

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> None:
        super().__init__(module, graph.recorded)
        self.graph, self.removed = graph, removed
        self.norms = set(graph.prunable.values())
        self.seen: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def find_constants(self) -> dict[str, Tensor]:
        """Return per consumer with removed inputs the constant at each input, [V, in], for V calls that differ.

        Raises:
            ValueError: a removed channel is not constant where it is consumed.
        """
        self.visit_all(self.graph.opaque)
        return {name: torch.stack(constants) for name, constants in self.seen.items()}

    def _record_constants(self, node: fx.Node, x: Tensor | None) -> None:
        name = target_name(node)
        removed = _positions(self.removed[self.graph.layers[name].inputs])
        if x is None or len(removed) == 0:
            return
        constants = x.flatten()
        if constants[removed].isnan().any():
            raise ValueError(
                f"{name}: a removed channel does not reach it as a constant (zero padding in a depthwise "
                "convolution or an average pooling on the way); use compensate='off'"
            )
        known = self.seen.setdefault(name, [])
        if not any(torch.equal(other[removed], constants[removed]) for other in known):
            known.append(constants)

    def visit_conv(self, node: fx.Node) -> Tensor:
        conv = self.module_of(node)
        self._record_constants(node, self.input_values(node)[0])
        return _varying(conv.weight, conv.out_channels)

    def visit_linear(self, node: fx.Node) -> Tensor:
        linear, x = self.module_of(node), self.input_values(node)[0]
        if x is not None:
            self._record_constants(node, x.repeat_interleave(linear.in_features // x.shape[1], dim=1))
        return _varying(linear.weight, linear.out_features).flatten(1)

    def visit_depthwise(self, node: fx.Node) -> Tensor:
        conv, x = self.module_of(node), self.input_values(node)[0]
        if x is None:
            return _varying(conv.weight, conv.out_channels)
        gain = conv.weight.flatten(1).sum(1).reshape(1, -1, 1, 1)
        bias = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
        # Padding changes the border of a plane, unless the plane is zero too.
        uneven = _pads_with_zeros(conv) or isinstance(conv, nn.ConvTranspose2d)
        return torch.where((x != 0) & uneven, torch.nan, x * gain) + bias

    def visit_norm(self, node: fx.Node) -> Tensor:
        norm, x = self.module_of(node), self.input_values(node)[0]
        if x is None:
            return _varying(norm.weight, norm.num_features)
        out = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        name = target_name(node)
        if name in self.norms:
            # The gamma of a removed channel counts as zero, so that its input does not matter.
            removed = _positions(self.removed[self.graph.layers[name].outputs])
            out[0, removed, 0, 0] = norm.bias[removed]
        return out

    def visit_activation(self, node: fx.Node) -> Tensor | None:
        x = self.input_values(node)[0]
        if x is None:
            return None
        varying = x.isnan()  # before the activation, which may work in place
        return self._execute(node).masked_fill_(varying, torch.nan)

    visit_bypass = visit_activation

    def visit_pass_through(self, node: fx.Node) -> Tensor | None:
        x = self.input_values(node)[0]
        pool = self.modules.get(target_name(node))
        if x is not None and isinstance(pool, nn.AvgPool2d) and pool.padding and pool.count_include_pad:
            return torch.where(x != 0, torch.nan, x)
        return None if x is None else x.clone()

    def visit_flatten(self, node: fx.Node) -> Tensor | None:
        x = self.input_values(node)[0]
        return None if x is None else x.flatten(1)

    def visit_split(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        split, x = self.module_of(node), self.input_values(node)[0]
        return (None,) * len(split.sizes) if x is None else split(x)

    def visit_item(self, node: fx.Node) -> Tensor | None:
        value: Any = self.input_values(node)[0]
        index: Any = node.args[1]
        return value[index] if isinstance(value, tuple) else None

    def visit_concatenation(self, node: fx.Node) -> Tensor | None:
        return None if any(value is None for value in self.input_values(node)) else self._execute(node)

    visit_arithmetic = visit_concatenation

    def _execute(self, node: fx.Node) -> Tensor:
        return execute_node(node, self.modules, self.values)


def _rounding_error(like: Tensor) -> float:
    """Return a ratio so small that rounding alone may cause it."""
    return 10 * torch.finfo(like.dtype).eps


def _varying(like: Tensor, channels: int) -> Tensor:
    return like.new_full((1, channels, 1, 1), torch.nan)


def _positions(mask: BoolArray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))


def _pads_with_zeros(layer: Any) -> bool:
    """Tell whether a convolution pads with zeros; a linear layer does not."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return max(layer.kernel_size) > 1 if layer.padding == "same" else max(layer.padding) > 0
