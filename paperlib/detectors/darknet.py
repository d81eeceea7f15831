"""Reader of Darknet weights files: a short header, then every layer's float32 values in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.detectors.foreign import refuse_foreign

WIDE_HEADER_BYTES, NARROW_HEADER_BYTES = 20, 16
VALUE_BYTES = 4


def load_darknet_weights(detector: nn.Module, path: str | Path) -> None:
    """Load a Darknet `.weights` file into a detector; the detector is unchanged if the file does not fit.

    Ports of Darknet write a header of another length than its version says; where only that length fits, it is taken.

    Args:
        detector: its modules have the order of the official configuration.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: file and detector have different numbers of values, both are named; its values are no weights (NaN,
            infinite, a negative variance); or another program wrote it.
    """
    path = Path(path)
    expected = count_values(detector)
    # Before anything is read into memory: the file may be of any size.
    header = find_header(path, lambda length: length == VALUE_BYTES * expected)
    if header is None:
        raise ValueError(f"{path}: holds {_describe_length(path)}; {type(detector).__name__} needs {expected}")
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


def count_values(detector: nn.Module) -> int:
    """Return how many values a Darknet file of this detector has."""
    return sum(tensor.numel() for tensor in _slots(detector))


def find_header(path: Path, fits: Callable[[int], bool]) -> int | None:
    """Return the length of a file's header in bytes, such that what follows fits; None if nothing does.

    A header has three int32 of version and a count of images, of 64 bits from version 0.2.

    Args:
        path: the file.
        fits: whether so many bytes of values can belong to the detector.

    Raises:
        ValueError: another program wrote the file.
    """
    refuse_foreign(path, safetensors=False)
    start, length = _read_start(path), path.stat().st_size
    usual = _usual_header(start)
    if fits(length - usual):
        return usual
    other = WIDE_HEADER_BYTES + NARROW_HEADER_BYTES - usual
    # The upper half of a 64-bit count is zero, what a file begins with that lacks it is not: a file that has the
    # usual header, and was cut or lengthened by one value, is not taken for one with the other header.
    count_is_wide = start[NARROW_HEADER_BYTES:] == bytes(VALUE_BYTES)
    return other if fits(length - other) and count_is_wide == (other == WIDE_HEADER_BYTES) else None


def _read_start(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(WIDE_HEADER_BYTES)


def _version(start: bytes) -> tuple[int, int]:
    major, minor = (int.from_bytes(start[at : at + 4], "little", signed=True) for at in (0, 4))
    return major, minor


def _usual_header(start: bytes) -> int:
    major, minor = _version(start)
    return WIDE_HEADER_BYTES if 10 * major + minor >= 2 else NARROW_HEADER_BYTES


def _describe_length(path: Path) -> str:
    start = _read_start(path)
    header = _usual_header(start)
    count, rest = divmod(max(0, path.stat().st_size - header), VALUE_BYTES)
    major, minor = _version(start)
    part = f" and {rest} bytes of another" if rest else ""
    return f"{count} float32 values{part} after a header of {header} bytes (version {major}.{minor})"


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
