"""Copies of networks and of single layers, and digests of their values."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MODULE_FIELDS = frozenset(vars(nn.Module()))
"""The attributes that torch.nn itself gives to every module."""
IMMUTABLE = (int, float, str, bool, type(None), torch.dtype, torch.device)
"""Types of settings that a copy may share."""
_CONTAINERS = (dict, set)
"""In such, torch.nn keeps parameters, buffers, submodules and hooks."""
_COPYING = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
"""Methods by which a class decides how it is copied."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _NothingFilled(TorchFunctionMode):
    """A mode in which initialisation does nothing: on the meta device it would be slow and have no effect."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Every function of torch.nn.init used here ends in one of these, and each returns the tensor that it fills.
        fills = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
        return args[0] if func in fills else func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build networks on the meta device inside the block: shapes without values, no random number drawn."""
    with torch.device("meta"), _NothingFilled():
        yield


def shallow_copy(layer: nn.Module) -> nn.Module:
    """Copy one layer much faster than `deepcopy`: the copy shares the tensors that have a channel axis."""
    new = type(layer).__new__(type(layer))
    vars(new).update(
        {key: value.copy() if isinstance(value, _CONTAINERS) else value for key, value in vars(layer).items()}
    )
    if layer._modules:
        new._modules = copy.deepcopy(layer._modules)
    new._buffers |= {name: b.clone() for name, b in layer._buffers.items() if b is not None and b.dim() == 0}
    return new


def copy_modules(parts: Iterable[nn.Module], memo: dict[int, Any], *, training: bool) -> None:
    """Copy modules much faster than `deepcopy`, and without their hooks, into `memo`.

    Args:
        parts: the modules.
        memo: the copy of each tensor or module, by the `id` of the original; what is missing here is shared.
        training: whether the copies are in training mode.
    """
    parts = list(parts)
    memo |= {id(part): type(part).__new__(type(part)) for part in parts}
    for part in parts:
        copied: dict[str, Any] = {}
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules"):
                copied[name] = {key: memo.get(id(each), each) for key, each in value.items()}
            elif name in MODULE_FIELDS:
                copied[name] = value.copy() if isinstance(value, _CONTAINERS) else value
            else:
                copied[name] = value if is_immutable(value) else copy.deepcopy(value, memo)
        copied |= {name: OrderedDict() for name in _HOOKS}
        vars(memo[id(part)]).update(copied, training=training)


def is_immutable(value: Any) -> bool:
    """Tell whether a copy may share a setting, which may be a tuple, such as a kernel size."""
    return type(value) in IMMUTABLE or (type(value) is tuple and all(type(each) in IMMUTABLE for each in value))


def shared_tensors(parts: Iterable[nn.Module]) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` by which copies of modules share their own tensors."""
    parts = list(parts)
    own = (each for part in parts for each in (*part._parameters.values(), *part._buffers.values()))
    return {id(tensor): tensor for tensor in (*own, *left_tensors(parts)) if tensor is not None}


def copy_network(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a network as `deepcopy` does, faster; tensors that its forward methods have left in attributes are shared.

    Args:
        module: the network.
        memo: the copy of each tensor or module that has been copied already, by the `id` of the original.
    """
    parts = [part for part in module.modules() if id(part) not in (memo or {})]
    memo = {id(tensor): tensor.detach() for tensor in left_tensors(parts)} | (memo or {})
    ordinary = [part for part in parts if _is_copied_by_attributes(type(part))]
    memo |= {id(part): type(part).__new__(type(part)) for part in ordinary}
    for part in ordinary:
        vars(memo[id(part)]).update({name: _copy_value(value, memo) for name, value in vars(part).items()})
    return copy.deepcopy(module, memo)


def _is_copied_by_attributes(kind: type[nn.Module]) -> bool:
    """Tell whether `deepcopy` of a module of this class copies its attributes and does nothing else."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    return not any(name in vars(base) for base in bases for name in _COPYING)


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    """Copy an attribute of a module; most are plain settings or empty containers of hooks."""
    if is_immutable(value):
        return value
    return value.copy() if isinstance(value, _CONTAINERS) and not value else copy.deepcopy(value, memo)


def left_tensors(parts: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield the tensors that forward methods have left in attributes; `copy.deepcopy` refuses those with a gradient."""
    for part in parts:
        for name, value in vars(part).items():
            if name not in MODULE_FIELDS and type(value) not in IMMUTABLE:
                yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part)


def module_digest(module: nn.Module) -> str:
    """Return the SHA-256 over a module's own settings, such as anchors, and its parameters and buffers by name."""
    settings = {name: value for name, value in vars(module).items() if name != "training" and name[0] != "_"}
    return tensors_digest(module.state_dict(), f"{type(module).__name__} {sorted(settings.items())}")


def tensors_digest(tensors: Mapping[str, Tensor], heading: str = "") -> str:
    """Return the SHA-256 over a heading and the names, shapes, types and values of tensors, in their order."""
    total = hashlib.sha256(heading.encode())
    for name, value in tensors.items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
