"""Files of networks: one safetensors file whose metadata describes the structure, pruned shapes included."""

from __future__ import annotations

import copy
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from paperlib.detectors import FAMILY
from paperlib.detectors.base import Detector
from paperlib.detectors.darknet import find_fault
from paperlib.detectors.family import Family
from paperlib.detectors.foreign import refuse_foreign
from paperlib.files import replace_file
from paperlib.pairs import require_saveable
from paperlib.structure import describe_structure

LONGEST_STRUCTURE = 10_000_000
"""Characters that describe a structure; the largest networks need some 100,000."""


def save_detector(detector: nn.Module, path: str | Path, *, use: Mapping[str, str] | None = None) -> None:
    """Write weights and structure to one `.safetensors` file, atomically; equal detectors give equal files.

    Args:
        detector: made by `build_detector` or `load_detector`.
        path: the file.
        use: texts that say how the detector is used (see `paperlib.deploy.description`).

    Raises:
        ValueError: the detector has partners (see `paperlib.partners`), or was not made by `build_detector` or
            `load_detector`, so that no file could describe it; nothing is written.
    """
    write_network(detector, path, FAMILY, use=use)


def load_detector(path: str | Path) -> Detector:
    """Load a detector, pruned shapes included, in evaluation mode; nothing is unpickled.

    Weights of 16 bits, which make small files, become float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not a detector of this package, its tensors do not fit its structure, its
            metadata was edited, or its values are not weights (NaN, infinite, a negative variance). Nothing is
            computed and no memory is taken for what a file merely claims.
    """
    detector = read_network(path, FAMILY)
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in detector.parameters())
    return detector.float() if half else detector


def write_network(
    network: nn.Module, path: str | Path, family: Family, *, use: Mapping[str, str] | None = None
) -> None:
    """Write a network of a family as `save_detector` writes a detector.

    Raises:
        ValueError: the network has partners, or was not made by the family's functions; nothing is written.
    """
    require_saveable(network)
    build_arguments = getattr(network, "build_arguments", None)
    if build_arguments is None:
        raise ValueError(
            f"{type(network).__name__} was not made by build_{family.noun} or load_{family.noun}; save_network keeps "
            "the weights and the structure of any network"
        )
    metadata = {"format": family.file_format, "build": json.dumps(build_arguments)}
    write_described(network, path, metadata, use=use)


def write_described(
    network: nn.Module, path: str | Path, metadata: dict[str, str], *, use: Mapping[str, str] | None = None
) -> None:
    """Write weights, structure and metadata to one file, atomically."""
    metadata = {**metadata, "structure": json.dumps(describe_structure(network))}
    if use is not None:
        metadata["use"] = json.dumps(dict(use), ensure_ascii=False, sort_keys=True)
    metadata["seal"] = checksum(metadata)
    # A tensor that several layers share is written for each of them.
    seen: set[int] = set()
    tensors = {}
    for name, value in network.state_dict().items():
        tensors[name] = value.contiguous().cpu().clone() if value.data_ptr() in seen else value.contiguous().cpu()
        seen.add(value.data_ptr())
    with replace_file(Path(path)) as partial:
        partial.write_bytes(_with_sorted_metadata(save(tensors, metadata)))


def read_network(path: str | Path, *families: Family[Any]) -> Any:
    """Load a network of one of the families as `load_detector` loads a detector.

    Raises:
        FileNotFoundError, ValueError: as `load_detector`.
    """
    path = Path(path)
    noun = families[0].noun if len(families) == 1 else "network"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {noun} file")
    refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            by_format = {family.file_format: family for family in families}
            family = by_format.get(metadata.get("format", ""))
            if family is None:
                known = " or ".join(map(repr, by_format))
                raise ValueError(f"{path}: its metadata does not say {known}; it is no {noun} of this package")
            network = _rebuild(path, metadata, family)
            expected = network.state_dict()
            shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}
            _check_shapes(path, shapes, expected, family.noun)
            if metadata.get("seal") != checksum(metadata):
                raise ValueError(f"{path}: its structure was edited after it was written (the seal does not fit)")
            _check_head(path, network, family)
            # Cloned, because safe_open returns views into the file.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({_shorten(error)})") from error
    for name, value in tensors.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{path}: tensor {name} is {value.dtype}, its structure says {expected[name].dtype}")
        if fault := find_fault(name, value):
            raise ValueError(f"{path}: {fault}")
    # Assigned, because the network is on the meta device: it has no memory into which to copy.
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def read_use(path: str | Path) -> dict[str, str]:
    """Return the texts that say how the network of a file is used; empty if there are none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no network of this package, or the texts were edited after they were written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such detector file")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({_shorten(error)})") from error
    if metadata.get("seal") != checksum(metadata):
        raise ValueError(f"{path}: what it says of its use was edited after it was written (the seal does not fit)")
    return json.loads(metadata.get("use", "{}"))


def _rebuild(path: Path, metadata: Mapping[str, str], family: Family[Any]) -> Any:
    """Return the network that the metadata describe, shapes only."""
    try:
        if len(metadata["structure"]) > LONGEST_STRUCTURE:
            raise ValueError(f"it is longer than that of any {family.noun}")
        return copy.deepcopy(_build_shapes(family, metadata["build"], metadata["structure"]))
    # A file can claim sizes that overflow, or be nested so deep that no parser follows.
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its structure cannot be rebuilt ({_shorten(error)})") from error


@lru_cache(maxsize=16)
def _build_shapes(family: Family[Any], build: str, structure: str) -> Any:
    """Return a network without weights, to be copied: a copy takes a fraction of the time."""
    return family.build_without_weights(**json.loads(build), structure=json.loads(structure))


def _check_head(path: Path, network: Any, family: Family) -> None:
    """Compare the channels that depend on the number of classes with what that number asks for."""
    classes = network.build_arguments["num_classes"]
    shapes = describe_structure(network)
    for layer, (fixed, per_class) in _class_outputs(family, network.build_arguments["name"]).items():
        found = shapes.get(layer, {}).get("out")
        if found != fixed + classes * per_class:
            raise ValueError(
                f"{path}: {layer} has {found} outputs; {classes} classes need {fixed + classes * per_class}"
            )


@lru_cache(maxsize=16)
def _class_outputs(family: Family, name: str) -> dict[str, tuple[int, int]]:
    """Return each layer whose outputs depend on the number of classes: a fixed number of them, and more per class."""
    counts = []
    for classes in (1, 2):  # of any width, because the outputs of a head do not depend on it
        structure = describe_structure(family.build_without_weights(name=name, num_classes=classes, width=0.125))
        counts.append({layer: shape["out"] for layer, shape in structure.items() if "out" in shape})
    one, two = counts
    # The counts lie on a straight line over the number of classes, which two points determine.
    return {layer: (2 * one[layer] - two[layer], two[layer] - one[layer]) for layer in one if one[layer] != two[layer]}


def _with_sorted_metadata(content: bytes) -> bytes:
    """Return the bytes of a safetensors file with sorted metadata; the library writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def checksum(metadata: Mapping[str, str]) -> str:
    """Return a digest that shows edits which leave every tensor's shape alone: of anchors, a split, a class name."""
    texts = [metadata[name] for name in ("build", "structure", "use") if name in metadata]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _check_shapes(path: Path, shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Tensor], noun: str) -> None:
    if odd := sorted(expected.keys() ^ shapes.keys()):
        fault = "missing" if odd[0] in expected else f"not part of the {noun}"
        raise ValueError(f"{path}: tensor {odd[0][:100]} is {fault}")
    for name, shape in shapes.items():
        if list(shape) != list(expected[name].shape):
            raise ValueError(f"{path}: tensor {name} is {list(shape)}, its structure says {list(expected[name].shape)}")


def _shorten(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" …")
