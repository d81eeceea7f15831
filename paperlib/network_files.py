"""Networks of both tasks, detectors and classifiers of scenes, by name and on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from paperlib import classifiers, detectors
from paperlib.classifiers.base import Classifier
from paperlib.detectors.base import Detector
from paperlib.detectors.family import Family
from paperlib.detectors.files import checksum, read_network, write_described, write_network
from paperlib.detectors.foreign import refuse_foreign
from paperlib.pairs import require_saveable
from paperlib.structure import reshape_

Network = Detector | Classifier
OWN_FORMAT = "paperlib-network-1"
"""The format of a file that holds a network of one's own."""


def family_of(name: str) -> Family[Any]:
    """Return the detectors or the classifiers, whichever has a network of this name.

    Raises:
        ValueError: neither has.
    """
    for family in (detectors.FAMILY, classifiers.FAMILY):
        if name in family.kinds:
            return family
    known = ", ".join(detectors.DETECTORS), ", ".join(classifiers.CLASSIFIERS)
    raise ValueError(f"unknown detector {name!r}; known: {known[0]}; classifiers of scenes: {known[1]}")


def transfer_coco_weights(network: Network, path: str | Path, class_rows: Mapping[int, int] | None = None) -> None:
    """Load official COCO weights into a detector, or into a classifier that has the trunk of one.

    `class_rows` names class outputs of a detector that are loaded, too (see `detectors.transfer_coco_weights`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network, which is unchanged then.
    """
    if isinstance(network, Classifier):
        classifiers.transfer_coco_weights(network, path)
    else:
        detectors.transfer_coco_weights(network, path, class_rows)


def save_network(network: nn.Module, path: str | Path, *, use: Mapping[str, str] | None = None) -> None:
    """Write the weights and the structure of any network to one `.safetensors` file, atomically.

    Args:
        network: made by `build_detector`, `build_classifier` or `load_network`; or a network of one's own, for which
            `load_network` needs the function that builds it.
        path: the file; equal networks give equal files.
        use: texts that say how the network is used (see `paperlib.deploy.description`).

    Raises:
        ValueError: the network has partners, or batch norms that were fused away, so that no file could describe it;
            nothing is written.
    """
    if not hasattr(network, "build_arguments"):
        require_saveable(network)
        write_described(network, path, {"format": OWN_FORMAT}, use=use)
        return
    family = classifiers.FAMILY if isinstance(network, Classifier) else detectors.FAMILY
    write_network(network, path, family, use=use)


def load_network(path: str | Path, *, build: Callable[[], nn.Module] | None = None) -> Any:
    """Load a network, pruned shapes included, in evaluation mode; nothing is unpickled.

    Args:
        path: the file.
        build: makes a network of one's own as it was before pruning; its weights do not matter. Detectors and
            classifiers of this package need none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no network of this package, or was edited after it was written; `build` is
            missing, or makes another network.
    """
    if build is not None:
        return _load_own(Path(path), build())
    if Path(path).is_file() and _read_metadata(Path(path)).get("format") == OWN_FORMAT:
        raise ValueError(f"{path}: a network of one's own; give load_network the function that builds it: build=...")
    return read_network(path, detectors.FAMILY, classifiers.FAMILY)


def _load_own(path: Path, network: nn.Module) -> nn.Module:
    """Give a fresh network the structure and the weights of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such network file")
    refuse_foreign(path)
    metadata = _read_metadata(path)
    if metadata.get("format") != OWN_FORMAT or metadata.get("seal") != checksum(metadata):
        raise ValueError(f"{path}: no file of save_network, or edited after it was written")
    try:
        reshape_(network, json.loads(metadata["structure"]))
        network.load_state_dict(load_file(path))
    except (ValueError, RuntimeError) as error:
        fault = " ".join(str(error).split())
        raise ValueError(f"{path}: build makes another network ({fault[:200]})") from error
    return network.eval()


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as content:
            return content.metadata() or {}
    except SafetensorError:
        return {}
