"""Detectors on disk: one safetensors file whose metadata holds the structure, so pruned shapes travel along."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from paperlib.detectors import build_detector
from paperlib.files import replacing
from paperlib.structure import describe

FORMAT = "paperlib-detector-1"


def save_detector(detector: nn.Module, path: str | Path) -> None:
    """Write weights and structure to one `.safetensors` file, whole or not at all."""
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "build": json.dumps(detector.build_arguments),
        "structure": json.dumps(describe(detector)),
    }
    tensors = {name: value.contiguous().cpu() for name, value in detector.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_detector(path: str | Path) -> nn.Module:
    """Rebuild a detector, pruned shapes included; nothing is unpickled. It comes in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, is no detector of this package, or its tensors do not fit its structure.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such detector file")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: its metadata does not say {FORMAT!r}; it is no detector of this package")
    try:
        detector = build_detector(**json.loads(metadata["build"]), structure=json.loads(metadata["structure"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its structure cannot be rebuilt ({error})") from error
    _fill(detector, tensors, path)
    return detector.eval()


def _fill(detector: nn.Module, tensors: dict, path: Path) -> None:
    own = detector.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        raise ValueError(f"{path}: tensor {name} is {'missing' if name in own else 'not part of the detector'}")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{path}: tensor {name} is {list(value.shape)}, its structure says {list(own[name].shape)}"
            )
    detector.load_state_dict(tensors)
