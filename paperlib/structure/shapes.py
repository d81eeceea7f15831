"""The channel counts of a network as plain data, and the modules that pruning adds to one."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Shape = dict[str, Any]
Structure = dict[str, Shape]
"""The shape of each layer, by the layer's name (see `describe_structure`)."""

_BYPASS_FIELDS = {"shift", "after"}


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
    """The replacement of a removed residual block: `after(x + shift)` of [B, C, H, W].

    Args:
        block: the block, which is only read.
        after: name in `block` of the activation after its addition; None if there is none.
        shift: [C], the constant that the branch of the block adds to every pixel; None if it adds nothing.

    Raises:
        ValueError: `after` is not the name of a module in `block`, or that of a layer with channels.
    """

    def __init__(self, block: nn.Module, after: str | None, shift: Tensor | None = None) -> None:
        super().__init__()
        self.after_name = after
        self.after = None if after is None else _copy_activation(block, after)
        self.shift = None if shift is None else nn.Parameter(shift.detach().clone())
        self.train(block.training)

    def initialise_weights(self) -> None:
        """Set the shift to its initial value, zero."""
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        if self.shift is not None:
            x = x + self.shift.view(-1, 1, 1)
        return x if self.after is None else self.after(x)


def describe_structure(module: nn.Module) -> Structure:
    """Return the channel counts of every layer of `module` that has channels, by name in `named_modules()`.

    Convolutions give in, out, groups; Linear gives in, out; batch norm, instance norm and PReLU per channel give
    channels; GroupNorm gives channels, groups; ChannelSplit gives sizes; Bypass gives shift (its channel count, 0
    without one) and after. A module whose code counts channels by attributes that pruning has changed gives attributes,
    and one whose own parameters it has cut gives tensors.
    The result is JSON-able and is what `reshape_` takes.
    """
    shapes = {name: _shape_of(layer) for name, layer in module.named_modules()}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def reshape_(module: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the layers of `module` the channel counts of `structure`, in place.

    A tensor whose shape changes becomes zeros of the new shape (same dtype, device, requires_grad), to be
    filled by `load_state_dict`; a tensor that already fits keeps its values. A block for which `structure` has
    a bypass is replaced by it.

    Raises:
        ValueError: a layer of `structure` is unknown, one of `module` is missing, or an entry does not fit
            its layer. Nothing has been changed then.
    """
    bypasses = _new_bypasses(module, structure)
    in_code = {name: shape for name, shape in structure.items() if _is_in_code(shape)}
    present = {
        name
        for name, shape in describe_structure(module).items()
        if not _is_inside(name, bypasses) and not _is_in_code(shape)
    }
    structure = {name: shape for name, shape in structure.items() if name not in bypasses and name not in in_code}
    if unknown := sorted(structure.keys() - present):
        raise ValueError(f"structure names layers that do not exist: {', '.join(unknown)}")
    # Files written before group norms could be pruned do not name them.
    norms = {name for name in present if isinstance(module.get_submodule(name), nn.GroupNorm)}
    if missing := sorted(present - structure.keys() - norms):
        raise ValueError(f"structure does not name these layers: {', '.join(missing)}")
    for name, shape in structure.items():
        _check_shape(name, module.get_submodule(name), shape)
    modules = dict(module.named_modules())
    for name, shape in in_code.items():
        _check_code_sizes(name, modules.get(name), shape.get("attributes", {}))
        _check_tensors(name, modules.get(name), shape.get("tensors", {}))
    for name, shape in structure.items():
        _resize_layer(module.get_submodule(name), shape)
    for name, shape in in_code.items():
        set_code_sizes(modules[name], shape.get("attributes", {}))
        for key, sizes in shape.get("tensors", {}).items():
            assign_tensor(modules[name], key, getattr(modules[name], key).new_zeros(sizes))
            note_resized(modules[name], key)
    for name, bypass in bypasses.items():
        module.set_submodule(name, bypass, strict=True)


def set_code_sizes(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Set attributes by which the code of a module counts channels; `describe_structure` names them from then on.

    Args:
        module: the module.
        values: for each attribute a number, or the numbers of a list or tuple.
    """
    for name, value in values.items():
        setattr(module, name, type(getattr(module, name))(value) if isinstance(value, list) else value)
    if values:
        module.sizes_in_code = sorted({*vars(module).get("sizes_in_code", ()), *values})  # pyright: ignore


def note_resized(module: nn.Module, key: str) -> None:
    """Note that a module's own parameter or buffer was cut; `describe_structure` names it from then on."""
    module.resized_tensors = sorted({*vars(module).get("resized_tensors", ()), key})  # pyright: ignore


def _is_in_code(shape: Any) -> bool:
    return isinstance(shape, Mapping) and bool(shape.keys() & {"attributes", "tensors"})


def _code_sizes(module: nn.Module) -> Shape | None:
    values = {name: getattr(module, name) for name in vars(module).get("sizes_in_code", ())}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    tensors = {key: list(getattr(module, key).shape) for key in vars(module).get("resized_tensors", ())}
    return {key: found for key, found in (("attributes", plain), ("tensors", tensors)) if found} or None


def _check_code_sizes(name: str, module: nn.Module | None, values: Any) -> None:
    """Check that `values` fit the attributes of a module."""
    fits = module is not None and isinstance(values, Mapping)
    for attribute, value in values.items() if fits else ():
        present = getattr(module, attribute, None)
        given = value if isinstance(value, list) else [value]
        old = present if isinstance(present, list | tuple) else [present]
        counts = all(type(n) is int and n > 0 for n in (*given, *old)) and len(given) == len(old)
        fits = fits and counts and isinstance(value, list) == isinstance(present, list | tuple)
    if not fits:
        raise ValueError(f"structure of {name}: the module has no such sizes: {values}")


def _check_tensors(name: str, module: nn.Module | None, shapes: Any) -> None:
    """Check that `shapes` fit parameters and buffers of a module."""
    for key, sizes in shapes.items() if isinstance(shapes, Mapping) else [("", [])]:
        present = getattr(module, key, None) if key else None
        counts = isinstance(sizes, list) and all(type(n) is int and n > 0 for n in sizes)
        if not (isinstance(present, Tensor) and counts and present.dim() == len(sizes)):
            raise ValueError(f"structure of {name}: the module has no such tensors: {shapes}")


def _shape_of(layer: nn.Module) -> Shape | None:
    """Return the channel counts of one layer; None if it has no channels of its own."""
    match layer:
        case _ConvNd():
            return {"in": layer.in_channels, "out": layer.out_channels, "groups": layer.groups}
        case nn.Linear():
            return {"in": layer.in_features, "out": layer.out_features}
        case _BatchNorm() | _InstanceNorm():
            return {"channels": layer.num_features}
        case nn.GroupNorm():
            return {"channels": layer.num_channels, "groups": layer.num_groups}
        case nn.PReLU() if layer.num_parameters > 1:
            return {"channels": layer.num_parameters}
        case ChannelSplit():
            return {"sizes": list(layer.sizes)}
        case Bypass():
            return {"shift": 0 if layer.shift is None else len(layer.shift), "after": layer.after_name}
    return _code_sizes(layer)


def set_counts(layer: nn.Module, shape: Mapping[str, Any]) -> None:
    """Set the attributes of a layer that name its channel counts."""
    match layer:
        case _ConvNd():
            layer.in_channels, layer.out_channels, layer.groups = shape["in"], shape["out"], shape["groups"]
        case nn.Linear():
            layer.in_features, layer.out_features = shape["in"], shape["out"]
        case _BatchNorm() | _InstanceNorm():
            layer.num_features = shape["channels"]
        case nn.GroupNorm():
            layer.num_channels, layer.num_groups = shape["channels"], shape["groups"]
        case nn.PReLU():
            layer.num_parameters = shape["channels"]
        case ChannelSplit():
            layer.sizes = tuple(shape["sizes"])


def _has_channels(layer: nn.Module) -> bool:
    return _shape_of(layer) is not None and _code_sizes(layer) is None


def _new_bypasses(module: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> dict[str, Bypass]:
    """Make a bypass for each block of `module` that `structure` replaces by one."""
    blocks = {name: block for name, block in module.named_modules() if name and not _has_channels(block)}
    return {
        name: _new_bypass(name, blocks[name], shape)
        for name, shape in structure.items()
        if name in blocks and isinstance(shape, Mapping) and "shift" in shape
    }


def _new_bypass(name: str, block: nn.Module, shape: Mapping[str, Any]) -> Bypass:
    if set(shape) != _BYPASS_FIELDS or type(shape["shift"]) is not int or shape["shift"] < 0:
        raise ValueError(f"structure of {name}: expected {sorted(_BYPASS_FIELDS)}, found {dict(shape)}")
    weight = next(block.parameters(), torch.empty(0))
    try:
        return Bypass(block, shape["after"], weight.new_zeros(shape["shift"]) if shape["shift"] else None)
    except ValueError as error:
        raise ValueError(f"structure of {name}: {error}") from error


def _copy_activation(block: nn.Module, name: str) -> nn.Module:
    """Copy the module of that name. The copy does not work in place, because other modules read its input too."""
    found = dict(block.named_modules()).get(name)
    if not name or found is None or _has_channels(found):
        raise ValueError(f"{name!r} is not an activation of the block")
    found = copy.deepcopy(found)
    if getattr(found, "inplace", False):
        vars(found)["inplace"] = False
    return found


def _is_inside(name: str, blocks: Iterable[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _check_shape(name: str, layer: nn.Module, shape: Mapping[str, Any]) -> None:
    present = _shape_of(layer) or {}
    if isinstance(layer, Bypass):
        if shape != present:
            raise ValueError(f"structure of {name}: the block is bypassed already, by {present}")
        return
    if not isinstance(shape, Mapping) or set(shape) != set(present):
        raise ValueError(f"structure of {name}: expected {sorted(present)}, found {shape}")
    counts = shape["sizes"] if isinstance(layer, ChannelSplit) else list(shape.values())
    # By `type`, because `isinstance` takes True and False for whole numbers.
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n > 0 for n in counts):
        raise ValueError(f"structure of {name}: {dict(shape)} are not all positive whole numbers")
    if isinstance(layer, ChannelSplit) and len(counts) != len(layer.sizes):
        raise ValueError(f"structure of {name}: {len(counts)} split sizes, the layer has {len(layer.sizes)}")
    if "groups" in shape and any(shape[key] % shape["groups"] for key in shape.keys() - {"groups"}):
        raise ValueError(f"structure of {name}: {shape['groups']} groups do not divide its channels")


def _resize_layer(layer: nn.Module, shape: Mapping[str, Any]) -> None:
    for key, tensor in channel_tensors(layer).items():
        size = _tensor_size(layer, tensor, shape)
        if tensor.shape != torch.Size(size):
            assign_tensor(layer, key, tensor.new_zeros(size))
    set_counts(layer, shape)


def _tensor_size(layer: nn.Module, tensor: Tensor, shape: Mapping[str, Any]) -> tuple[int, ...]:
    if tensor.dim() == 1:
        return (shape["channels"] if "channels" in shape else shape["out"],)
    rows, columns = shape["out"], shape["in"]
    if isinstance(layer, _ConvTransposeNd):
        rows, columns = columns, rows
    return (rows, columns // shape.get("groups", 1), *tensor.shape[2:])


def channel_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `layer` that have a channel axis."""
    own = {**layer._parameters, **layer._buffers}
    return {key: tensor for key, tensor in own.items() if tensor is not None and tensor.dim() > 0}


def assign_tensor(layer: nn.Module, key: str, tensor: Tensor) -> None:
    """Set a parameter or buffer of a layer; a parameter keeps its requires_grad."""
    if key in layer._parameters:
        layer._parameters[key] = nn.Parameter(tensor, getattr(layer, key).requires_grad)
    else:
        setattr(layer, key, tensor)
