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
    new = copy.copy(layer)
    # torch.nn keeps parameters, buffers, submodules and hooks in such containers.
    vars(new).update({key: value.copy() for key, value in vars(layer).items() if isinstance(value, dict | set)})
    new._modules = {name: copy.deepcopy(module) for name, module in layer.named_children()}
    new._buffers.update({name: b.clone() for name, b in layer.named_buffers(recurse=False) if b.dim() == 0})
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
        inner: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name, value in vars(part).items():
            (inner if name in MODULE_FIELDS else own)[name] = value
        if any(type(value) not in IMMUTABLE for value in own.values()):
            own = copy.deepcopy(own, memo)
        inner = {name: value.copy() if isinstance(value, dict | set) else value for name, value in inner.items()}
        for name in ("_parameters", "_buffers", "_modules"):
            inner[name] = {key: memo.get(id(each), each) for key, each in vars(part)[name].items()}
        inner |= {name: OrderedDict() for name in _HOOKS}
        vars(memo[id(part)]).update(inner, **own, training=training)


def shared_tensors(module: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` by which a copy of `module` shares its tensors."""
    own = (each for part in module.modules() for each in (*part._parameters.values(), *part._buffers.values()))
    return {id(tensor): tensor for tensor in (*own, *left_tensors(module)) if tensor is not None}


def copy_network(module: nn.Module) -> nn.Module:
    """Copy a network; tensors that its forward methods have left in attributes are shared with the copy."""
    return copy.deepcopy(module, {id(tensor): tensor.detach() for tensor in left_tensors(module)})


def left_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that forward methods have left in attributes; `copy.deepcopy` refuses those with a gradient."""
    for part in module.modules():
        for name, value in vars(part).items():
            if type(value) not in IMMUTABLE and name not in MODULE_FIELDS:
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
