"""What becomes of the constants that removed channels emitted (Section 3.1, which does not mention them).

A channel whose gamma is zero still emits act(beta), a constant plane, into the next convolution. With W the weights
of a consumer and c_k the constants of its removed inputs, it loses the convolution of a plane of ones with
sum_k c_k * W[:, k].
"""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paperlib.pruning.channels import BoolArray, ChannelGraph, IntArray
from paperlib.pruning.operations import Walk, execute

CARRIER_STRENGTH = 0.1
"""A carrier's constant is at least this share of the largest among the removed inputs of its consumer."""


class Compensation:
    """Puts what the removed channels of a network emitted somewhere else.

    Args:
        module: the network before the cut; it is only read.
        graph: its channels.
        removed: for each channel number, whether it is to go.
        exact: make up with carriers where a bias will not do.

    Attributes:
        removed: the channels that can go: all that were to, but the carriers.

    Raises:
        ValueError: a constant cannot be made up for, with the name of the layer that loses it.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray, *, exact: bool) -> None:
        self.module, self.graph = module, graph
        self.constants = _Constants(module, graph, removed).found()
        needy = [name for name in self.constants if exact and self._needs_carrier(name)]
        lost = {name: self._lost(name, removed, whole=name in needy) for name in self.constants}
        self.lost = {name: kernel for name, kernel in lost.items() if kernel.any()}
        self.needy = [name for name in needy if name in self.lost]
        for name in self.lost:
            if name not in needy and self._is_homeless(name):
                raise ValueError(f"{name} has neither batch norm nor bias to shift; use compensate='off' or 'exact'")
        self.carriers = self._choose_carriers(removed)
        self.removed = removed & ~self.carriers

    @torch.no_grad()
    def fill_(self, pruned: nn.Module) -> None:
        """Write the compensation into the network from which the channels at `removed` have been cut."""
        for name, norm in self.graph.prunable.items():
            pruned.get_submodule(norm).weight[self._left(self.graph.layers[name].outputs)] = 0.0
        for name in self.constants:
            _kernels(pruned.get_submodule(name))[:, self._left(self.graph.layers[name].inputs)] = 0.0
        for name, kernel in self.lost.items():
            kernel = kernel[_positions(~self.removed[self.graph.layers[name].outputs])]
            if name in self.needy:
                self._carry(pruned, name, kernel)
            else:
                self._shift(pruned, name, kernel)

    def _left(self, numbers: IntArray) -> Tensor:
        """At which positions of what is left of `numbers` there are carriers."""
        return _positions(self.carriers[numbers[~self.removed[numbers]]])

    def _lost(self, name: str, removed: BoolArray, *, whole: bool) -> Tensor:
        """What a consumer made of the removed constants: a kernel `[out, *kernel]` if `whole`, or its sums `[out]`."""
        constants, kernels = self.constants[name], _kernels(self.module.get_submodule(name))
        gone = torch.from_numpy(removed[self.graph.layers[name].inputs]).to(constants.device)
        constants = torch.where(gone, constants, 0.0)
        if whole:
            flat = kernels.reshape(*kernels.shape[:2], -1)
            return (constants.view(1, 1, -1) @ flat).view(-1, *kernels.shape[2:])
        flat = kernels.reshape(len(kernels), -1)
        return flat @ constants.repeat_interleave(flat.shape[1] // len(constants))

    def _choose_carriers(self, removed: BoolArray) -> BoolArray:
        """Few removed channels such that each consumer in need of a carrier sees a strong one."""
        waiting = {name: self._strong_channels(name, removed) for name in self.needy}
        carriers = np.zeros_like(removed)
        while waiting:
            seen_by = Counter(number for numbers in waiting.values() for number in numbers)
            best = min(seen_by, key=lambda number: (-seen_by[number], number))
            carriers[best] = True
            waiting = {name: numbers for name, numbers in waiting.items() if best not in numbers}
        return carriers

    def _strong_channels(self, name: str, removed: BoolArray) -> set[int]:
        """Removed inputs of a constant so large that the weights which stand in for others stay small."""
        at = _positions(removed[self.graph.layers[name].inputs])
        strength = self.constants[name][at].abs()
        strong = at[(strength >= CARRIER_STRENGTH * strength.max()).cpu()]
        return set(self.graph.layers[name].inputs[strong.numpy()].tolist())

    def _needs_carrier(self, name: str) -> bool:
        consumer = self.module.get_submodule(name)
        return self._is_homeless(name) or isinstance(consumer, nn.ConvTranspose2d) or _pads_with_zeros(consumer)

    def _is_homeless(self, name: str) -> bool:
        return self.graph.layers[name].norm is None and self.module.get_submodule(name).bias is None

    def _carry(self, pruned: nn.Module, name: str, kernel: Tensor) -> None:
        inputs = self.graph.layers[name].inputs
        constants = self.constants[name][_positions(self.carriers[inputs])]
        strongest = int(constants.abs().argmax())
        carrier = int(self._left(inputs)[strongest])
        _kernels(pruned.get_submodule(name))[:, carrier] = kernel / constants[strongest]

    def _shift(self, pruned: nn.Module, name: str, shift: Tensor) -> None:
        consumer, norm = pruned.get_submodule(name), self.graph.layers[name].norm
        if isinstance(consumer, nn.ConvTranspose2d):
            shift = shift / (consumer.stride[0] * consumer.stride[1])
        if norm is not None:
            pruned.get_submodule(norm).running_mean -= shift
        else:
            consumer.bias += shift


class _Constants(Walk):
    """What removed channels emit, carried as `[1, C, 1, 1]` vectors; NaN where a channel is not constant."""

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> None:
        super().__init__(module, graph.recorded)
        self.graph, self.removed = graph, removed
        self.norms = set(graph.prunable.values())
        self.seen: dict[str, Tensor] = {}

    @torch.no_grad()
    def found(self) -> dict[str, Tensor]:
        """Per consumer with removed inputs: the constant at each input, `[in]`.

        Raises:
            ValueError: a removed channel is not constant where it is consumed, or not the same at every call.
        """
        self.run(self.graph.opaque)
        return self.seen

    def visit_conv(self, node: fx.Node) -> Tensor:
        conv = self.modules[node.target]
        self._consume(node.target, self.inputs(node)[0])
        return _varying(conv.weight, conv.out_channels)

    def visit_linear(self, node: fx.Node) -> Tensor:
        linear, x = self.modules[node.target], self.inputs(node)[0]
        if x is not None:
            self._consume(node.target, x.repeat_interleave(linear.in_features // x.shape[1], dim=1))
        return _varying(linear.weight, linear.out_features).flatten(1)

    def _consume(self, name: str, x: Tensor | None) -> None:
        removed = _positions(self.removed[self.graph.layers[name].inputs])
        if x is None or len(removed) == 0:
            return
        constants = x.flatten()
        if constants[removed].isnan().any():
            raise ValueError(
                f"{name}: a removed channel does not reach it as a constant (zero padding in a depthwise "
                "convolution or an average pooling on the way); use compensate='off'"
            )
        known = self.seen.setdefault(name, constants)
        if not torch.equal(known[removed], constants[removed]):
            raise ValueError(f"{name} is called more than once, with different constants; use compensate='off'")

    def visit_depthwise(self, node: fx.Node) -> Tensor:
        conv, x = self.modules[node.target], self.inputs(node)[0]
        if x is None:
            return _varying(conv.weight, conv.out_channels)
        gain = conv.weight.flatten(1).sum(1).reshape(1, -1, 1, 1)
        bias = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
        ragged = _pads_with_zeros(conv) or isinstance(conv, nn.ConvTranspose2d)
        return torch.where((x != 0) & ragged, torch.nan, x * gain) + bias

    def visit_norm(self, node: fx.Node) -> Tensor:
        norm, x = self.modules[node.target], self.inputs(node)[0]
        if x is None:
            return _varying(norm.weight, norm.num_features)
        out = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        if node.target in self.norms:
            removed = _positions(self.removed[self.graph.layers[node.target].outputs])
            out[0, removed, 0, 0] = norm.bias[removed]
        return out

    def visit_activation(self, node: fx.Node) -> Tensor | None:
        x = self.inputs(node)[0]
        if x is None:
            return None
        varying = x.isnan()  # asked first, as the activation may work in place
        return self._execute(node).masked_fill_(varying, torch.nan)

    visit_bypass = visit_activation

    def visit_pass_through(self, node: fx.Node) -> Tensor | None:
        x, pool = self.inputs(node)[0], self.modules.get(node.target)
        if x is not None and isinstance(pool, nn.AvgPool2d) and pool.padding and pool.count_include_pad:
            return torch.where(x != 0, torch.nan, x)
        return None if x is None else x.clone()

    def visit_flatten(self, node: fx.Node) -> Tensor | None:
        x = self.inputs(node)[0]
        return None if x is None else x.flatten(1)

    def visit_split(self, node: fx.Node) -> tuple[Tensor | None, ...]:
        split, x = self.modules[node.target], self.inputs(node)[0]
        return (None,) * len(split.sizes) if x is None else split(x)

    def visit_item(self, node: fx.Node) -> Tensor | None:
        value = self.inputs(node)[0]
        return value[node.args[1]] if isinstance(value, tuple) else None

    def visit_concatenation(self, node: fx.Node) -> Tensor | None:
        return None if any(value is None for value in self.inputs(node)) else self._execute(node)

    visit_arithmetic = visit_concatenation

    def _execute(self, node: fx.Node) -> Tensor:
        return execute(node, self.modules, self.values)


def _varying(like: Tensor, channels: int) -> Tensor:
    return like.new_full((1, channels, 1, 1), torch.nan)


def _positions(mask: BoolArray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))


def _kernels(consumer: nn.Module) -> Tensor:
    """A view `[out, in, *kernel]` of the weights."""
    return consumer.weight.transpose(0, 1) if isinstance(consumer, nn.ConvTranspose2d) else consumer.weight


def _pads_with_zeros(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return max(layer.kernel_size) > 1 if layer.padding == "same" else max(layer.padding) > 0
