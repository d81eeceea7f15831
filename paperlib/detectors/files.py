"""Detector files: one safetensors file whose metadata describes the structure, pruned shapes included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from paperlib.detectors import build_without_weights
from paperlib.detectors.base import Detector
from paperlib.files import replace_file
from paperlib.pairs import require_saveable
from paperlib.structure import describe_structure

FORMAT = "paperlib-detector-1"


def save_detector(detector: nn.Module, path: str | Path) -> None:
    """Write weights and structure to one `.safetensors` file, atomically; equal detectors give equal files.

    Raises:
        ValueError: the detector has partners (see `paperlib.partners`), or was not made by `build_detector` or
            `load_detector`, so that no file could describe it; nothing is written.
    """
    path = Path(path)
    require_saveable(detector)
    build_arguments = getattr(detector, "build_arguments", None)
    if build_arguments is None:
        raise ValueError(f"{type(detector).__name__} was not made by build_detector or load_detector")
    metadata = {
        "format": FORMAT,
        "build": json.dumps(build_arguments),
        "structure": json.dumps(describe_structure(detector)),
    }
    metadata["seal"] = _checksum(metadata)
    tensors = {name: value.contiguous().cpu() for name, value in detector.state_dict().items()}
    with replace_file(path) as partial:
        partial.write_bytes(_with_sorted_metadata(save(tensors, metadata)))


def load_detector(path: str | Path) -> Detector:
    """Load a detector, pruned shapes included, in evaluation mode; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not a detector of this package, its tensors do not fit its structure, or
            its metadata was edited.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such detector file")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            # Cloned, because safe_open returns views into the file.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: its metadata does not say {FORMAT!r}; it is no detector of this package")
    try:
        detector = build_without_weights(**json.loads(metadata["build"]), structure=json.loads(metadata["structure"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its structure cannot be rebuilt ({error})") from error
    _check_tensors(tensors, detector.state_dict(), path)
    if metadata.get("seal") != _checksum(metadata):
        raise ValueError(f"{path}: its structure was edited after it was written (the seal does not fit)")
    detector.load_state_dict(tensors, assign=True)
    return detector.eval()


def _with_sorted_metadata(content: bytes) -> bytes:
    """Return the bytes of a safetensors file with sorted metadata; the library writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _checksum(metadata: Mapping[str, str]) -> str:
    """Return a digest that shows edits which leave every tensor's shape alone: of anchors, a split, a bypass."""
    return hashlib.sha256(f"{metadata['build']}\n{metadata['structure']}".encode()).hexdigest()


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    if odd := sorted(expected.keys() ^ tensors.keys()):
        fault = "missing" if odd[0] in expected else "not part of the detector"
        raise ValueError(f"{path}: tensor {odd[0]} is {fault}")
    for name, value in tensors.items():
        found, wanted = (f"{t.dtype} {list(t.shape)}" for t in (value, expected[name]))
        if value.shape != expected[name].shape or value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{path}: tensor {name} is {found}, its structure says {wanted}")
