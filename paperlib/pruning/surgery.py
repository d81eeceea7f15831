"""Carrying out a plan: a smaller network, and what becomes of the constants that removed channels emitted.

A channel whose gamma is zero still emits act(beta), a constant plane, into the next convolution. The paper
does not mention it; `compensate` says what to do about it. With W the weights of a consumer and c_k the
constants of its removed inputs, it loses the convolution of a plane of ones with sum_k c_k * W[:, k]. A consumer
that is called more than once, as a head that several levels share, loses V such kernels, one for each set of constants.
"""

import copy
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paperlib.pruning.channels import BoolArray, ChannelGraph, IntArray, trace_channels
from paperlib.pruning.operations import Walk
from paperlib.pruning.plan import PruningPlan, removed_channels
from paperlib.structure import keep_channels_

COMPENSATIONS = ("off", "bias", "exact")
CARRIER_STRENGTH = 0.1
"""A carrier's constants are at least this share of the largest among the removed inputs of its consumer."""


def apply_plan(detector: nn.Module, plan: PruningPlan, *, compensate: str = "bias") -> nn.Module:
    """A new network without the channels that `plan` removes (Section 3.1, Fig. 2); `detector` is untouched.

    Args:
        detector: the network that the plan was made for.
        plan: which channels stay.
        compensate: what happens to the constants that removed channels emitted in evaluation mode.
            `off`: they are dropped, as in the paper.
            `bias`: they move into the consumer's bias, or its batch norm's running mean. Exact for a consumer
            without padding; wrong along the border of a zero-padded one, where the plane had ended; for a
            transposed convolution right only on the average over its output positions, for a consumer called with
            several sets of constants on their average.
            `exact`: where a bias will not do, one removed channel stays as a carrier: with gamma 0 it emits a
            constant plane, from which the consumer makes all that it lost. Exact to rounding everywhere,
            borders included; costs a channel a consumer at most (V channels, called with V sets of constants),
            which may break a multiple of `round_to`.

    Returns:
        A network of the same class; training mode and requires_grad are kept.

    Raises:
        ValueError: `compensate` is unknown; the plan does not fit the network (see `removed_channels`); or a
            constant cannot be made up for, with the name of the layer that loses it.
    """
    if compensate not in COMPENSATIONS:
        raise ValueError(f"compensate {compensate!r} is not known; choose one of: {', '.join(COMPENSATIONS)}")
    graph = trace_channels(detector)
    removed = removed_channels(graph, plan)
    pruned = copy.deepcopy(detector)
    if compensate != "off":
        removed = _Compensation(pruned, graph, removed).apply(exact=compensate == "exact")
    for name, layer in graph.layers.items():
        inputs, outputs = (torch.from_numpy(np.flatnonzero(~removed[ids])) for ids in (layer.inputs, layer.outputs))
        keep_channels_(pruned.get_submodule(name), inputs, outputs)
    return pruned


def mask_plan(detector: nn.Module, plan: PruningPlan, *, keep_beta: bool = False) -> nn.Module:
    """A full-size copy in which the channels that `plan` removes have gamma 0, and beta 0 unless `keep_beta`.

    The reference for surgery: in evaluation mode it computes what the pruned network computes.

    Raises:
        ValueError: the plan does not fit the network.
    """
    graph = trace_channels(detector)
    removed = removed_channels(graph, plan)
    masked = copy.deepcopy(detector)
    _set_norms(masked, graph, removed, beta=None if keep_beta else 0.0)
    return masked


@torch.no_grad()
def _set_norms(module: nn.Module, graph: ChannelGraph, channels: BoolArray, beta: float | None = None) -> None:
    """Set gamma to 0, and beta to `beta` if given, of the prunable batch norms at `channels`."""
    for name, norm_name in graph.prunable.items():
        norm, at = module.get_submodule(norm_name), _positions(channels[graph.layers[name].outputs])
        norm.weight[at] = 0.0
        if beta is not None:
            norm.bias[at] = beta


class _Compensation:
    """Puts what the removed channels of `module` emitted somewhere else, before they are cut out."""

    def __init__(self, module: nn.Module, graph: ChannelGraph, removed: BoolArray) -> None:
        self.module, self.graph, self.removed = module, graph, removed
        self.constants = _Constants(module, graph, removed).found()

    @torch.no_grad()
    def apply(self, *, exact: bool) -> BoolArray:
        """Rewrite the consumers in place; returns the channels that can now go (all but the carriers)."""
        lost = {name: kernel for name in self.constants if (kernel := self._lost(name)).any()}
        needy = [name for name in lost if exact and self._needs_carrier(name)]
        carriers = self._choose_carriers(needy)
        _set_norms(self.module, self.graph, carriers)
        for name in self.constants:
            _kernels(self.module.get_submodule(name))[:, self._inputs(name, carriers)] = 0.0
        for name, kernels in lost.items():
            if name in needy:
                self._carry(name, kernels, self._inputs(name, carriers))
            else:
                self._shift(name, kernels.mean(0))
        return self.removed & ~carriers

    def _inputs(self, name: str, channels: BoolArray) -> Tensor:
        """At which inputs of a consumer `channels` arrive."""
        return _positions(channels[self.graph.layers[name].inputs])

    def _lost(self, name: str) -> Tensor:
        """What a consumer made of each set of removed constants, per unit of a constant plane: `[V, out, *kernel]`."""
        at = self._inputs(name, self.removed)
        kernels = _kernels(self.module.get_submodule(name))
        return torch.tensordot(kernels[:, at], self.constants[name][:, at], dims=([1], [1])).movedim(-1, 0)

    def _choose_carriers(self, needy: list[str]) -> BoolArray:
        """Few removed channels, strong ones, whose constants span those of all that each consumer in need has lost."""
        waiting = {name: _Span(self.constants[name], self.graph.layers[name].inputs, self.removed) for name in needy}
        carriers = np.zeros_like(self.removed)
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
        homeless = self.graph.layers[name].norm is None and consumer.bias is None
        several = len(self.constants[name]) > 1
        return homeless or several or isinstance(consumer, nn.ConvTranspose2d) or _pads_with_zeros(consumer)

    def _carry(self, name: str, lost: Tensor, carriers: Tensor) -> None:
        """Weights by which the carriers' constants make all that was lost, for every set of constants."""
        constants = self.constants[name][:, carriers]
        solution = torch.linalg.pinv(constants.double(), rtol=_rounding(constants))
        kernels = _kernels(self.module.get_submodule(name))
        kernels[:, carriers] = torch.tensordot(solution, lost.double(), 1).movedim(0, 1).to(kernels.dtype)

    def _shift(self, name: str, kernel: Tensor) -> None:
        consumer, norm = self.module.get_submodule(name), self.graph.layers[name].norm
        shift = kernel.flatten(1).sum(1) if kernel.dim() > 1 else kernel
        if isinstance(consumer, nn.ConvTranspose2d):
            shift = shift / (consumer.stride[0] * consumer.stride[1])
        if norm is not None:
            self.module.get_submodule(norm).running_mean -= shift
        elif consumer.bias is not None:
            consumer.bias += shift
        else:
            raise ValueError(f"{name} has neither batch norm nor bias to shift; use compensate='off' or 'exact'")


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
        """Run the operation for real on the constants."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "call_module":
            return self.modules[node.target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


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
