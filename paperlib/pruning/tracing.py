"""Recording what a network computes, with torch.fx, without changing the network.

A copy is traced, which shares the tensors and the layers that are recorded as one node. Arguments with a default take
it. Wrappers are unwrapped, and what cannot be traced or cut is refused with its name.
"""

import inspect
import operator
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune

from paperlib.pruning.code_sizes import Place, mark_sizes
from paperlib.pruning.wirings import find_wiring
from paperlib.structure import (
    MODULE_FIELDS,
    Bypass,
    ChannelSplit,
    copy_modules,
    is_immutable,
    left_tensors,
    select_channels,
    shared_tensors,
)

_LEAVES = (ChannelSplit, Bypass, nn.Mish, _BatchNorm)
"""Recorded as one node even if a subclass computes them in another way."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FEW_VALUES = 10_000
_CALLS: dict[int, Callable[..., Any]] = {
    0: lambda net: net._traced_original(),
    1: lambda net, a: net._traced_original(a),
    2: lambda net, a, b: net._traced_original(a, b),
    3: lambda net, a, b, c: net._traced_original(a, b, c),
    4: lambda net, a, b, c, d: net._traced_original(a, b, c, d),
}
"""Calls with only the arguments that have no default, by their number."""
MOST_ARGUMENTS = max(_CALLS)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside `nn.DataParallel`, `DistributedDataParallel` and `torch.compile`.

    Raises:
        ValueError: the network is a TorchScript module, which cannot be traced.
    """
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(module._modules.get("_orig_mod"), nn.Module):
            module = module.get_submodule("_orig_mod")
        else:
            break
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("the network is a TorchScript module, which cannot be pruned; give the module it was made of")
    return module


def trace_graph(module: nn.Module, *, training: bool = False, arguments: int = 0) -> fx.Graph:
    """Record the method of `module` that its `traced_method` names, or `forward`, in evaluation or training mode.

    Args:
        module: the network.
        training: record its training mode.
        arguments: the first so many arguments have a stand-in, even if they have a default.

    Raises:
        ValueError: torch.fx cannot follow the network; the module in which it stopped is named.
    """
    leaves = {id(layer) for layer in leaf_modules(module)}
    tracer = Tracer(leaves)
    traced = _tracing_copy(module, leaves, training)
    method = prepare_method(traced, getattr(module, "traced_method", "forward"), arguments)
    tracer.traced_func_name = method
    try:
        with warnings.catch_warnings(), inlined_scripts():
            warnings.simplefilter("ignore")
            graph = tracer.trace(traced)
        for node in graph.nodes:
            if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
                node.meta["constant"] = getattr(traced, str(node.target))
        return graph
    except Exception as error:
        raise ValueError(_describe_failure(module, tracer, error)) from error


def leaf_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network that are recorded as one node."""
    return (layer for layer in module.modules() if layer is not module and _is_leaf(layer))


def describe_code(module: nn.Module) -> list[Any] | None:
    """Return all but the values of tensors that a trace depends on, to be compared; None where that cannot be told."""
    found: list[Any] = []
    try:
        # One flat list: the garbage collector would have to visit every pair in it.
        for name, part in module.named_modules():
            found += (name, id(part), type(part), len(part._forward_pre_hooks))
            for key, tensor in (*part._parameters.items(), *part._buffers.items()):
                found += () if tensor is None else (key, id(tensor), *tensor.shape)
            for key, value in vars(part).items():
                if key not in MODULE_FIELDS:
                    found += (key, _describe_value(value))
    except (TypeError, RecursionError, RuntimeError):  # the last: of layers without values yet
        return None
    return found


def _describe_value(value: Any) -> Any:
    """Return a copy of a setting; raise TypeError for what has no attributes to look at, such as a set."""
    if is_immutable(value):
        return value
    if isinstance(value, list | tuple):
        return type(value).__name__, [_describe_value(each) for each in value]
    if isinstance(value, dict):
        return [(key, _describe_value(each)) for key, each in value.items()]
    return id(value) if isinstance(value, Tensor) or callable(value) else (type(value), _describe_value(vars(value)))


def refuse_uncuttable(module: nn.Module) -> None:
    """Raise ValueError if a weight of `module` has no values yet or is computed from others, which a cut would miss."""
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise ValueError(f"{name} is a TorchScript module, which cannot be pruned; use the module it was made of")
        if any(isinstance(each, nn.UninitializedParameter) for each in layer._parameters.values()):
            raise ValueError(f"{name or type(layer).__name__} has no weights yet; run the network once before")
        hooks = [type(hook).__name__ for hook in layer._forward_pre_hooks.values()]
        if not hooks and "parametrizations" not in layer._modules:
            continue
        if "parametrizations" in layer._modules:
            kinds = [type(each[0]).__name__ for each in layer.parametrizations.values()]  # pyright: ignore
            remedy = "torch.nn.utils.parametrize.remove_parametrizations"
        elif kinds := [kind for kind in hooks if kind in ("WeightNorm", "SpectralNorm")]:
            remedy = f"torch.nn.utils.remove_{'weight' if kinds[0] == 'WeightNorm' else 'spectral'}_norm"
        elif kinds := [type(h).__name__ for h in layer._forward_pre_hooks.values() if _masks_weights(h)]:
            remedy = "torch.nn.utils.prune.remove"
        else:
            continue
        raise ValueError(f"{name or type(layer).__name__} has parametrised weights ({kinds[0]}); first call {remedy}")


@contextmanager
def inlined_scripts() -> Iterator[None]:
    """Record what functions compiled by `torch.jit.script` compute from stand-ins, which they refuse themselves."""
    kind: Any = torch.jit.ScriptFunction
    plain = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        traced = any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values()))
        # Here torch keeps the function that was compiled.
        source = getattr(function, "_torchdynamo_inline", None) if traced else None
        return source(*args, **kwargs) if source else plain(function, *args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = plain


class Tracer(fx.Tracer):
    """Records a module as one node if it inherits its forward method from torch.nn.

    A convolution with a forward method of its own is recorded as one node, too, if it can be cut like any other.

    Args:
        leaves: the `id` of each module that is recorded as one node.

    Attributes:
        stopped_at: name of the innermost module whose forward raised an error.
    """

    def __init__(self, leaves: Container[int]) -> None:
        super().__init__()
        self.leaves = leaves
        self.stopped_at = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is recorded as one node."""
        return id(m) in self.leaves

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a module."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.stopped_at = self.stopped_at or self.path_of_module(m)
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the stand-in for the result of a node."""
        return PartsProxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over the parts of a chunk, whose number is known."""
        count = _part_count(obj.node)
        return super().iter(obj) if count is None else iter([cast(Any, obj)[i] for i in range(count)])


class PartsProxy(fx.Proxy):
    """A stand-in for a tensor that knows how many parts `chunk` has made."""

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record an assignment to a part of the tensor; its channels are held."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        count = _part_count(self.node)
        return super().__len__() if count is None else count


def _part_count(node: fx.Node) -> int | None:
    is_chunk = node.target == "chunk" or node.target is torch.chunk
    count = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks")
    return count if is_chunk and isinstance(count, int) else None


def _is_leaf(module: nn.Module) -> bool:
    inherited = type(module).forward.__module__.startswith("torch.nn.")
    if isinstance(module, _LEAVES) or "FrozenBatchNorm" in type(module).__name__:
        return True
    if isinstance(module, _ConvNd | nn.Linear) and not inherited:
        return computes_like_its_class(module)
    return inherited and not isinstance(module, _CONTAINERS)


def has_own_forward(layer: nn.Module) -> bool:
    """Tell whether the class of a layer defines its forward method outside of torch.nn."""
    return not type(layer).forward.__module__.startswith("torch.nn.")


@torch.no_grad()
def computes_like_its_class(layer: nn.Module) -> bool:
    """Tell, by trying, whether a layer with channels removed computes what the layer computes without these channels.

    So it is for a convolution that pads its input itself, but not for one that normalises its weights.
    """
    counts = [getattr(layer, name, 0) for name in ("in_channels", "in_features", "out_channels", "out_features")]
    inputs, outputs = max(counts[:2]), max(counts[2:])
    groups = getattr(layer, "groups", 1)
    if groups != 1 and not groups == inputs == outputs or min(inputs, outputs) < 2:
        return False
    kept_in, kept_out = torch.arange(0, inputs, 2), torch.arange(0, outputs, 2)
    try:
        small = select_channels(layer, kept_in, kept_out)
        sides = [1 + 4 * k * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)] if counts[0] else []  # pyright: ignore
        weight = next(layer.parameters())
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(2, inputs, *sides, generator=generator).to(weight.device, weight.dtype)
        x[:, 1::2] = 0
        full, cut = layer(x), small(x[:, kept_in])
        return torch.allclose(full[:, kept_out], cut, rtol=1e-3, atol=1e-4 * float(full.abs().max()))
    except Exception:  # whatever it is, it is no ordinary layer
        return False


def _masks_weights(hook: Any) -> bool:
    return isinstance(hook, prune.BasePruningMethod)


def _tracing_copy(module: nn.Module, leaves: Container[int], training: bool) -> nn.Module:
    """Copy the modules whose forward is traced; the copy shares all others, and the tensors, with `module`.

    Hooks are left out: they would see, and keep, the stand-ins of the tracer.

    Args:
        module: the network.
        leaves: the `id` of each module that is recorded as one node.
        training: whether the copy is in training mode.
    """
    parts = dict(module.named_modules())
    copied = {name: part for name, part in parts.items() if id(part) not in leaves}
    memo: dict[int, Any] = {id(part): part for part in parts.values() if id(part) in leaves}
    memo |= shared_tensors(copied.values())
    # Code may count its calls in a buffer or a small tensor, which must not change.
    buffers = [each for part in copied.values() for each in part.buffers(recurse=False)]
    counters = (each for each in (*buffers, *left_tensors(copied.values())) if each.numel() <= _FEW_VALUES)
    memo |= {id(each): each.detach().clone() for each in counters}
    copy_modules(copied.values(), memo, training=training)
    computed_with: set[Place] = set()
    for name, part in copied.items():
        mark_sizes(memo[id(part)], name, computed_with)
    return memo[id(module)]


def prepare_method(traced: nn.Module, method: str, count: int = 0) -> str:
    """Return the name of a method of `traced` that takes only the arguments of `method` without a default.

    It takes the first `count` arguments if these are more.
    """
    if wiring := find_wiring(traced):
        traced.__class__ = type(type(traced).__name__, (type(traced),), {"_traced_call": wiring})
        return "_traced_call"
    parameters = list(inspect.signature(getattr(traced, method)).parameters.values())
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = min(count, sum(p.kind not in (*optional, inspect.Parameter.KEYWORD_ONLY) for p in parameters))
    needed = max(given, sum(p.default is p.empty and p.kind not in optional for p in parameters))
    if needed == len(parameters) or needed not in _CALLS or not needed:
        return method
    kind = type(traced)
    members = {"_traced_original": getattr(kind, method), "_traced_call": _CALLS[needed]}
    traced.__class__ = type(kind.__name__, (kind,), members)
    return "_traced_call"


def _describe_failure(module: nn.Module, tracer: Tracer, error: Exception) -> str:
    name = tracer.stopped_at
    place = f"{name} ({type(module.get_submodule(name)).__name__})" if name else type(module).__name__
    fault = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"cannot trace {place}: {fault}; give example_inputs, or name a method that torch.fx can "
        f"follow in `traced_method` of {type(module).__name__}"
    )
