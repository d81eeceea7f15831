"""Which channels must be removed together: the channel graph of a network (Section 3.1, Fig. 2).

The network is traced with torch.fx and every channel of every tensor gets a number. A convolution makes new numbers; a
shortcut ties the numbers of its operands; concatenation and `ChannelSplit` rearrange them. The filters, batch norm
entries and input slices that carry the number of a removed channel are removed with it.

An operation whose effect is not known holds the channels that reach it: they are never removed, and a note says so.
Numbers in the code, such as `torch.split(x, 16, 1)`, cannot be changed from outside: they hold what they count. Those
that the code reads from an attribute change with the channels (see `code_sizes`), as do halves, chunks and
`ChannelSplit`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from paperlib.pruning.axes import Axis, BoolArray, IntArray
from paperlib.pruning.channel_walk import ChannelWalk, Hold, Layer, NormRead, Parameter
from paperlib.pruning.code_sizes import Place
from paperlib.pruning.fx_ops import target_name
from paperlib.pruning.tracing import describe_code, refuse_uncuttable
from paperlib.pruning.value_tracing import record_network, record_with_values
from paperlib.pruning.walk_base import all_axes

_INPUT_COUNTS = ("in_channels", "in_features", "num_features")

__all__ = ["BoolArray", "ChannelGraph", "IntArray", "Layer", "NormRead", "Segment", "trace_channels"]


@dataclass(frozen=True)
class Segment:
    """Channels that may not all be removed: a prunable convolution's outputs, or one part of a split."""

    layer: str
    channels: IntArray


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a network and their couplings; made by `trace_channels`.

    Attributes:
        layers: every convolution, linear layer, batch norm, split and shift that the trace reaches, by name.
        fixed: for each channel number, whether it can never be removed (a network output, for instance).
        prunable: name of each prunable convolution -> name of the batch norm after it, in forward order; of several
            that read it, as after a concatenation, the first.
        norms: for each convolution all batch norms that read it.
        silencing: for each batch norm, which of its channels go silent if it has gamma 0 there, and not before.
        segments: parts of splits first, then the outputs of prunable convolutions.
        balanced: groups of channels of which equally many must be kept, such as the parts of a chunk.
        moves: for a node that rearranges channels, where each channel of its result, or of each part, comes from.
        nodes: the traced computation; what only training computes comes last.
        opaque: those of them whose channels are not followed; nothing prunable flows through them.
        parameters: per-channel parameters that no layer has but the code itself reads, such as a layer scale, by name.
        code_sizes: for each number in the code that changes with channels: these channels, and how many times as large
            the number is.
        held: for each convolution with a batch norm that cannot be pruned at all, the reason.
    """

    layers: dict[str, Layer]
    fixed: BoolArray
    prunable: dict[str, str]
    norms: dict[str, tuple[NormRead, ...]]
    silencing: dict[str, BoolArray]
    segments: list[Segment]
    balanced: list[list[IntArray]]
    moves: dict[fx.Node, Any]
    nodes: tuple[fx.Node, ...]
    opaque: frozenset[fx.Node]
    held: dict[str, str]
    parameters: dict[str, Parameter]
    code_sizes: dict[Place, tuple[IntArray, int]]

    @property
    def notes(self) -> list[str]:
        """Say for each reason which convolutions it holds."""
        return [
            f"{_count_names([name for name, why in self.held.items() if why == reason])} cannot be pruned for {reason}"
            for reason in dict.fromkeys(self.held.values())
        ]


_known_graphs: WeakKeyDictionary[nn.Module, tuple[Any, ChannelGraph]] = WeakKeyDictionary()


def trace_channels(module: nn.Module, example_inputs: Any = None) -> ChannelGraph:
    """Trace the channel graph of `module` through the method that its `traced_method` names, or `forward`.

    If that does not reach all layers in evaluation mode, as those of auxiliary heads, it is traced in training mode,
    too. As long as nothing in the network changes but the values of tensors, it is not traced again.

    Args:
        module: the network.
        example_inputs: a tensor, or a tuple of arguments. Needed only by a network that takes no square image and
            whose code asks for the sizes of tensors in a way that torch.fx cannot follow.

    Raises:
        ValueError: the network cannot be traced, or a weight is computed from others (`weight_norm`, for instance).
    """
    signature = describe_code(module)
    known = _known_graphs.get(module)
    if example_inputs is None and signature is not None and known is not None and known[0] == signature:
        return known[1]
    graph = _trace_new(module, example_inputs)
    if example_inputs is None and signature is not None:
        _known_graphs[module] = signature, graph
    return graph


def _trace_new(module: nn.Module, example_inputs: Any) -> ChannelGraph:
    refuse_uncuttable(module)
    nodes, unknown = tuple(record_network(module, example_inputs=example_inputs).nodes), []
    if missed := _missed_layers(module, nodes):
        try:
            nodes += tuple(record_network(module, training=True, example_inputs=example_inputs).nodes)
        except ValueError:
            unknown = missed
        if not unknown and _missed_layers(module, nodes):
            # Code that asks whether its input is a tensor takes another way with a stand-in that is none.
            graph = record_with_values(module, example_inputs=example_inputs)
            others = tuple(graph.nodes) if graph else ()
            nodes += others if _missed_layers(module, others) != missed else ()
    walk = ChannelWalk(module, nodes)
    walk.visit_all()
    _hold_for_training(walk, unknown)
    return _build_graph(walk)


def _hold_for_training(walk: ChannelWalk, names: list[str]) -> None:
    """Hold what layers may read that are not called in evaluation mode, where training mode cannot be traced."""
    for name in names:
        layer = walk.modules[name]
        count = next(getattr(layer, key) for key in _INPUT_COUNTS if hasattr(layer, key))
        for axis in all_axes(tuple(walk.values.values())):
            # A linear layer may read flattened maps.
            if len(axis.numbers) == count or (isinstance(layer, nn.Linear) and count % len(axis.numbers) == 0):
                walk.holds.append(Hold(axis.numbers, f"{name}, which may read them in training"))


def explain_unprunable(module: nn.Module, graph: ChannelGraph) -> str:
    """Say why no channel of a network can be pruned."""
    kind = type(module).__name__
    if graph.held:
        return f"{kind} has no prunable channel: {'; '.join(graph.notes)}"
    frozen = next((type(m).__name__ for m in module.modules() if "FrozenBatchNorm" in type(m).__name__), None)
    if frozen:
        return f"{kind} has no prunable channel: {frozen} has no gamma to learn; use nn.BatchNorm2d instead"
    found = Counter(_describe_layer(m) for m in module.modules() if isinstance(m, _ConvNd) or _is_norm(m))
    layers = ", ".join(f"{count} {name}" for name, count in found.items()) or "no convolution"
    return f"{kind} has no prunable channel: no convolution with a batch norm after it (it has {layers})"


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or "Norm" in type(module).__name__


def _describe_layer(module: nn.Module) -> str:
    """Name the class of a layer, and what a batch norm lacks to be pruned by."""
    lacks = [key for key in ("affine", "track_running_stats") if not getattr(module, key, True)]
    return type(module).__name__ + (f" with {', '.join(f'{key}=False' for key in lacks)}" if lacks else "")


def _missed_layers(module: nn.Module, nodes: tuple[fx.Node, ...]) -> list[str]:
    """Return the convolutions, linear layers and batch norms that a trace does not call."""
    modules = dict(module.named_modules())
    called = {modules[target_name(node)] for node in nodes if node.op == "call_module"}
    missed = {name: each for name, each in modules.items() if each not in called}
    return [name for name, each in missed.items() if isinstance(each, _ConvNd | nn.Linear | _BatchNorm)]


def _build_graph(walk: ChannelWalk) -> ChannelGraph:
    norm_of = _sole_norms(walk)
    _tie_shared_weights(walk)
    _tie_parameters(walk)
    _hold_read_weights(walk)
    sizes = walk.settle_sizes()
    roots = walk.ties.find_roots()
    fixed = np.zeros(len(roots), dtype=bool)
    for hold in walk.holds:
        fixed[roots[hold.numbers]] = True
    balanced = [[roots[part] for part in parts] for parts in walk.balanced]
    layers = {
        name: Layer(layer.kind, roots[layer.inputs], roots[layer.outputs], norm_of.get(name), name not in walk.apart)
        for name, layer in walk.layers.items()
    }
    norms = _find_norms(walk, layers)
    prunable = {name: reads[0].norm for name, reads in norms.items() if not fixed[layers[name].outputs].all()}
    return ChannelGraph(
        layers, fixed, prunable, norms, walk.silencing, _segments(walk, layers, prunable), balanced, walk.moves,
        walk.nodes, frozenset(_opaque_nodes(walk)), _reasons(walk, layers, norms.keys() - prunable.keys(), roots),
        {name: replace(parameter, numbers=roots[parameter.numbers]) for name, parameter in walk.parameters.items()},
        {place: (roots[use.numbers], use.size.divisor) for place, use in sizes.items()},
    )  # fmt: skip


def _sole_norms(walk: ChannelWalk) -> dict[str, str]:
    """Map each convolution to the batch norm that follows it at every call and follows no other."""
    calls = Counter(node.target for node in walk.nodes if node.op == "call_module")
    found = {}
    for name, followers in walk.followers.items():
        norm = next(iter(followers))
        if len(followers) == 1 and norm is not None and calls[norm] == calls[name] and norm in walk.layers:
            found[name] = norm
    return found


def _find_norms(walk: ChannelWalk, layers: dict[str, Layer]) -> dict[str, tuple[NormRead, ...]]:
    """Return for each convolution or linear layer the norms that read it, in forward order, if there are any.

    What only multiplies something silent, such as a gate, goes with that, and is not ranked itself.
    """
    gates = np.concatenate([np.empty(0, dtype=np.int64), *walk.gates])
    others = [name for name in walk.followers if layers[name].norm is None and layers[name].kind != "depthwise"]
    shared = [name for name in others if not np.isin(walk.layers[name].outputs, gates).any()]
    outputs = np.concatenate([np.empty(0, dtype=np.int64), *(layers[name].outputs for name in shared)])
    ends = np.cumsum([len(layers[name].outputs) for name in shared])
    reads: dict[str, list[NormRead]] = {name: [] for name in shared}
    position = np.full(walk.ties.count, -1)
    for norm, loud in walk.silencing.items() if shared else ():
        numbers = layers[norm].outputs[loud]
        position[numbers] = np.flatnonzero(loud)
        read = position[outputs]
        position[numbers] = -1
        if (read < 0).all():
            continue
        for name, found in zip(shared, np.split(read, ends[:-1]), strict=True):
            if (found >= 0).any():
                reads[name].append(NormRead(norm, np.flatnonzero(found >= 0), found[found >= 0]))
    own = {name: [NormRead(norm)] for name in walk.followers if (norm := layers[name].norm)}
    found = {name: tuple(own.get(name) or reads.get(name, ())) for name in walk.followers}
    return {name: norms for name, norms in found.items() if norms}


def _tie_shared_weights(walk: ChannelWalk) -> None:
    """Tie the channels of layers that share one weight, so that they can go on sharing it."""
    owners: dict[int, Layer] = {}
    for name, layer in walk.layers.items():
        weight = getattr(walk.modules[name], "weight", None)
        if weight is None:
            continue
        known = owners.setdefault(id(weight), layer)
        if known is not layer and known.kind == layer.kind:
            walk.ties.tie_numbers(known.inputs, layer.inputs)
            walk.ties.tie_numbers(known.outputs, layer.outputs)


def _tie_parameters(walk: ChannelWalk) -> None:
    """Tie parameters that code reads to those of the same tensor, and to the layer that has them: it cuts its own."""
    owners: dict[int, Parameter] = {}
    for name, parameter in list(walk.parameters.items()):
        known = owners.setdefault(id(parameter.tensor), parameter)
        walk.ties.tie_numbers(known.numbers, parameter.numbers)
        layer = walk.layers.get(name.rpartition(".")[0])
        if layer is not None:
            own = next((ids for ids in (layer.outputs, layer.inputs) if len(ids) == len(parameter.numbers)), None)
            if own is None:
                walk.holds.append(Hold(parameter.numbers, f"being read by the code as {name}"))
            else:
                walk.ties.tie_numbers(own, parameter.numbers)
            del walk.parameters[name]


def _hold_read_weights(walk: ChannelWalk) -> None:
    """Hold the channels of layers whose weights the code reads itself, in another way than as values of channels."""
    if not walk.read_weights:
        return
    for name, layer in walk.layers.items():
        own = {id(tensor) for tensor in walk.modules[name].parameters(recurse=False)}
        for read in [key for key, tensor in walk.read_weights.items() if id(tensor) in own]:
            walk.holds += [Hold(ids, f"being read by the code as {read}") for ids in (layer.inputs, layer.outputs)]


def _segments(walk: ChannelWalk, layers: dict[str, Layer], prunable: dict[str, str]) -> list[Segment]:
    segments = []
    for name, layer in layers.items():
        if layer.kind == "split":
            sizes: Any = walk.modules[name].sizes
            segments += [Segment(name, part) for part in np.split(layer.outputs, np.cumsum(sizes)[:-1])]
    return segments + [Segment(name, layers[name].outputs) for name in prunable]


def _opaque_nodes(walk: ChannelWalk) -> Iterator[fx.Node]:
    for node, value in walk.values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not any(isinstance(part, Axis) for part in parts) and type(value) is not int:
            yield node


def _reasons(walk: ChannelWalk, layers: dict[str, Layer], names: set[str], roots: IntArray) -> dict[str, str]:
    """Return for each of the convolutions the first reason, in forward order, for which its channels are held."""
    if not names:
        return {}
    reason_of: dict[int, str] = {}
    for hold in walk.holds:
        for number in np.unique(roots[hold.numbers]).tolist():
            reason_of.setdefault(number, hold.reason)
    return {name: reason_of[int(layers[name].outputs[0])] for name in layers if name in names}


def _count_names(names: list[str]) -> str:
    """Return a few names, and how many there are."""
    if len(names) == 1:
        return names[0]
    return f"{len(names)} layers ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
