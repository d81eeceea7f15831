"""Official Darknet weights files: a short header, then every layer's float32 values in the network's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WIDE_HEADER_BYTES, NARROW_HEADER_BYTES = 20, 16


def load_darknet_weights(detector: nn.Module, path: str | Path) -> None:
    """Fill a detector with a Darknet `.weights` file; the detector is untouched if the file does not fit.

    Args:
        detector: one whose modules stand in the order of the official configuration.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another number of values than the detector; both counts are named.
    """
    values = _read_values(Path(path))
    slots = list(_slots(detector))
    expected = sum(slot.numel() for slot in slots)
    if len(values) != expected:
        raise ValueError(f"{path}: holds {len(values)} float32 values, {type(detector).__name__} needs {expected}")
    start = 0
    with torch.no_grad():
        for slot in slots:
            piece = values[start : start + slot.numel()]
            slot.copy_(torch.from_numpy(piece).view_as(slot))
            start += slot.numel()


def _read_values(path: Path) -> np.ndarray:
    content = path.read_bytes()
    if len(content) < WIDE_HEADER_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes are too few for a Darknet weights file")
    major, minor = np.frombuffer(content, dtype="<i4", count=2)
    header = WIDE_HEADER_BYTES if major * 10 + minor >= 2 else NARROW_HEADER_BYTES
    body = content[header:]
    if len(body) % 4:
        raise ValueError(f"{path}: ends in the middle of a value, after {len(body) // 4} whole float32 values")
    return np.frombuffer(body, dtype="<f4").copy()


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
