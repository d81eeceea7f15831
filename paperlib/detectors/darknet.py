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
        ValueError: file and detector have different numbers of values, both are named; or its values are no weights
            (NaN, infinite, a negative variance).
    """
    path = Path(path)
    expected = sum(tensor.numel() for tensor in _slots(detector))
    with path.open("rb") as opened:
        header = _header_bytes(opened.read(WIDE_HEADER_BYTES))
    # Before anything is read into memory: the file may be of any size.
    whole, rest = divmod(max(0, path.stat().st_size - header), VALUE_BYTES)
    if (whole, rest) != (expected, 0):
        held = f"{whole} float32 values" + (f" and {rest} bytes of another" if rest else "")
        raise ValueError(f"{path}: holds {held}; {type(detector).__name__} needs {expected}")
    values = np.frombuffer(path.read_bytes()[header:], dtype="<f4").astype(np.float32)
    named = list(_named_slots(detector))
    pieces = torch.from_numpy(values).split([tensor.numel() for _, tensor in named])
    for (name, _), piece in zip(named, pieces, strict=True):
        if fault := find_fault(name, piece):
            raise ValueError(f"{path}: {fault}")
    # A second loop, because the detector must stay unchanged if any piece has a fault.
    with torch.no_grad():
        for (_, tensor), piece in zip(named, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def find_fault(name: str, value: Tensor) -> str | None:
    """Return why values cannot be those of a working detector, in a clause; None if they can."""
    if not value.is_floating_point():
        return None
    if not bool(torch.isfinite(value).all()):
        return f"{name} holds NaN or infinite values; the training that wrote them diverged"
    if name.endswith("running_var") and bool((value < 0).any()):
        return f"{name} holds negative variances"
    return None


def _header_bytes(start: bytes) -> int:
    """Return the length of the header: three int32 of version and a count of images, 64 bits wide from version 0.2."""
    major, minor = (int.from_bytes(start[at : at + 4], "little", signed=True) for at in (0, 4))
    return WIDE_HEADER_BYTES if 10 * major + minor >= 2 else NARROW_HEADER_BYTES


def _slots(detector: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in the order of the file."""
    for _, tensor in _named_slots(detector):
        yield tensor


def _named_slots(detector: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of each convolution: bias (or batch norm's beta, gamma, mean, variance), then weights."""
    modules = list(detector.named_modules())
    for (name, module), (next_name, next_module) in zip(modules, [*modules[1:], ("", None)], strict=True):
        if not isinstance(module, nn.Conv2d):
            continue
        found: dict[str, Tensor | None] = {f"{name}.bias": module.bias}
        # ConvBlock registers its batch norm right after its convolution; an output convolution has none.
        if isinstance(next_module, nn.BatchNorm2d):
            keys = ("bias", "weight", "running_mean", "running_var")
            found = {f"{next_name}.{key}": getattr(next_module, key) for key in keys}
        found[f"{name}.weight"] = module.weight
        for place, tensor in found.items():
            if tensor is not None:
                yield place, tensor
