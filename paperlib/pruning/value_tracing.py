"""Recording networks whose code asks for sizes, with torch.fx and an example input on the meta device.

torch.fx alone cannot follow `if x.shape[2] > 7:` or `for part in x.split(8, 1):`. Here every stand-in knows the shape
of the tensor that it stands for, and sizes are numbers that know where they come from, so that such code runs; nothing
is computed. The recorded graph has the same form.
"""

import builtins
import copy
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from paperlib.pruning.code_sizes import Place, mark_sizes
from paperlib.pruning.functional_calls import call_layers
from paperlib.pruning.fx_ops import execute_node
from paperlib.pruning.tracing import (
    MOST_ARGUMENTS,
    PartsProxy,
    Tracer,
    inlined_scripts,
    leaf_modules,
    prepare_method,
    trace_graph,
)
from paperlib.structure import left_tensors

SIDES = (224, 256, 64, 32)
"""Sides in pixels of the images that are tried if none is given: one that divides evenly by many windows first."""

_SETTINGS = 64
"""The most values of a tensor that counts as a setting."""
_MODULE_METHODS = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__")}


def record_network(module: nn.Module, *, training: bool = False, example_inputs: Any = None) -> fx.Graph:
    """Record what `module` computes: without values if torch.fx can follow it, else with those of an example input.

    Args:
        module: the network, which is not changed.
        training: record its training mode.
        example_inputs: a tensor, or a tuple of arguments; by default a square image.

    Raises:
        ValueError: neither can follow the network; the module in which torch.fx stopped is named.
    """
    try:
        return call_layers(_trace_symbols(module, training), module)
    except ValueError:  # the first reason is reported
        graph = record_with_values(module, training=training, example_inputs=example_inputs)
        if graph is None:
            raise
        return graph


def record_with_values(module: nn.Module, *, training: bool = False, example_inputs: Any = None) -> fx.Graph | None:
    """Record what `module` computes from an example input, as `record_network`; None if it accepts none of them."""
    for inputs in _possible_inputs(module, example_inputs):
        with suppress(Exception):  # a network of one's own may raise anything
            return call_layers(_trace_values(module, inputs, training), module)
    return None


def _trace_symbols(module: nn.Module, training: bool) -> fx.Graph:
    """Record `module` without values; in training mode optional arguments, such as targets, may be needed."""
    try:
        return trace_graph(module, training=training)
    except ValueError:
        if not training:
            raise
        return trace_graph(module, training=True, arguments=MOST_ARGUMENTS)


class ValueTracer(Tracer):
    """Records a module with stand-ins that know the shape of what they stand for.

    Args:
        leaves: the `id` of each module that is recorded as one node.
        root: the module, on the meta device.
        inputs: its arguments.
    """

    def __init__(self, leaves: Container[int], root: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__(leaves)
        self.root_modules = dict(root.named_modules())
        self.inputs = list(inputs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the stand-in for the result of a node."""
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **options: Any) -> Any:
        """Record a node; return what stands for its value."""
        proxy = super().create_proxy(kind, target, args, kwargs, *others, **options)
        with _untraced_modules():
            value = self.inputs.pop(0) if kind == "placeholder" else self._execute(proxy.node)
        proxy.node.meta["value"] = value
        return self._stand_in(proxy, value)

    def _stand_in(self, proxy: fx.Proxy, value: Any) -> Any:
        if isinstance(value, Tensor):
            return proxy
        if isinstance(value, tuple | list):
            parts = [self.create_proxy("call_function", operator.getitem, (proxy, k), {}) for k in range(len(value))]
            return tuple(parts) if isinstance(value, torch.Size) else type(value)(parts)
        return SizeProxy(value, proxy) if type(value) is int else value

    def create_arg(self, a: Any) -> Any:
        """Turn an argument of a call into one of a node."""
        if type(a) is SizeProxy:
            return a.proxy.node
        return a.node if isinstance(a, ValueProxy) else super().create_arg(a)

    def _execute(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._value_of(node)
        values: dict[fx.Node, Any] = {}
        map_arg((node.args, node.kwargs), lambda each: values.setdefault(each, self._value_of(each)))
        return execute_node(node, self.root_modules, values)

    def _value_of(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            return node.meta["value"]
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value


class ValueProxy(PartsProxy):
    """A stand-in for a tensor of known shape."""

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self.node.meta["value"], name)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(len(self))])  # pyright: ignore[reportIndexIssue]

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __bool__(self) -> bool:
        return bool(self.node.meta["value"])


class SizeProxy(int):
    """A whole number, such as a size, that knows which node has computed it; sums and products are recorded, too."""

    proxy: fx.Proxy

    def __new__(cls, value: int, proxy: fx.Proxy) -> "SizeProxy":
        """Return the number."""
        number = super().__new__(cls, value)
        number.proxy = proxy
        return number

    def __float__(self) -> float:
        """Return the number for a function such as `math.sqrt`; the channels that are counted are held."""
        return operator.mul(self, 1.0)


def _recorded(operation: Callable[..., Any], reverse: bool) -> Callable[[SizeProxy, Any], Any]:
    def method(number: SizeProxy, other: Any) -> Any:
        if isinstance(other, fx.Proxy):
            return NotImplemented  # the tensor records it
        pair, tracer = (other, number) if reverse else (number, other), number.proxy.tracer
        if operation in _WHOLE and isinstance(other, int):
            return tracer.create_proxy("call_function", operation, pair, {})
        # Where the result goes is not known, so the channels that are counted are held.
        tracer.create_proxy("call_function", float, (number,), {})
        return operation(*(int(each) if type(each) is SizeProxy else each for each in pair))

    return method


_WHOLE = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)
for _operation in (*_WHOLE, operator.truediv, operator.pow):
    setattr(SizeProxy, f"__{_operation.__name__}__", _recorded(_operation, reverse=False))
    setattr(SizeProxy, f"__r{_operation.__name__}__", _recorded(_operation, reverse=True))


def _trace_values(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> fx.Graph:
    """Record `module` with the shapes of `inputs`; what was only asked of shapes is left out."""
    traced = _meta_copy(module).train(training)
    # The leaves are chosen by trying some, which the meta device cannot.
    leaf_layers = set(leaf_modules(module))
    leaves: set[int] = set()
    computed_with: set[Place] = set()
    for name, layer in module.named_modules():
        if layer in leaf_layers:
            leaves.add(id(traced.get_submodule(name)))
        else:
            mark_sizes(traced.get_submodule(name), name, computed_with)
    tracer = ValueTracer(leaves, traced, tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs))
    tracer.traced_func_name = prepare_method(traced, getattr(module, "traced_method", "forward"), len(inputs))
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        torch.device("meta"),
        _passing_for_tensors(),
        inlined_scripts(),
    ):
        warnings.simplefilter("ignore")
        graph = tracer.trace(traced)
    for node in reversed(graph.nodes):
        tensors = [leaf for leaf in tree_leaves(node.meta.get("value")) if isinstance(leaf, Tensor)]
        called = node.op in ("call_function", "call_method") and node.target not in (float, operator.setitem)
        if called and not node.users and not tensors:
            graph.erase_node(node)
    return graph


@contextmanager
def _passing_for_tensors() -> Iterator[None]:
    """Let stand-ins pass for tensors where Python code asks for their type inside the block.

    Not by their `__class__`, which would deceive compiled code, too: it would read the memory of a tensor.
    """
    plain, example = builtins.isinstance, torch.empty(0)

    def check(value: Any, kinds: Any) -> bool:
        return plain(value, kinds) or (type(value) is ValueProxy and plain(example, kinds))

    builtins.isinstance = check
    try:
        yield
    finally:
        builtins.isinstance = plain


@contextmanager
def _untraced_modules() -> Iterator[None]:
    """Give modules their own methods inside the block; torch.fx replaces them while it traces."""
    traced = {name: getattr(nn.Module, name) for name in _MODULE_METHODS}
    for name, method in _MODULE_METHODS.items():
        setattr(nn.Module, name, method)
    try:
        yield
    finally:
        for name, method in traced.items():
            setattr(nn.Module, name, method)


def _meta_copy(module: nn.Module) -> nn.Module:
    """Copy a network to the meta device without its hooks.

    Small tensors in attributes, such as the strides of a detector, keep their values: code may read numbers from them.
    """
    memo: dict[int, Any] = {}
    for tensor in left_tensors(module.modules()):
        memo[id(tensor)] = tensor.detach().clone() if tensor.numel() <= _SETTINGS else tensor.detach().to("meta")
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for part in module.modules():
        memo |= {id(hooks): OrderedDict() for hooks in (part._forward_hooks, part._forward_pre_hooks)}
    return copy.deepcopy(module, memo)


def _possible_inputs(module: nn.Module, example_inputs: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the given inputs, or else images of several sizes."""
    if example_inputs is not None:
        yield example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        return
    first = next((layer for layer in module.modules() if isinstance(layer, _ConvNd)), None)
    if first is not None:
        shape = len(first.kernel_size)
        for channels in dict.fromkeys((first.in_channels, 3)):
            for side in SIDES:
                yield (torch.empty((2, channels, *[side] * shape), dtype=first.weight.dtype, device="meta"),)
