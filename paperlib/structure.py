"""The channel counts of a network as plain data, so that pruned shapes travel with their weights.

Knows only torch.nn. `describe` reads the shapes of a module, `reshape_` gives them to another module of the
same architecture, `select_channels` cuts one layer down to chosen channels. `Bypass` stands where a block was.
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Structure = dict[str, dict[str, Any]]

_FIELDS = {
    "conv": {"in", "out", "groups"},
    "linear": {"in", "out"},
    "norm": {"channels"},
    "split": {"sizes"},
    "bypass": {"shift", "after"},
}


class ChannelSplit(nn.Module):
    """Splits [B, sum(sizes), H, W] on the channel axis into parts of `sizes` channels.

    A module rather than a call of `torch.split`, so that pruning can change the sizes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(int(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"split sizes {list(self.sizes)} are not all at least 1")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split `x`, shape [B, sum(sizes), H, W], into one tensor per size."""
        return torch.split(x, list(self.sizes), dim=1)

    def extra_repr(self) -> str:
        """Name the sizes when the module is printed."""
        return f"sizes={list(self.sizes)}"


class Bypass(nn.Module):
    """What is left of a removed residual block: `after(x + shift)` of [B, C, H, W].

    Args:
        block: the block, which is only read.
        after: name in `block` of the activation after its addition; None if there is none.
        shift: [C], what the branch of the block adds to every pixel; None if nothing.

    Raises:
        ValueError: `after` is not the name of a module in `block`, or that of a layer with channels.
    """

    def __init__(self, block: nn.Module, after: str | None, shift: Tensor | None = None) -> None:
        super().__init__()
        self.after_name = after
        self.after = None if after is None else _activation_of(block, after)
        self.shift = None if shift is None else nn.Parameter(shift.detach().clone())
        self.train(block.training)

    def initialise_weights(self) -> None:
        """Fresh weights: no shift."""
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        if self.shift is not None:
            x = x + self.shift.view(-1, 1, 1)
        return x if self.after is None else self.after(x)


def describe(module: nn.Module) -> Structure:
    """The channel counts of every layer of `module` that has some, by name in `named_modules()`.

    Conv2d and ConvTranspose2d give in, out, groups; Linear gives in, out; batch norm gives channels;
    ChannelSplit gives sizes; Bypass gives shift (its channel count, 0 without one) and after. The result is
    JSON-able and is what `reshape_` takes.
    """
    return {name: _shape_of(layer) for name, layer in module.named_modules() if _kind(layer) is not None}


def reshape_(module: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the layers of `module` the channel counts of `structure`, in place.

    A tensor whose shape changes becomes zeros of the new shape (same dtype, device, requires_grad), to be
    filled by `load_state_dict`; a tensor that already fits keeps its values. A block for which `structure` has
    a bypass is replaced by it.

    Raises:
        ValueError: a layer of `structure` is unknown, one of `module` is missing, or an entry does not fit
            its layer. Nothing has been changed then.
    """
    bypasses = _bypasses(module, structure)
    present = {name: shape for name, shape in describe(module).items() if not _inside(name, bypasses)}
    structure = {name: shape for name, shape in structure.items() if name not in bypasses}
    if unknown := sorted(structure.keys() - present.keys()):
        raise ValueError(f"structure names layers that do not exist: {', '.join(unknown)}")
    if missing := sorted(present.keys() - structure.keys()):
        raise ValueError(f"structure does not name these layers: {', '.join(missing)}")
    for name, shape in structure.items():
        _check_shape(name, module.get_submodule(name), shape)
    for name, shape in structure.items():
        _resize(module.get_submodule(name), shape)
    for name, bypass in bypasses.items():
        module.set_submodule(name, bypass, strict=True)


def select_channels(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> nn.Module:
    """A copy of `layer` with the channels at the given positions alone (ascending int64 vectors).

    For a depthwise convolution, a batch norm, a split and a bypass, `inputs` and `outputs` are the same positions.
    """
    shape, own = _shape_of(layer), _tensors(layer)
    layer = shallow_copy(layer)
    match _kind(layer):
        case "conv" if layer.groups == 1:
            shape.update({"in": len(inputs), "out": len(outputs)})
        case "conv":
            shape.update({"in": len(inputs), "out": len(outputs), "groups": len(outputs)})
        case "linear":
            shape.update({"in": len(inputs), "out": len(outputs)})
        case "norm":
            shape.update({"channels": len(outputs)})
        case "split":
            part = torch.bucketize(inputs.cpu(), torch.tensor(layer.sizes).cumsum(0), right=True)
            shape.update({"sizes": torch.bincount(part, minlength=len(layer.sizes)).tolist()})
    for key, tensor in own.items():
        _assign(layer, key, _slice(layer, tensor, inputs, outputs))
    _set_counts(layer, shape)
    return layer


def shallow_copy(layer: nn.Module) -> nn.Module:
    """A copy of one layer, much faster than a deep one: it shares the tensors that have a channel axis."""
    new = copy.copy(layer)
    # torch.nn keeps parameters, buffers, submodules and hooks in such containers.
    vars(new).update({key: value.copy() for key, value in vars(layer).items() if isinstance(value, dict | set)})
    new._modules = {name: copy.deepcopy(module) for name, module in layer.named_children()}
    new._buffers.update({name: b.clone() for name, b in layer.named_buffers(recurse=False) if b.dim() == 0})
    return new


def _slice(layer: nn.Module, tensor: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """A copy of `tensor` with the chosen channels alone."""
    transposed = isinstance(layer, nn.ConvTranspose2d) and tensor.dim() > 1
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    tensor, rows, columns = tensor.detach(), rows.to(tensor.device), columns.to(tensor.device)
    if tensor.dim() == 1 or getattr(layer, "groups", 1) > 1 or len(columns) == tensor.shape[1]:
        return tensor.index_select(0, rows)
    if tensor.shape[2:].numel() == 1 or not tensor.is_contiguous():
        return tensor.index_select(0, rows).index_select(1, columns)
    # Kernels of several weights lie together: picked one by one, they are copied once and twice as fast.
    picked = (rows[:, None] * tensor.shape[1] + columns).flatten()
    return tensor.flatten(0, 1).index_select(0, picked).unflatten(0, (len(rows), len(columns)))


def _kind(layer: nn.Module) -> str | None:
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            return "conv"
        case nn.Linear():
            return "linear"
        case _BatchNorm():
            return "norm"
        case ChannelSplit():
            return "split"
        case Bypass():
            return "bypass"
    return None


def _shape_of(layer: nn.Module) -> dict[str, Any]:
    match _kind(layer):
        case "conv":
            return {"in": layer.in_channels, "out": layer.out_channels, "groups": layer.groups}
        case "linear":
            return {"in": layer.in_features, "out": layer.out_features}
        case "norm":
            return {"channels": layer.num_features}
        case "bypass":
            return {"shift": 0 if layer.shift is None else len(layer.shift), "after": layer.after_name}
    return {"sizes": list(layer.sizes)}


def _set_counts(layer: nn.Module, shape: Mapping[str, Any]) -> None:
    match _kind(layer):
        case "conv":
            layer.in_channels, layer.out_channels, layer.groups = shape["in"], shape["out"], shape["groups"]
        case "linear":
            layer.in_features, layer.out_features = shape["in"], shape["out"]
        case "norm":
            layer.num_features = shape["channels"]
        case "split":
            layer.sizes = tuple(shape["sizes"])


def _bypasses(module: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> dict[str, Bypass]:
    """A bypass for each block of `module` in whose place `structure` has one."""
    blocks = {name: block for name, block in module.named_modules() if name and _kind(block) is None}
    asked = (name for name, shape in structure.items() if isinstance(shape, Mapping) and "shift" in shape)
    return {name: _bypass(name, blocks[name], structure[name]) for name in asked if name in blocks}


def _bypass(name: str, block: nn.Module, shape: Mapping[str, Any]) -> Bypass:
    if set(shape) != _FIELDS["bypass"] or type(shape["shift"]) is not int or shape["shift"] < 0:
        raise ValueError(f"structure of {name}: expected {sorted(_FIELDS['bypass'])}, found {dict(shape)}")
    weight = next(block.parameters(), torch.empty(0))
    try:
        return Bypass(block, shape["after"], weight.new_zeros(shape["shift"]) if shape["shift"] else None)
    except ValueError as error:
        raise ValueError(f"structure of {name}: {error}") from error


def _activation_of(block: nn.Module, name: str) -> nn.Module:
    """A copy of the module of that name that does not work in place, for others read x too."""
    found = dict(block.named_modules()).get(name)
    if not name or found is None or _kind(found) is not None:
        raise ValueError(f"{name!r} is no activation of the block")
    found = copy.deepcopy(found)
    if hasattr(found, "inplace"):
        found.inplace = False
    return found


def _inside(name: str, blocks: Iterable[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _check_shape(name: str, layer: nn.Module, shape: Mapping[str, Any]) -> None:
    kind = _kind(layer)
    if kind == "bypass":
        if shape != _shape_of(layer):
            raise ValueError(f"structure of {name}: the block is bypassed already, by {_shape_of(layer)}")
        return
    if not isinstance(shape, Mapping) or set(shape) != _FIELDS[kind]:
        raise ValueError(f"structure of {name}: expected {sorted(_FIELDS[kind])}, found {shape}")
    counts = shape["sizes"] if kind == "split" else list(shape.values())
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n > 0 for n in counts):
        raise ValueError(f"structure of {name}: {dict(shape)} are not all positive whole numbers")
    if kind == "split" and len(counts) != len(layer.sizes):
        raise ValueError(f"structure of {name}: {len(counts)} split sizes, the layer has {len(layer.sizes)}")
    if kind == "conv" and (shape["in"] % shape["groups"] or shape["out"] % shape["groups"]):
        raise ValueError(f"structure of {name}: {shape['groups']} groups do not divide its channels")


def _resize(layer: nn.Module, shape: Mapping[str, Any]) -> None:
    for key, tensor in _tensors(layer).items():
        size = _tensor_size(layer, tensor, shape)
        if tensor.shape != torch.Size(size):
            _assign(layer, key, tensor.new_zeros(size))
    _set_counts(layer, shape)


def _tensor_size(layer: nn.Module, tensor: Tensor, shape: Mapping[str, Any]) -> tuple[int, ...]:
    if tensor.dim() == 1:
        return (shape["channels"] if "channels" in shape else shape["out"],)
    rows, columns = shape["out"], shape["in"]
    if isinstance(layer, nn.ConvTranspose2d):
        rows, columns = columns, rows
    return (rows, columns // shape.get("groups", 1), *tensor.shape[2:])


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `layer` that have a channel axis."""
    own = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    return {key: tensor for key, tensor in own.items() if tensor.dim() > 0}


def _assign(layer: nn.Module, key: str, tensor: Tensor) -> None:
    old = getattr(layer, key)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(layer, key, tensor)


def module_digest(module: nn.Module) -> str:
    """Return the SHA-256 over a module's own settings, such as anchors, and its parameters and buffers by name."""
    settings = {name: value for name, value in vars(module).items() if name != "training" and name[0] != "_"}
    total = hashlib.sha256(f"{type(module).__name__} {sorted(settings.items())}".encode())
    for name, value in module.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
