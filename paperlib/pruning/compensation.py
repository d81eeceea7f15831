"""What becomes of the constants that removed channels emitted (Section 3.1, which does not mention them).

A channel whose gamma is zero still emits act(beta), a constant plane, into the next convolution. With W the weights
of a consumer and c_k the constants of its removed inputs, it loses the convolution of a plane of ones with
sum_k c_k * W[:, k]. A consumer that is called more than once, as a head that several levels share, loses V such
kernels, one for each set of constants.
"""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray
from paperlib.pruning.fx_ops import Walk, execute

CARRIER_STRENGTH = 0.1
"""A carrier's constants are at least this share of the largest among the removed inputs of its consumer."""


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
        if self.carriers.any():
            self._silence(pruned)
        for name, lost in self.lost.items():
            outputs = _positions(~self.removed[self.graph.layers[name].outputs])
            if name in self.needy:
                self._carry(pruned, name, lost[:, outputs])
            else:
                self._shift(pruned, name, lost[outputs])

    def _silence(self, pruned: nn.Module) -> None:
        """Let the carriers emit their constants alone, which nobody reads yet."""
        for name, norm in self.graph.prunable.items():
            pruned.get_submodule(norm).weight[self._left(self.graph.layers[name].outputs)] = 0.0
        for name in self.constants:
            _kernels(pruned.get_submodule(name))[:, self._left(self.graph.layers[name].inputs)] = 0.0

    def _left(self, numbers: IntArray) -> Tensor:
        """At which positions of what is left of `numbers` there are carriers."""
        return _positions(self.carriers[numbers[~self.removed[numbers]]])

    def _lost(self, name: str, removed: BoolArray, *, whole: bool) -> Tensor:
        """What a consumer made of the removed constants, per unit of a constant plane.

        All of it, `[V, out, *kernel]`, if `whole`; otherwise the sum over the kernel, `[out]`, on average.
        """
        constants, kernels = self.constants[name], _kernels(self.module.get_submodule(name))
        gone = torch.from_numpy(removed[self.graph.layers[name].inputs]).to(constants.device)
        constants = torch.where(gone, constants, 0.0)
        if whole:
            flat = kernels.reshape(*kernels.shape[:2], -1)
            return (constants[:, None, None] @ flat).reshape(-1, len(kernels), *kernels.shape[2:])
        flat = kernels.reshape(len(kernels), -1)
        return flat @ constants.mean(0).repeat_interleave(flat.shape[1] // constants.shape[1])

    def _choose_carriers(self, removed: BoolArray) -> BoolArray:
        """Few removed channels, strong ones, whose constants span those of all that each consumer in need has lost."""
        waiting = {name: _Span(self.constants[name], self.graph.layers[name].inputs, removed) for name in self.needy}
        carriers = np.zeros_like(removed)
        while waiting:
            seen_by = Counter(number for span in waiting.values() for number in span.strong_channels())
            best = min(seen_by, key=lambda number: (-seen_by[number], number))
            carriers[best] = True
            for span in waiting.values():
                span.take(best)
            waiting = {name: span for name, span in waiting.items() if not span.complete}
        return carriers

    def _needs_carrier(self, name: str) -> bool:
        consumer = self.module.get_submodule(name)
        several = len(self.constants[name]) > 1
        padded = isinstance(consumer, nn.ConvTranspose2d) or _pads_with_zeros(consumer)
        return self._is_homeless(name) or several or padded

    def _is_homeless(self, name: str) -> bool:
        return self.graph.layers[name].norm is None and self.module.get_submodule(name).bias is None

    def _carry(self, pruned: nn.Module, name: str, lost: Tensor) -> None:
        """Weights by which the carriers' constants make all that was lost, for every set of constants."""
        inputs = self.graph.layers[name].inputs
        constants = self.constants[name][:, _positions(self.carriers[inputs])]
        solution = torch.linalg.pinv(constants.double(), rtol=_rounding(constants))
        kernels = _kernels(pruned.get_submodule(name))
        weights = torch.tensordot(solution, lost.double(), 1).movedim(0, 1)
        kernels[:, self._left(inputs)] = weights.to(kernels.dtype)

    def _shift(self, pruned: nn.Module, name: str, shift: Tensor) -> None:
        consumer, norm = pruned.get_submodule(name), self.graph.layers[name].norm
        if isinstance(consumer, nn.ConvTranspose2d):
            shift = shift / (consumer.stride[0] * consumer.stride[1])
        if norm is not None:
            pruned.get_submodule(norm).running_mean -= shift
        else:
            consumer.bias += shift


class _Span:
    """The constants `[V, n]` of a consumer's removed inputs, less what the carriers taken so far can stand in for."""

    def __init__(self, constants: Tensor, inputs: IntArray, removed: BoolArray) -> None:
        at = np.flatnonzero(removed[inputs])
        self.numbers = inputs[at]
        self.left = constants[:, at].double().cpu()
        self.negligible = _rounding(constants) * float(self.left.norm(dim=0).max())

    @property
    def complete(self) -> bool:
        return float(self.left.norm(dim=0).max()) <= self.negligible

    def strong_channels(self) -> set[int]:
        """Channels of constants so large that the weights which stand in for others stay small."""
        strength = self.left.norm(dim=0)
        return set(self.numbers[(strength >= CARRIER_STRENGTH * strength.max()).numpy()].tolist())

    def take(self, number: int) -> None:
        """Make the channel of that number a carrier, if it is a strong one."""
        if number in self.strong_channels():
            columns = self.left[:, np.flatnonzero(self.numbers == number)]
            strongest = columns[:, columns.norm(dim=0).argmax()]
            direction = strongest / strongest.norm()
            self.left = self.left - torch.outer(direction, direction @ self.left)


class _Constants(Walk):
    """What removed channels emit, carried as `[1, C, 1, 1]` vectors; NaN where a channel is not constant."""

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> None:
        super().__init__(module, graph.recorded)
        self.graph, self.removed = graph, removed
        self.norms = set(graph.prunable.values())
        self.seen: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def found(self) -> dict[str, Tensor]:
        """Per consumer with removed inputs: the constant at each input, `[V, in]`, for V calls that differ.

        Raises:
            ValueError: a removed channel is not constant where it is consumed.
        """
        self.run(self.graph.opaque)
        return {name: torch.stack(constants) for name, constants in self.seen.items()}

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
        known = self.seen.setdefault(name, [])
        if not any(torch.equal(other[removed], constants[removed]) for other in known):
            known.append(constants)

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


def _rounding(like: Tensor) -> float:
    """A share so small that rounding alone may make it."""
    return 10 * torch.finfo(like.dtype).eps


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
