"""Single layers reduced to chosen channels."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from paperlib.structure.copies import shallow_copy
from paperlib.structure.shapes import ChannelSplit, Shape, assign_tensor, channel_tensors, set_counts


def select_channels(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> nn.Module:
    """Copy `layer` with only the channels at the given positions (ascending int64 vectors).

    For a depthwise convolution, a batch norm, a split and a bypass, `inputs` and `outputs` are the same positions. A
    grouped convolution keeps equally many channels in each group, unless it `cuts_whole_groups`.
    """
    new = shallow_copy(layer)
    for key, tensor in channel_tensors(layer).items():
        assign_tensor(new, key, _select_slices(layer, tensor, inputs, outputs))
    set_counts(new, _selected_shape(layer, inputs, outputs))
    return new


def select_values(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Copy a parameter or buffer with only the values at the given positions (an int64 vector) of one axis."""
    kept = tensor.detach().index_select(dim, positions.to(tensor.device))
    return nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept


def cuts_whole_groups(conv: _ConvNd) -> bool:
    """Tell whether a convolution loses whole groups: each has a single input or output, as in a depthwise one."""
    return conv.groups > 1 and conv.groups in (conv.in_channels, conv.out_channels)


def _selected_shape(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> Shape:
    match layer:
        case _ConvNd():
            whole = cuts_whole_groups(layer)
            groups = len(outputs) * layer.groups // layer.out_channels if whole else layer.groups
            return {"in": len(inputs), "out": len(outputs), "groups": groups}
        case nn.Linear():
            return {"in": len(inputs), "out": len(outputs)}
        case _BatchNorm() | _InstanceNorm() | nn.PReLU():
            return {"channels": len(outputs)}
        case nn.GroupNorm():
            return {"channels": len(outputs), "groups": len(outputs) * layer.num_groups // layer.num_channels}
        case ChannelSplit():
            # A channel belongs to the first part that ends beyond its position.
            part = torch.bucketize(inputs.cpu(), torch.tensor(layer.sizes).cumsum(0), right=True)
            return {"sizes": torch.bincount(part, minlength=len(layer.sizes)).tolist()}
    return {}


def _select_slices(layer: nn.Module, tensor: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Copy only the chosen channels of `tensor`, a parameter or buffer of `layer`; its memory format is kept."""
    tensor = tensor.detach()
    if tensor.dim() == 1:
        return tensor.index_select(0, outputs.to(tensor.device))
    # The weight of a transposed convolution is [in, out/groups, h, w], any other [out, in/groups, h, w].
    rows, columns = (inputs, outputs) if isinstance(layer, _ConvTransposeNd) else (outputs, inputs)
    rows, columns = rows.to(tensor.device), columns.to(tensor.device)
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, _ConvNd) and groups > 1 and not cuts_whole_groups(layer):
        return _select_in_groups(tensor, groups, rows, columns)
    if groups > 1 or len(columns) == tensor.shape[1]:
        return tensor.index_select(0, rows).contiguous(memory_format=_memory_format(tensor))
    if tensor.shape[2:].numel() == 1 or not tensor.is_contiguous():
        kept = tensor.index_select(0, rows).index_select(1, columns)
        return kept.contiguous(memory_format=_memory_format(tensor))
    # The weights of one kernel are contiguous: selecting kernel by kernel copies once and takes half the time.
    selected = (rows[:, None] * tensor.shape[1] + columns).flatten()
    return tensor.flatten(0, 1).index_select(0, selected).unflatten(0, (len(rows), len(columns)))


def _select_in_groups(tensor: Tensor, groups: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Copy the kernels [R, C / groups, ...] at the given rows and columns, equally many of each group."""
    grouped = tensor.unflatten(0, (groups, -1))
    firsts = torch.arange(groups, device=tensor.device)[:, None]
    own_rows = rows.view(groups, -1) - firsts * grouped.shape[1]
    own_columns = columns.view(groups, -1) - firsts * grouped.shape[2]
    kept = grouped[firsts[:, :, None], own_rows[:, :, None], own_columns[:, None, :]]
    return kept.flatten(0, 1).contiguous(memory_format=_memory_format(tensor))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format
