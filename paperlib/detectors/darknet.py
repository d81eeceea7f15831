"""Official Darknet weights files: a short header, then every layer's float32 values in the network's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WIDE_HEADER_BYTES, NARROW_HEADER_BYTES = 20, 16
VALUE_BYTES = 4


def load_darknet_weights(detector: nn.Module, path: str | Path) -> None:
    """Fill a detector with a Darknet `.weights` file; the detector is untouched if the file does not fit.

    Args:
        detector: one whose modules stand in the order of the official configuration.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another number of values than the detector; both counts are named.
    """
    body = _without_header(Path(path).read_bytes())
    slots = list(_slots(detector))
    expected = sum(slot.numel() for slot in slots)
    if len(body) != VALUE_BYTES * expected:
        whole, rest = divmod(len(body), VALUE_BYTES)
        held = f"{whole} float32 values" + (f" and {rest} bytes of another" if rest else "")
        raise ValueError(f"{path}: holds {held}; {type(detector).__name__} needs {expected}")
    values = np.frombuffer(body, dtype="<f4").astype(np.float32)
    start = 0
    with torch.no_grad():
        for slot in slots:
            piece = values[start : start + slot.numel()]
            slot.copy_(torch.from_numpy(piece).view_as(slot))
            start += slot.numel()


def _without_header(content: bytes) -> bytes:
    """Drop the header: three int32 of version and a count of images, which is 64 bits wide from version 0.2 on."""
    major, minor = (int.from_bytes(content[at : at + 4], "little", signed=True) for at in (0, 4))
    return content[WIDE_HEADER_BYTES if 10 * major + minor >= 2 else NARROW_HEADER_BYTES :]


def _slots(detector: nn.Module) -> Iterator[Tensor]:
    """The tensors of each convolution in file order: biases (or BN's beta, gamma, mean, variance), weights."""
    modules = list(detector.modules())
    for module, follower in zip(modules, [*modules[1:], None], strict=True):
        if not isinstance(module, nn.Conv2d):
            continue
        if isinstance(follower, nn.BatchNorm2d):
            yield from (follower.bias, follower.weight, follower.running_mean, follower.running_var)
        elif module.bias is not None:
            yield module.bias
        yield module.weight
