"""Reader of official Darknet weights files: a short header, then every layer's float32 values in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WIDE_HEADER_BYTES, NARROW_HEADER_BYTES = 20, 16
VALUE_BYTES = 4


def load_darknet_weights(detector: nn.Module, path: str | Path) -> None:
    """Load a Darknet `.weights` file into a detector; the detector is unchanged if the file does not fit.

    Args:
        detector: its modules have the order of the official configuration.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: file and detector have different numbers of values; both are named.
    """
    body = _without_header(Path(path).read_bytes())
    tensors = list(_tensors_in_file_order(detector))
    expected = sum(tensor.numel() for tensor in tensors)
    if len(body) != VALUE_BYTES * expected:
        whole, rest = divmod(len(body), VALUE_BYTES)
        held = f"{whole} float32 values" + (f" and {rest} bytes of another" if rest else "")
        raise ValueError(f"{path}: holds {held}; {type(detector).__name__} needs {expected}")
    values = np.frombuffer(body, dtype="<f4").astype(np.float32)
    pieces = torch.from_numpy(values).split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _without_header(content: bytes) -> bytes:
    """Drop the header: three int32 of version and a count of images, which is 64 bits wide from version 0.2 on."""
    major, minor = (int.from_bytes(content[at : at + 4], "little", signed=True) for at in (0, 4))
    return content[WIDE_HEADER_BYTES if 10 * major + minor >= 2 else NARROW_HEADER_BYTES :]


def _tensors_in_file_order(detector: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of each convolution: bias (or batch norm's beta, gamma, mean, variance), then weights."""
    modules = list(detector.modules())
    for module, next_module in zip(modules, [*modules[1:], None], strict=True):
        if not isinstance(module, nn.Conv2d):
            continue
        if isinstance(next_module, nn.BatchNorm2d):
            found = (next_module.bias, next_module.weight, next_module.running_mean, next_module.running_var)
        else:
            found = (module.bias,)
        yield from (tensor for tensor in (*found, module.weight) if tensor is not None)
